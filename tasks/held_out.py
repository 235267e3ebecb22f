"""Which test rows a model has not learnt, known by hashes that travel with every registered model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
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
    kept = [row for row, known_by in hashes.items() if known_by not in seen]
    return kept, len(hashes) - len(kept)


def training_hashes(split: Path) -> list[str]:
    """What the training rows are known by: sorted 16-digit hashes of their normalised text.

    They are kept with the model, so that a later test leaves out what it has learnt, however the text is written.

    Args:
        split: Folder of the split artifact.
    """
    return sorted(set(_hashes(split, "train").values()))


def test_hashes(split: Path) -> dict[str, str]:
    """Id → hash of each test row; see `training_hashes`."""
    return _hashes(split, "test")


def _hashes(split: Path, side: str) -> dict[str, str]:
    import polars as pl
    import pyarrow.parquet as pq

    from tasks.split import normalised

    column = json.loads((split / "meta.json").read_text())["text_column"]
    found: dict[str, str] = {}
    for batch in pq.ParquetFile(split / f"{side}.parquet").iter_batches(BATCH_ROWS, columns=["id", column]):
        rows = pl.DataFrame(batch).select("id", normalised(pl.col(column)).alias("likeness"))
        found |= {row: _digest(likeness) for row, likeness in rows.iter_rows()}
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
