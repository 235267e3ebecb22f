"""Which test rows a model has not learnt, known by hashes that travel with every registered model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

DIGEST_BYTES = 8
"""Of a row's hash: beside a billion training rows, one test row in eighteen billion is left out by mistake."""
BATCH_ROWS = 100_000


def common_rows(
    hashes: Mapping[str, str], trained_on_champion: Collection[str], trained_on_new: Collection[str]
) -> tuple[list[str], int]:
    """Ids of the test rows that neither model was trained on, and how many others there are.

    Args:
        hashes: Id → hash of each test row.
        trained_on_champion: Hashes of the champion's training rows.
        trained_on_new: Hashes of the challenger's.
    """
    seen = {*trained_on_champion, *trained_on_new}
    kept = [row for row, known in hashes.items() if known not in seen]
    return kept, len(hashes) - len(kept)


def training_hashes(split: Path) -> list[str]:
    """What the training rows are known by: sorted 16-digit hashes of their normalised text.

    They are kept with the model, so that a later test leaves out what it has learnt, however the text is written.

    Args:
        split: Folder of the split artifact.
    """
    import numpy as np

    parts = [np.array([int(known, 16) for known in hashes], np.uint64) for _, hashes in _hashed(split, "train")]
    return [f"{number:0{2 * DIGEST_BYTES}x}" for number in np.unique(np.concatenate(parts)).tolist()]


def test_hashes(split: Path) -> dict[str, str]:
    """Id → hash of each test row; see `training_hashes`."""
    return {row: known for ids, hashes in _hashed(split, "test") for row, known in zip(ids, hashes, strict=True)}


def known_by(likeness: str) -> str:
    """The hash of a normalised text."""
    return hashlib.blake2b(likeness.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _hashed(split: Path, side: str) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and hashes of a side's rows, a batch at a time."""
    import polars as pl

    from tasks.rows import batches
    from tasks.signatures import normalised

    column = json.loads((split / "meta.json").read_text())["text_column"]
    for batch in batches([split / f"{side}.parquet"], ["id", column], BATCH_ROWS):
        likeness = batch.select(normalised(pl.col(column))).to_series()
        yield batch["id"].to_list(), [known_by(text) for text in likeness]
