from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.rows import BATCH_ROWS, Writer, batches, count, files

FRAME = pl.DataFrame(
    {"id": ["a", None, "ç"], "row": [1, 2, 3], "time": [None, None, datetime(2024, 5, 1, 12, tzinfo=UTC)]},
    schema={"id": pl.String, "row": pl.UInt32, "time": pl.Datetime("us", "UTC")},
)


def write(path, *frames, schema=None):
    with Writer(path, schema) as writer:
        for frame in frames:
            writer.write(frame)
    return writer


def test_what_is_written_is_read_with_the_same_types(tmp_path):
    assert write(tmp_path / "x.parquet", FRAME, FRAME).rows == 6
    assert pl.concat(batches([tmp_path / "x.parquet"])).equals(pl.concat([FRAME, FRAME]))
    assert next(batches([tmp_path / "x.parquet"])).schema == FRAME.schema
    assert pl.read_parquet(tmp_path / "x.parquet").schema == FRAME.schema


def test_each_frame_is_a_row_group_and_an_empty_one_is_none(tmp_path):
    write(tmp_path / "x.parquet", FRAME[:0], FRAME, FRAME[:0], FRAME[:1])
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 1]


def test_batches_are_no_larger_than_asked_and_keep_the_order_of_rows_and_files(tmp_path):
    numbers = pl.DataFrame({"n": range(10)})
    write(tmp_path / "b.parquet", numbers[:4])
    write(tmp_path / "a.parquet", numbers[4:])
    parts = [batch["n"].to_list() for batch in batches([tmp_path / "b.parquet", tmp_path / "a.parquet"], size=3)]
    assert parts == [[0, 1, 2], [3], [4, 5, 6], [7, 8, 9]]


def test_only_the_columns_asked_for_are_read_and_in_that_order(tmp_path):
    write(tmp_path / "x.parquet", FRAME)
    assert next(batches([tmp_path / "x.parquet"], ["row", "id"])).columns == ["row", "id"]


def test_a_file_of_one_large_row_group_is_read_in_batches(tmp_path):
    pl.DataFrame({"n": range(BATCH_ROWS + 1)}).write_parquet(tmp_path / "x.parquet")
    assert [batch.height for batch in batches([tmp_path / "x.parquet"])] == [BATCH_ROWS, 1]


def test_files_are_those_of_a_folder_by_name_or_the_one_named(tmp_path):
    for name in ("00010.parquet", "00002.parquet", "meta.json"):
        (tmp_path / name).touch()
    assert [path.name for path in files(tmp_path)] == ["00002.parquet", "00010.parquet"]
    assert files(tmp_path / "00002.parquet") == [tmp_path / "00002.parquet"]


def test_rows_are_counted_without_reading_them(tmp_path):
    write(tmp_path / "x.parquet", FRAME, FRAME)
    assert count([tmp_path / "x.parquet", tmp_path / "x.parquet"]) == 12


def test_no_rows_are_an_empty_file_of_the_schema_or_no_file(tmp_path):
    write(tmp_path / "x.parquet", schema=FRAME.schema)
    write(tmp_path / "y.parquet")
    assert pl.read_parquet(tmp_path / "x.parquet").schema == FRAME.schema
    assert list(batches([tmp_path / "x.parquet"])) == []
    assert not (tmp_path / "y.parquet").exists()


def test_a_frame_of_other_columns_is_refused(tmp_path):
    with pytest.raises((ValueError, pa.ArrowInvalid)), Writer(tmp_path / "x.parquet") as writer:
        writer.write(FRAME)
        writer.write(FRAME.drop("time"))
