"""What a data frame must look like at every border of the pipeline: raw, clean, split, predictions.

Nothing is coerced anywhere: a column of another type is an error. Rows carry the columns below and the task's own ones,
which `raw_rows` and `clean_rows` add; a column neither names is an error too. Validate with `lazy=True`, so that one
error tells all. Importing pandera takes half a second: import this module inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import pandera.polars as pa
import polars as pl


class RawRows(pa.DataFrameModel):
    """Rows as collected. Values may be missing, ids may not."""

    id: str = pa.Field(unique=True, str_length={"min_value": 1}, description="names the row for good")
    source: str = pa.Field(str_length={"min_value": 1}, description="name of the file")
    row: pl.UInt32 = pa.Field(ge=1, description="number of the data row in its file, from 1")
    group: Optional[str] = pa.Field(nullable=True, description="rows of one group stay on one side")  # noqa: UP045  # pandera's way
    split: Optional[str] = pa.Field(nullable=True, description="the source's own side, as it is spelt there")  # noqa: UP045

    class Config:
        """Columns of the task are added by `raw_rows`; types are as written here, never coerced."""

        strict = True
        coerce = False


class CleanRows(RawRows):
    """Rows fit to learn from, before and after the split: `clean_rows` adds the task's columns, all of them filled."""


class Predictions(pa.DataFrameModel):
    """One row per example: what is true, what was predicted, and whatever else the task family knows of it."""

    id: str = pa.Field(unique=True, str_length={"min_value": 1})

    class Config:
        """Every family adds columns of its own (probabilities, a generated text): none is refused or coerced."""

        strict = False
        coerce = False

    @classmethod
    def to_schema(cls) -> pa.DataFrameSchema:
        """`truth` and `prediction` are a label, a number or a text, as the family has it: any type, no nulls."""
        return super().to_schema().add_columns({"truth": pa.Column(), "prediction": pa.Column()})


def raw_rows(roles: Iterable[str]) -> pa.DataFrameSchema:
    """`RawRows` with the task's columns: text that may be missing."""
    return RawRows.to_schema().add_columns({role: pa.Column(str, nullable=True) for role in roles})


def clean_rows(roles: Iterable[str]) -> pa.DataFrameSchema:
    """`CleanRows` with the task's columns: text that is there."""
    filled = {role: pa.Column(str, pa.Check.str_length(min_value=1)) for role in roles}
    return CleanRows.to_schema().add_columns(filled)
