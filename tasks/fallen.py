"""Rows that were set aside: counted by reason and source from `quarantine.parquet` or `leaked.parquet`, in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.rows import batches

if TYPE_CHECKING:
    import polars as pl

LONGEST_KEPT = 2_000
"""Characters of an example that are kept for showing."""


@dataclass
class Fallen:
    """Rows of one file.

    Attributes:
        counts: Reason → source → rows.
        examples: Reason → the first few: source, row, id, text, targets, and twin where there is one.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        """Reason → rows."""
        return Counter({reason: counts.total() for reason, counts in self.counts.items()})

    @property
    def sources(self) -> Counter[str]:
        """Source → rows."""
        return sum(self.counts.values(), Counter())


def read_fallen(file: Path, text_column: str, examples: int, targets: Sequence[str] = ()) -> Fallen:
    """Count the rows of a file, and keep the first few of each reason.

    Args:
        file: Parquet with columns reason, source, row, and whatever else is known of a row.
        text_column: The column that an example's text is of; the raw line where there is none.
        examples: How many of each reason.
        targets: Columns shown beside the text.
    """
    import polars as pl

    fallen = Fallen()
    for frame in batches([file]):
        for reason, source, rows in frame.group_by("reason", "source").len().iter_rows():
            fallen.counts.setdefault(reason, Counter())[source] += rows
        for reason in sorted(frame["reason"].unique()):
            shown = fallen.examples.setdefault(reason, [])
            missing = examples - len(shown)
            if missing > 0:
                first = frame.filter(pl.col("reason") == reason).head(missing)
                shown += first.select(_shown(frame, text_column, targets)).to_dicts()
    return fallen


def _shown(frame: pl.DataFrame, text_column: str, targets: Sequence[str]) -> list[pl.Expr]:
    import polars as pl

    texts = [column for column in (text_column, "raw") if column in frame.columns]
    text = pl.coalesce(texts).fill_null("").str.slice(0, LONGEST_KEPT).alias("text")
    others = [column for column in ("id", *targets, "twin") if column in frame.columns]
    return [pl.col("source"), pl.col("row"), text, *map(pl.col, others)]
