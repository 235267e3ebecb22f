"""Rows of one text as a model reads them: encoded, cut or in windows. What families share that read a single text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.families import Encoded, Meta

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.tokenizer import BaseTokenizer

    Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]


def encode_texts(texts: Sequence[str], labels: Sequence[Any], meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
    """One text and one label for each row; every window of a text has its label.

    Args:
        texts: What is read.
        labels: What is learnt: numbers, or lists of one length.
        meta: The task's, with `max_seq_length`, `overlong` and `stride`.
        tokenizer: The base model's.
    """
    ids, pieces, uncut = bounded_ids(texts, meta, tokenizer)
    of_row = np.repeat(np.arange(len(pieces)), pieces)
    return Encoded(ids, pieces, uncut, {"labels": label_array([labels[row] for row in of_row.tolist()])})


def bounded_ids(texts: Sequence[str], meta: Meta, tokenizer: BaseTokenizer) -> tuple[pa.ListArray, Ints, Ints]:
    """Token ids of every window, none longer than `max_seq_length`, and of each text its windows and tokens uncut.

    Args:
        texts: What is read.
        meta: The task's, with `max_seq_length`, `overlong` and `stride`.
        tokenizer: The base model's.
    """
    import pyarrow as pa

    ids = tokenizer.ids(texts)
    uncut = ids.value_lengths().to_numpy()
    pieces = np.ones(len(ids), np.int64)
    overlong = np.flatnonzero(uncut > meta["max_seq_length"])
    if not len(overlong):
        return ids, pieces, uncut
    shorter = _shortened([texts[place] for place in overlong.tolist()], meta, tokenizer)
    pieces[overlong] = [len(windows) for windows in shorter]
    of_row = np.repeat(np.arange(len(ids)), pieces)
    is_window = np.repeat(uncut > meta["max_seq_length"], pieces)
    of_row[is_window] = len(ids) + np.arange(is_window.sum())  # behind the texts, where the windows are put
    windows = pa.array(chain.from_iterable(shorter), ids.type)
    return pa.concat_arrays([ids, windows]).take(pa.array(of_row)), pieces, uncut


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
