from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sqlite3
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DataError, Fault
from schemas.sources import CsvSource, GettextSource, JsonlSource, ParquetSource
from tasks.home import Home
from tasks.sources import Piece, formats, pieces, text
from tests.tasks.sources.broken_files import BIG, CSV, JSONL, REFUSED, SET_ASIDE

KINDS = {"csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource, "gettext": GettextSource}
WANTED = {"task.text_column": "text", "task.label_column": "label"}


def pieces_of(folder: Path, kind: str, path: Path | list[Path], **options) -> list[Piece]:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    return pieces(KINDS[kind](path=paths, **options), Home.open(folder))


def rows_of(piece: Piece, wanted: dict[str, str] = WANTED):
    """(number, *values) of each row, and (number, raw, reason) of what is none."""
    rows: list[tuple] = []
    unreadable: list[tuple] = []
    for batch in piece.read(wanted):
        assert batch.numbers.dtype == "uint32"
        assert all(dtype == pl.String for dtype in batch.values.dtypes)
        assert batch.values.columns == list(dict.fromkeys(wanted.values()))
        rows += [(int(n), *values) for n, values in zip(batch.numbers, batch.values.rows(), strict=True)]
        unreadable += batch.unreadable
    return rows, unreadable


def read(folder: Path, content: bytes | str, name: str = "rows.csv", kind: str = "csv", **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rows_of(pieces_of(folder, kind, path, **options)[0])


def message(caught: pytest.ExceptionInfo[DataError]) -> str:
    """The mistake, which is one line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))


def test_values_stay_text_and_rows_are_numbered(tmp_path):
    rows, unreadable = read(tmp_path, "text,label,more\n007,1,x\n1e5,0,y\n")
    assert (rows, unreadable) == ([(1, "007", "1"), (2, "1e5", "0")], [])


def test_csv_with_byte_order_mark_crlf_and_quotes(tmp_path):
    content = b'\xef\xbb\xbftext,label\r\n"one, ""two""\r\nthree",pos\r\nfour,neg\r\n'
    assert read(tmp_path, content)[0] == [(1, 'one, "two"\r\nthree', "pos"), (2, "four", "neg")]


def test_a_tab_separates_when_the_recipe_says_so(tmp_path):
    assert read(tmp_path, "text\tlabel\na, b\tpos\n", separator="\t")[0] == [(1, "a, b", "pos")]


def test_jsonl_values_become_text(tmp_path):
    lines = [{"text": "a", "label": 1}, {"label": True, "text": None}, {"text": {"k": "é"}}]
    content = "".join(json.dumps(line) + "\n\n" for line in lines)
    rows, _ = read(tmp_path, content, "rows.jsonl", "jsonl")
    assert rows == [(1, "a", "1"), (3, None, "true"), (5, '{"k": "é"}', None)]


def test_parquet_of_numbers_bytes_categories_and_dates(tmp_path):
    path = tmp_path / "rows[1].parquet"
    frame = pl.DataFrame(
        {"text": [b"good", b"caf\xe9"], "label": [1, None], "kind": ["x", "y"], "at": ["2026-01-02"] * 2}
    )
    frame.with_columns(pl.col("kind").cast(pl.Categorical), pl.col("at").str.to_date()).write_parquet(path)
    wanted = WANTED | {"collect.keep.0": "kind", "collect.keep.1": "at"}
    rows, _ = rows_of(pieces_of(tmp_path, "parquet", path)[0], wanted)
    assert rows == [(1, "good", "1", "x", "2026-01-02"), (2, "caf\ufffd", None, "y", "2026-01-02")]


def test_a_quote_never_closed_costs_its_own_row_and_no_other(tmp_path):
    rows, unreadable = read(tmp_path, 'text,label\none,pos\n"two,neg\nthree,pos\nfour,neg\n')
    assert [row[1] for row in rows] == ["one", "three", "four"]
    assert unreadable == [(2, '"two,neg', "broken_quotes")]


def test_a_stray_quote_costs_its_own_row_and_no_other(tmp_path):
    rows, unreadable = read(tmp_path, 'text,label\n"one,pos\ntwo,neg\n"three",pos\nfour,neg\n')
    assert [row[:2] for row in rows] == [(2, "two"), (3, "three"), (4, "four")]
    assert unreadable == [(1, '"one,pos', "broken_quotes")]


def test_how_lines_fall_into_blocks_changes_nothing(tmp_path, monkeypatch):
    lines = [f'"a {n}\nb",pos\n' if n % 3 else f"short {n}\n" if n % 2 else '\n"open,neg\n' for n in range(200)]
    content = "text,label\n" + "".join(lines) + 'last,pos\n"never closed,neg\nplain,pos\n'
    whole = read(tmp_path, content)
    for size in (1, 7, 40, 1000):
        monkeypatch.setattr(text, "BLOCK_CHARS", size)
        assert read(tmp_path, content) == whole
    assert {reason for *_, reason in whole[1]} == {"ragged_row", "broken_quotes"}
    assert whole[0][-2:] == [(whole[0][-2][0], "last", "pos"), (whole[0][-2][0] + 2, "plain", "pos")]


CELLS = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from('",\n\r'), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=30))
def test_what_a_csv_writer_wrote_is_read_back(tmp_path_factory, rows):
    frame = pl.DataFrame(rows, schema={"text": pl.String, "label": pl.String}, orient="row")
    written = io.BytesIO()
    frame.write_csv(written, quote_style="always")
    folder = tmp_path_factory.mktemp("csv")
    read_back, unreadable = read(folder, written.getvalue())
    assert [row[1:] for row in read_back] == rows
    assert unreadable == []


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_long_file_comes_in_batches_numbered_throughout(tmp_path, kind):
    count = 120_001
    frame = pl.DataFrame({"text": [f"text number {n}" * 5 for n in range(count)], "label": ["pos"] * count})
    path = tmp_path / f"rows.{kind}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    batches = list(pieces_of(tmp_path, kind, path)[0].read(WANTED))
    assert max(batch.values.height for batch in batches) < count / 2
    assert [int(n) for batch in batches for n in batch.numbers] == list(range(1, count + 1))
    assert pl.concat([batch.values for batch in batches]).equals(frame)


@pytest.mark.parametrize(("module", "end"), [(gzip, "gz"), (bz2, "bz2"), (lzma, "xz")])
def test_compressed_text_is_read_as_it_is(tmp_path, module, end):
    assert read(tmp_path, module.compress(CSV.encode()), f"rows.csv.{end}") == read(tmp_path, CSV)
    assert read(tmp_path, module.compress(JSONL.encode()), f"rows.jsonl.{end}", "jsonl") == read(tmp_path, CSV)


def database(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "made.db")
    connection.execute("create table rows (text, label)")
    connection.commit()
    connection.close()
    return (folder / "made.db").read_bytes()


@pytest.mark.parametrize(("kind", "content", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_file_broken_as_a_whole_gets_one_clear_line(tmp_path, kind, content, expected):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, f"rows.{kind}", kind)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems)
    assert expected in lines[0]


@pytest.mark.parametrize(("kind", "content", "rows", "aside"), SET_ASIDE.values(), ids=SET_ASIDE)
def test_a_file_broken_in_places_loses_those_alone(tmp_path, kind, content, rows, aside):
    read_rows, unreadable = read(tmp_path, content, f"rows.{kind}", kind)
    assert read_rows == rows
    assert [(number, reason) for number, _, reason in unreadable] == aside


def test_what_is_kept_of_a_line_too_long_is_bounded(tmp_path):
    _, ((_, raw, _),) = read(tmp_path, "text,label\n" + "x" * BIG + ",a\nb,c\n")
    assert len(raw) == text.MAX_RAW_CHARS


def test_columns_may_have_names_in_any_script(tmp_path):
    (tmp_path / "rows.csv").write_text("문장,標籤 😀\na,b\n")
    wanted = {"task.text_column": "문장", "task.label_column": "標籤 😀"}
    assert rows_of(pieces_of(tmp_path, "csv", tmp_path / "rows.csv")[0], wanted)[0] == [(1, "a", "b")]


def test_one_column_may_serve_twice(tmp_path):
    (tmp_path / "rows.csv").write_text(CSV)
    wanted = {"task.text_column": "text", "collect.group_column": "text"}
    assert rows_of(pieces_of(tmp_path, "csv", tmp_path / "rows.csv")[0], wanted)[0] == [(1, "good"), (2, "bad")]


def test_an_sqlite_database_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, database(tmp_path))
    assert "is an SQLite database, not csv; set collect.source.kind to sql" in message(caught)


@pytest.mark.parametrize(
    ("values", "shown"),
    [([["a", None]], '["a", null]'), ([{"a": 1, "b": ["ü"]}], '{"a": 1, "b": ["ü"]}')],
    ids=["list", "struct"],
)
def test_a_nested_column_of_parquet_becomes_json_as_in_json_lines(tmp_path, values, shown):
    pl.DataFrame({"text": values, "label": ["x"]}).write_parquet(tmp_path / "rows.parquet")
    assert rows_of(pieces_of(tmp_path, "parquet", tmp_path / "rows.parquet")[0]) == ([(1, shown, "x")], [])


def test_lists_of_parquet_become_json_as_those_of_json_lines_do(tmp_path):
    lists = pl.DataFrame({"text": [["é", "b"], None], "label": [[1, 2], []]})
    lists.write_parquet(tmp_path / "rows.parquet")
    lists.write_ndjson(tmp_path / "rows.jsonl")
    expected = [(1, '["é", "b"]', "[1, 2]"), (2, None, "[]")]
    for kind in ("parquet", "jsonl"):
        assert rows_of(pieces_of(tmp_path, kind, tmp_path / f"rows.{kind}")[0])[0] == expected


def test_all_missing_columns_are_named_at_once(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError) as caught:
        rows_of(pieces_of(tmp_path, "csv", tmp_path / "rows.csv")[0], WANTED | {"collect.id_column": "id"})
    assert [p.field for p in caught.value.problems] == ["task.text_column", "task.label_column", "collect.id_column"]


def test_a_file_has_one_piece_however_often_it_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("b.csv", "a.csv"):
        (tmp_path / "data" / name).write_text(CSV)
    (tmp_path / "data" / "link.csv").symlink_to("a.csv")
    found = pieces_of(tmp_path, "csv", [tmp_path / "data" / "*.csv", tmp_path / "data" / "a.csv", tmp_path / "data"])
    assert [piece.name for piece in found] == ["a.csv", "b.csv"]
    assert {piece.side for piece in found} == {None}


def test_a_file_below_a_folder_keeps_its_name_when_others_come(tmp_path):
    for name in ("2025/01.csv", "2026/01.csv", "2026/02.csv"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(CSV)
    whole = [piece.name for piece in pieces_of(tmp_path, "csv", tmp_path / "data")]
    assert whole == ["2025/01.csv", "2026/01.csv", "2026/02.csv"]
    (tmp_path / "data" / "2026/01.csv").unlink()
    assert [piece.name for piece in pieces_of(tmp_path, "csv", tmp_path / "data")] == ["2025/01.csv", "2026/02.csv"]


def test_pieces_of_one_name_get_as_many_folders_as_tell_them_apart(tmp_path):
    paths = [tmp_path / name for name in ("x/new/rows.csv", "y/new/rows.csv", "other.csv")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CSV)
    assert [piece.name for piece in pieces_of(tmp_path, "csv", paths)] == [
        "x/new/rows.csv",
        "y/new/rows.csv",
        "other.csv",
    ]


def test_sides_come_from_the_files_and_a_test_file_does_not_train(tmp_path):
    for name in ("a.csv", "b.csv", "test.csv"):
        (tmp_path / name).write_text(CSV)
    found = pieces_of(tmp_path, "csv", tmp_path / "*.csv", test_path=str(tmp_path / "test.csv"))
    assert [(p.name, p.side, p.field) for p in found] == [
        ("a.csv", "train", "collect.source.path"),
        ("b.csv", "train", "collect.source.path"),
        ("test.csv", "test", "collect.source.test_path"),
    ]
    with pytest.raises(DataError) as caught:
        pieces_of(tmp_path, "csv", tmp_path / "test.csv", test_path=str(tmp_path / "test.csv"))
    assert "is also collect.source.test_path; name another file" in message(caught)


def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        pieces_of(tmp_path, "csv", [tmp_path / "a.csv", tmp_path / "*.tsv"], test_path=str(tmp_path / "b.csv"))
    assert [p.field.rpartition(".")[2] for p in caught.value.problems] == ["path", "path", "test_path"]


def test_the_digest_is_that_of_the_content(tmp_path):
    for name, content in {"a.csv": CSV, "b.csv": CSV, "c.csv": CSV + "more,pos\n"}.items():
        (tmp_path / name).write_text(content)
    first, same, other = (piece.digest for piece in pieces_of(tmp_path, "csv", tmp_path / "*.csv"))
    assert first == same != other


def test_a_file_that_changes_while_it_is_read_is_a_fault(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    (piece,) = pieces_of(tmp_path, "csv", path)
    path.write_text(CSV + "late,pos\n")
    with pytest.raises(Fault, match="changed while it was read"):
        rows_of(piece)


def test_an_empty_file_of_a_folder_has_no_rows(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for kind in ("csv", "jsonl", "parquet"):
        (folder / f"empty.{kind}").touch()
        assert rows_of(pieces_of(tmp_path, kind, folder)[0]) == ([], [])


def test_a_catalog_is_known_by_its_language_too(tmp_path):
    path = tmp_path / "de" / "LC_MESSAGES" / "shop.po"
    path.parent.mkdir(parents=True)
    path.write_text('msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "Cart"\nmsgstr "Korb"\n')
    (piece,) = pieces_of(tmp_path, "gettext", path)
    assert piece.name == "de/LC_MESSAGES/shop.po"
    assert rows_of(piece, {"a": "source", "b": "target", "c": "language"})[0] == [(1, "Cart", "Korb", "de")]


def test_broken_quotes_in_most_lines_take_time_in_proportion(monkeypatch):
    import time

    def seconds(count: int) -> float:
        lines = ['"never closed\n'] * count + ["plain\n"] * count
        began = time.perf_counter()
        formats._parsed(lines, ",", final=True)
        return time.perf_counter() - began

    def least(count: int) -> float:
        return min(seconds(count) for _ in range(3))

    assert least(40_000) < 40 * max(least(4_000), 0.005)
