from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rules.moments import moments


def moment(text: str | None) -> datetime | None:
    series = moments(pl.Series("time", [text], dtype=pl.String))
    assert series.dtype == pl.Datetime("us", "UTC")
    return series[0]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2024-05-01", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024-05-01T12:30:15.25", datetime(2024, 5, 1, 12, 30, 15, 250_000, tzinfo=UTC)),
        ("2024-05-01 12:30:00Z", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        (" 2024-05-01T12:30:00+02:00 ", datetime(2024, 5, 1, 10, 30, tzinfo=UTC)),
        ("20240501T123000", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("20240501", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024-W18-3", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024-05", datetime(2024, 5, 1, tzinfo=UTC)),
        ("2024", datetime(2024, 1, 1, tzinfo=UTC)),
        ("0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("86400.5", datetime(1970, 1, 2, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("1714566600", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("1.7145666e9", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
        ("-86400", datetime(1969, 12, 31, tzinfo=UTC)),
        ("0001-01-01T00:00:00", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_iso_times_and_seconds_are_read(text, meant):
    assert moment(text) == meant


@pytest.mark.parametrize(
    "text", ["yesterday", "05/01/2024", "2024-13-01", "1714566600000000", "nan", "inf", "", " ", None, "1e99", "12:30"]
)
def test_what_is_no_time_is_null(text):
    assert moment(text) is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_moment_is_read_as_python_writes_it(value):
    assert moment(value.isoformat()) == value
