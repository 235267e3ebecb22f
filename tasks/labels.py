"""Where rows have labels, for all who count them: one in each row, or several.

Several labels of a row are a JSON list in one column, sorted, which is what cleaning makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Labelled:
    """The column of a task's labels.

    Attributes:
        column: Of clean rows.
        several: It holds lists.
    """

    column: str
    several: bool = False

    @classmethod
    def by(cls, meta: Mapping[str, Any]) -> Labelled | None:
        """What the meta of clean rows says; none where the task has no labels."""
        return cls(meta["label_column"], meta["several_labels"]) if "label_column" in meta else None

    def as_meta(self) -> dict[str, Any]:
        """For the meta of clean rows."""
        return {"label_column": self.column, "several_labels": self.several}

    def of(self, rows: pl.DataFrame) -> pl.Series:
        """Every label of the rows, one after the other."""
        found = self.to_each(rows)
        return found.explode().drop_nulls() if self.several else found

    def to_each(self, rows: pl.DataFrame) -> pl.Series:
        """The label of each row, or the list of its labels."""
        import polars as pl

        column = rows[self.column]
        return column.str.json_decode(pl.List(pl.String)) if self.several else column

    def counts(self, rows: pl.DataFrame) -> dict[str, int]:
        """Label → rows that have it."""
        return dict(self.of(rows).rename("label").value_counts().iter_rows())
