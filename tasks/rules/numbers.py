"""Numbers that come as text: which of them are finite, and one spelling for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def is_number(column: str) -> pl.Expr:
    """Whether the text is a finite number, with a decimal point and without separators of thousands."""
    import polars as pl

    return pl.col(column).cast(pl.Float64, strict=False).is_finite().fill_null(value=False)


def spelt_alike(targets: pl.Series) -> pl.Series:
    """Each number by its shortest spelling, so that 3 and 3.0 do not contradict each other; others as they are."""
    import polars as pl

    name = targets.name
    number = pl.col(name).cast(pl.Float64, strict=False)
    alike = pl.when(is_number(name)).then(number.cast(pl.String)).otherwise(name).alias(name)
    return targets.to_frame().select(alike).to_series()
