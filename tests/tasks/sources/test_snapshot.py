from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DataError
from tasks.home import Home
from tasks.sources.snapshot import FOLDER, as_text, read, snapshot, text_frame

ROWS = {"text": ["good", None, "", "böse 😀"], "label": ["a", "b", None, "c"]}


def frame(columns: dict[str, list[str | None]]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def digest(folder: Path, *frames: dict[str, list[str | None]]) -> str:
    return snapshot(Home(folder), map(frame, frames))[1]


def test_the_rows_come_back_and_the_file_is_named_by_its_digest(tmp_path):
    path, name = snapshot(Home(tmp_path), iter([frame(ROWS)]))
    assert path == tmp_path / FOLDER / f"{name}.parquet"
    assert pl.read_parquet(path).to_dict(as_series=False) == ROWS
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no draft stays"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.none() | st.text(st.characters(codec="utf-8"), max_size=5)] * 2), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_the_digest_does_not_depend_on_where_the_batches_are_cut(tmp_path_factory, rows, cuts):
    folder = tmp_path_factory.mktemp("home")
    whole = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    ends = sorted({0, *(min(cut, whole.height) for cut in cuts), whole.height})
    pieces = [whole[begin:end] for begin, end in pairwise(ends)] or [whole]
    assert snapshot(Home(folder), [whole])[1] == snapshot(Home(folder), pieces)[1]


def test_every_change_of_the_content_changes_the_digest(tmp_path):
    contents = [
        ROWS,
        ROWS | {"text": ["good", "", None, "böse 😀"]},
        ROWS | {"text": ["goo", "d", "", "böse 😀"]},
        ROWS | {"label": ["a", "b", "c", None]},
        {"label": ROWS["label"], "text": ROWS["text"]},
        {"text": ROWS["text"], "class": ROWS["label"]},
        {name: values[::-1] for name, values in ROWS.items()},
        {name: values[:3] for name, values in ROWS.items()},
        {"text": ROWS["text"]},
        {"text": [], "label": []},
    ]
    assert len({digest(tmp_path, content) for content in contents}) == len(contents)


def test_a_column_that_comes_later_is_null_before_wherever_the_batches_are_cut(tmp_path):
    late = [{"a": ["1", "2"]}, {"a": ["3"], "b": ["x"]}, {"b": ["y"]}]
    path, name = snapshot(Home(tmp_path), map(frame, late))
    assert pl.read_parquet(path).to_dict(as_series=False) == {"a": ["1", "2", "3", None], "b": [None, None, "x", "y"]}
    assert name == digest(tmp_path, {"a": ["1", "2", "3", None], "b": [None, None, "x", "y"]})


def test_a_source_without_rows_gives_no_rows_and_one_that_breaks_leaves_nothing(tmp_path):
    path, _ = snapshot(Home(tmp_path), [])
    assert [batch.values.height for batch in read(path, "rows", {})] == [0]

    def breaks():
        yield frame(ROWS)
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        snapshot(Home(tmp_path), breaks())
    assert list((tmp_path / FOLDER).iterdir()) == [path]


def test_a_snapshot_that_no_run_met_for_days_goes(tmp_path):
    old, _ = snapshot(Home(tmp_path), [frame({"a": ["old"]})])
    recent, _ = snapshot(Home(tmp_path), [frame({"a": ["recent"]})])
    long_ago = time.time() - 10 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    new, _ = snapshot(Home(tmp_path), [frame({"a": ["new"]})])
    assert set((tmp_path / FOLDER).iterdir()) == {recent, new}


def test_read_gives_the_columns_asked_for_numbered_from_one_across_batches(tmp_path):
    parts = [frame({"a": [str(i) for i in range(n, n + 40_000)], "b": ["x"] * 40_000}) for n in (0, 40_000)]
    path, _ = snapshot(Home(tmp_path), parts)
    batches = list(read(path, "rows", {"task.text_column": "a", "collect.id_column": "a"}))
    assert len(batches) > 1
    assert all(batch.values.columns == ["a"] and list(batch.columns) == ["a", "b"] for batch in batches)
    assert all(batch.numbers.dtype == np.uint32 for batch in batches)
    assert [n for b in batches for n in b.numbers.tolist()] == list(range(1, 80_001))
    assert [v for b in batches for v in b.values["a"]] == [str(i) for i in range(80_000)]
    with pytest.raises(DataError, match="rows has no such column"):
        list(read(path, "rows", {"task.text_column": "c"}))


TEXTS = [
    (None, None),
    ("as it is", "as it is"),
    (7, "7"),
    (1.5, "1.5"),
    (True, "true"),
    (Decimal("1.10"), "1.10"),
    (date(2024, 2, 3), "2024-02-03"),
    (datetime(2024, 2, 3, 4, 5, tzinfo=UTC), "2024-02-03T04:05:00+00:00"),
    (b"caf\xc3\xa9\xff", "café\ufffd"),
    ({"ä": [1, None, Decimal(2)]}, '{"ä": [1, null, "2"]}'),
    ({"b", "a"}, '["a", "b"]'),
    (np.int64(3), "3"),
    (np.array([1.0, 2.0]), "[1.0, 2.0]"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ("half \ud800 pair", "half \ufffd pair"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS)
def test_values_become_text(value, text):
    assert as_text(value, "column", "collect.source.callable") == text


def test_a_value_whose_text_is_its_address_is_a_mistake():
    with pytest.raises(DataError, match=r"collect\.source\.query: column 'b' holds object objects"):
        text_frame([("x", object())], ["a", "b"], "collect.source.query")


def test_memory_stays_flat(tmp_path):
    """Ten times the rows take less than twice the memory."""
    program = """
import resource, sys
from pathlib import Path
import polars as pl
from tasks.home import Home
from tasks.sources.snapshot import snapshot
frames = (pl.DataFrame({"a": [f"{n}-{i} some words" for i in range(20_000)]}) for n in range(int(sys.argv[1])))
snapshot(Home(Path(sys.argv[2])), frames)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", program, str(n), str(tmp_path)], text=True)) for n in (5, 50)
    ]
    assert peaks[1] < 1.5 * peaks[0]
