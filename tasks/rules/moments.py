"""Times as sources write them, ISO 8601 or seconds since 1970, to moments in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECONDS = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")
YEAR_OR_MONTH = re.compile(r"[0-9]{4}(-[0-9]{2})?")
BASIC_DATE = re.compile(r"(?:19|20)[0-9]{6}")
"""Read as seconds, eight digits would be a moment of 1970."""


def moments(times: pl.Series) -> pl.Series:
    """Microseconds since 1970 as `Datetime("us", "UTC")`: null where there is no time, or none that can be read.

    A time without a zone is in UTC; a year or a month is its first moment.
    """
    import polars as pl

    read = [None if text is None else microseconds(text) for text in times]
    return pl.Series(times.name, read, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def microseconds(text: str) -> int | None:
    """Microseconds from the start of 1970 to a time, or none when it cannot be read."""
    text = text.strip()
    if YEAR_OR_MONTH.fullmatch(text):
        text += "-01" if "-" in text else "-01-01"
    try:
        if SECONDS.fullmatch(text) and not BASIC_DATE.fullmatch(text):
            moment = EPOCH + timedelta(seconds=float(text))
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - EPOCH) // MICROSECOND
    except (ValueError, OverflowError):
        return None
