"""Rows of one text as a model reads them: encoded, cut or in windows. What families share that read a single text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.families import Encoded, Meta

if TYPE_CHECKING:
    from tasks.tokenizer import BaseTokenizer


def encode_texts(texts: Sequence[str], labels: Sequence[Any], meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
    """One text and one label for each row; every window of a text has its label.

    Args:
        texts: What is read.
        labels: What is learnt: numbers, or lists of one length.
        meta: The task's, with `max_seq_length`, `overlong` and `stride`.
        tokenizer: The base model's.
    """
    ids, longest = tokenizer.ids(texts), meta["max_seq_length"]
    uncut = [len(tokens) for tokens in ids]
    pieces = np.ones(len(ids), np.int64)
    overlong = [place for place, length in enumerate(uncut) if length > longest]
    if overlong:
        shorter = _shortened([texts[place] for place in overlong], meta, tokenizer)
        pieces[overlong] = [len(windows) for windows in shorter]
        for place, windows in zip(reversed(overlong), reversed(shorter), strict=True):
            ids[place : place + 1] = windows  # from the last one on, so that the places before it stay
    of_row = np.repeat(np.arange(len(pieces)), pieces)
    return Encoded(ids, pieces.tolist(), uncut, {"labels": label_array([labels[row] for row in of_row.tolist()])})


def label_array(labels: Sequence[Any]) -> Any:
    """Labels as a column: numbers as they are, lists of one length as a list of fixed length."""
    import pyarrow as pa

    if labels and isinstance(labels[0], list):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(labels)), len(labels[0]))
    return pa.array(labels)


def _shortened(texts: Sequence[str], meta: Meta, tokenizer: BaseTokenizer) -> list[list[list[int]]]:
    """What becomes of overlong texts: the windows of each, or the one that the cut leaves."""
    if meta.get("overlong") == "window":
        return tokenizer.windows(texts, meta["max_seq_length"], meta["stride"])
    return [[ids] for ids in tokenizer.cut_ids(texts, meta["max_seq_length"])]
