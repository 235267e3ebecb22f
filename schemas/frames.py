"""What a data frame must look like at every border of the pipeline: raw, clean, split, predictions.

Nothing is coerced: a column of another type is an error. Rows carry the columns below and the task's own ones, which
`raw_rows` and `clean_rows` add; a column neither names is an error too. Validate batch by batch, with `lazy=True`, so
that one error tells all. Importing pandera takes half a second: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Optional

import pandera.polars as pa
import polars as pl

META = r"^meta\..+$"
"""Columns that `collect.keep` names."""
META_PREFIX = "meta."
SUM_TOLERANCE = 1e-3
"""How far probabilities may be from adding up to 1: rounding of thousands of float32 labels, not a mistake."""


class RawRows(pa.DataFrameModel):
    """Rows as collected. Values may be missing, ids may not; rows of one raw text may share an id."""

    id: str = pa.Field(str_length={"min_value": 1}, description="names the row")
    source: str = pa.Field(str_length={"min_value": 1}, description="name of the file, table or function")
    row: pl.UInt32 = pa.Field(ge=1, description="number of the row in its source, from 1")
    group: Optional[str] = pa.Field(nullable=True, description="rows of one group stay on one side")  # noqa: UP045  # pandera's way
    time: Optional[str] = pa.Field(nullable=True, description="when the row came to be, as the source writes it")  # noqa: UP045
    split: Optional[str] = pa.Field(nullable=True, description="the source's own side, as it is spelt there")  # noqa: UP045
    meta: Optional[str] = pa.Field(alias=META, regex=True, nullable=True, description="columns that were kept")  # noqa: UP045

    class Config:
        """Columns of the task are added by `raw_rows`; types are as written here, never coerced."""

        strict = True
        coerce = False


class CleanRows(RawRows):
    """Rows fit to learn from, before and after the split: `clean_rows` adds the task's columns, all of them filled."""

    id: str = pa.Field(unique=True, str_length={"min_value": 1}, description="names the row for good")
    time: Optional[Annotated[pl.Datetime, "us", "UTC"]] = pa.Field(nullable=True, description="when the row came to be")  # type: ignore[assignment]  # noqa: UP045


class Predictions(pa.DataFrameModel):
    """One row per example: what is true, what was predicted, and whatever else the task family knows of it."""

    id: str = pa.Field(unique=True, str_length={"min_value": 1})

    class Config:
        """Every family adds columns of its own (probabilities, a generated text): none is refused or coerced."""

        strict = False
        coerce = False

    @classmethod
    def to_schema(cls) -> pa.DataFrameSchema:
        """`truth` and `prediction` are a label, a number or a text, as the family has it: any type, no nulls.

        `probabilities`, where there are any, are lists of one length, and each adds up to 1.
        """
        distribution = pa.Check(
            _are_distributions, name="distribution", error="as many probabilities as in the first row, adding up to 1"
        )
        return (
            super()
            .to_schema()
            .add_columns(
                {
                    "truth": pa.Column(),
                    "prediction": pa.Column(),
                    "probabilities": pa.Column(checks=distribution, required=False),
                }
            )
        )


def _are_distributions(data: pa.PolarsData) -> pl.LazyFrame:
    """Whether each list has as many values as the first of its frame, all of them 0 to 1, adding up to 1."""
    values = pl.col(data.key)
    length = values.list.len()
    return data.lazyframe.select(
        (length > 0)
        & (length == length.first())
        & (values.list.drop_nulls().list.len() == length)
        & (values.list.min() >= 0)
        & (values.list.max() <= 1)
        & ((values.list.sum() - 1).abs() <= SUM_TOLERANCE)
    )


def raw_rows(roles: Iterable[str]) -> pa.DataFrameSchema:
    """`RawRows` with the task's columns: text that may be missing."""
    return RawRows.to_schema().add_columns({role: pa.Column(str, nullable=True) for role in roles})


def clean_rows(
    roles: Iterable[str],
    *,
    lengths: Mapping[str, tuple[int, int]] | None = None,
    allowed: Mapping[str, Sequence[str]] | None = None,
) -> pa.DataFrameSchema:
    """`CleanRows` with the task's columns: text that is there.

    Args:
        roles: The task's columns.
        lengths: Column → fewest and most characters of its values, where the recipe bounds them.
        allowed: Column → its values, where the recipe names them.
    """
    lengths, allowed = lengths or {}, allowed or {}

    def column(role: str) -> pa.Column:
        fewest, most = lengths.get(role, (1, None))
        checks = [pa.Check.str_length(fewest, most)]
        return pa.Column(str, checks + ([pa.Check.isin(list(allowed[role]))] if role in allowed else []))

    return CleanRows.to_schema().add_columns({role: column(role) for role in roles})


def roles_of(columns: Iterable[str]) -> list[str]:
    """The task's columns among those of raw or clean rows."""
    common = {"id", "source", "row", "group", "time", "split"}
    return [name for name in columns if name not in common and not name.startswith(META_PREFIX)]


def failures(schema: pa.DataFrameSchema, rows: pl.DataFrame) -> pl.Series:
    """Why each row does not fit the schema, as `schema:<column>:<check>`; null where it does.

    Raises:
        SchemaErrors: The frame itself does not fit: a column is missing, unknown or of another type.
    """
    nowhere = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    try:
        schema.validate(rows, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        if cases["index"].null_count():
            raise
        check = cases["check"].str.replace(r"\(.*", "")
        reasons = cases.select(pl.format("schema:{}:{}", "column", check).alias("reason"), "index")
        first = reasons.unique("index", keep="first", maintain_order=True)
        return nowhere.scatter(first["index"], first["reason"])
    return nowhere
