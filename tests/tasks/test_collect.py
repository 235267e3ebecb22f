from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import DataError
from schemas.sources import CsvSource, JsonlSource, ParquetSource
from tasks import collect
from tasks.home import Home

COLUMNS = {"text": "text", "label": "label"}
KINDS = {"csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource}


def read(path: Path, kind: str = "csv", columns: dict[str, str] = COLUMNS, **options):
    """Summary, rows and quarantine of one source; `validation_path` and `test_path` as for a recipe."""
    files = {name: options.pop(name) for name in ("validation_path", "test_path") if name in options}
    separator = {"separator": options.pop("separator")} if "separator" in options else {}
    source = KINDS[kind](path=str(path), **{name: str(file) for name, file in files.items()}, **separator)
    out = path.parent / f"out-{path.name}"
    out.mkdir(exist_ok=True)
    paths = collect.source_paths(source)
    digests = dict.fromkeys(paths, "digest")
    named = {"id_column": None, "group_column": None, "split_column": None} | options
    summary = collect.read_rows(source, columns, **named, digests=digests, paths=paths, out=out)
    return summary, *(pl.read_parquet(out / f"{name}.parquet", glob=False) for name in ("rows", "quarantine"))


def written(folder: Path, content: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message(caught: pytest.ExceptionInfo[DataError]) -> str:
    """The mistake, which is one line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_keep_their_file_and_number(tmp_path):
    summary, rows, quarantine = read(written(tmp_path, "label,text,more\npos,good,1\nneg,bad,2\n"))
    assert rows.select("source", "row", "text", "label").rows() == [
        ("rows.csv", 1, "good", "pos"),
        ("rows.csv", 2, "bad", "neg"),
    ]
    assert rows.schema["row"] == pl.UInt32
    assert quarantine.is_empty()
    assert summary["rows"] == 2
    assert summary["columns"] == ["label", "text", "more"]
    assert summary["files"] == {"rows.csv": {"rows": 2, "unreadable": 0, "sha256": "digest"}}


def test_csv_with_byte_order_mark_crlf_and_quotes(tmp_path):
    content = b'\xef\xbb\xbftext,label\r\n"one, ""two""\r\nthree",pos\r\nfour,neg\r\n'
    _, rows, _ = read(written(tmp_path, content))
    assert rows["text"].to_list() == ['one, "two"\r\nthree', "four"]


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path):
    summary, rows, _ = read(written(tmp_path, b"text,label\ncaf\xe9 noir,pos\nplain,neg\n"))
    assert rows["text"].to_list() == ["caf\ufffd noir", "plain"]
    assert summary["replacement_character"] == 1


def test_values_stay_text(tmp_path):
    _, rows, _ = read(written(tmp_path, "text,label\n007,1\n1e5,0\n"))
    assert rows["text"].to_list() == ["007", "1e5"]
    assert rows["label"].to_list() == ["1", "0"]


def test_a_tab_separates_when_the_recipe_says_so(tmp_path):
    _, rows, _ = read(written(tmp_path, "text\tlabel\na, b\tpos\n"), separator="\t")
    assert rows["text"].to_list() == ["a, b"]


def test_a_field_longer_than_pythons_limit_is_read(tmp_path):
    _, rows, _ = read(written(tmp_path, f"text,label\n{'x' * 200_000},pos\n"))
    assert rows["text"].str.len_chars().to_list() == [200_000]


def test_jsonl_values_become_text(tmp_path):
    lines = [{"text": "a", "label": 1}, {"label": True, "text": None}, {"text": {"k": "é"}}]
    content = "".join(json.dumps(line) + "\n\n" for line in lines)
    _, rows, _ = read(written(tmp_path, content, "rows.jsonl"), "jsonl")
    assert rows.select("row", "text", "label").rows() == [(1, "a", "1"), (3, None, "true"), (5, '{"k": "é"}', None)]


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path):
    _, rows, _ = read(written(tmp_path, '{"text": "\\ud83d hi \\ud83d\\ude00", "label": "x"}\n', "rows.jsonl"), "jsonl")
    assert rows["text"].to_list() == ["\ufffd hi 😀"]


def test_parquet_of_numbers_and_bytes(tmp_path):
    path = tmp_path / "rows[1].parquet"
    pl.DataFrame({"text": [b"good", b"caf\xe9"], "label": [1, 0]}).write_parquet(path)
    _, rows, _ = read(path, "parquet")
    assert rows.select("row", "text", "label").rows() == [(1, "good", "1"), (2, "caf\ufffd", "0")]


def test_ragged_rows_are_set_aside_with_their_number(tmp_path):
    summary, rows, quarantine = read(written(tmp_path, "text,label\ngood,pos\na,b,c\n\nshort\nbad,neg\n"))
    assert rows["row"].to_list() == [1, 5]
    assert quarantine.rows() == [("rows.csv", 2, "a,b,c", "ragged_row"), ("rows.csv", 4, "short", "ragged_row")]
    assert summary["unreadable"] == {"ragged_row": 2}


def test_a_quote_never_closed_costs_its_own_row_and_no_other(tmp_path):
    _, rows, quarantine = read(written(tmp_path, 'text,label\none,pos\n"two,neg\nthree,pos\nfour,neg\n'))
    assert rows["text"].to_list() == ["one", "three", "four"]
    assert quarantine.rows() == [("rows.csv", 2, '"two,neg', "broken_quotes")]


def test_a_stray_quote_costs_its_own_row_and_no_other(tmp_path):
    _, rows, quarantine = read(written(tmp_path, 'text,label\n"one,pos\ntwo,neg\n"three",pos\nfour,neg\n'))
    assert rows.select("row", "text").rows() == [(2, "two"), (3, "three"), (4, "four")]
    assert quarantine["reason"].to_list() == ["broken_quotes"]


def test_jsonl_lines_that_are_no_objects_are_set_aside(tmp_path):
    content = '{"text": "a", "label": "x"}\n{"text": \n[1]\n' + "[" * 100_000 + "\n"
    summary, rows, quarantine = read(written(tmp_path, content, "rows.jsonl"), "jsonl")
    assert rows.height == 1
    assert quarantine.select("row", "reason").rows() == [(2, "not_json"), (3, "not_an_object"), (4, "not_json")]
    assert summary["unreadable"] == {"not_an_object": 1, "not_json": 2}


def test_a_repeated_or_missing_id_sets_the_later_row_aside(tmp_path):
    content = "id,text,label\n7,good,pos\n 7 ,bad,neg\n ,worse,neg\n8,fine,pos\n"
    summary, rows, quarantine = read(written(tmp_path, content), id_column="id")
    assert rows.select("id", "row").rows() == [("7", 1), ("8", 4)]
    assert quarantine.select("row", "reason").rows() == [(2, "duplicate_id"), (3, "missing_id")]
    assert json.loads(quarantine["raw"][0]) == {"id": "7", "text": "bad", "label": "neg"}
    assert summary["rows"] == 2


def test_ids_without_an_id_column_survive_shuffling_and_appending(tmp_path):
    lines = ["good,pos", "bad,neg", "good,pos", "good,neg", "fine,pos"]
    _, first, _ = read(written(tmp_path, "text,label\n" + "\n".join(lines)))
    shuffled = random.Random(3).sample(lines, len(lines))
    _, second, _ = read(written(tmp_path, "text,label\n" + "\n".join([*shuffled, "new,pos"])))
    assert first["id"].n_unique() == 5
    named = set(first.select("id", "text", "label").rows())
    assert named < set(second.select("id", "text", "label").rows())


def test_a_row_keeps_its_id_when_its_label_is_put_right(tmp_path):
    _, before, _ = read(written(tmp_path, "text,label\ngood,neg\n"))
    _, after, _ = read(written(tmp_path, "text,label\ngood,pos\n"))
    assert before["id"].to_list() == after["id"].to_list()


def test_a_blank_group_is_no_group(tmp_path):
    _, rows, _ = read(written(tmp_path, "text,label,author\na,pos,kim\nb,neg, \n"), group_column="author")
    assert rows["group"].to_list() == ["kim", None]


def test_sides_come_from_the_split_column(tmp_path):
    _, rows, _ = read(written(tmp_path, "text,label,fold\na,pos,dev\nb,neg,train\n"), split_column="fold")
    assert rows["split"].to_list() == ["dev", "train"]


def test_sides_come_from_the_files(tmp_path):
    (tmp_path / "held").mkdir()
    main = written(tmp_path, "text,label\na,pos\n")
    test = written(tmp_path / "held", "label,text\nneg,b\n")
    summary, rows, _ = read(main, test_path=test)
    assert rows.select("source", "row", "text", "split").rows() == [
        (f"{tmp_path.name}/rows.csv", 1, "a", "train"),
        ("held/rows.csv", 1, "b", "test"),
    ]
    assert set(summary["files"]) == {f"{tmp_path.name}/rows.csv", "held/rows.csv"}


CSV_BREAKS = {
    "other column": (
        b"txt,label\na,pos\n",
        "task.text_column = 'text': rows.csv has no such column, but 'txt', 'label'; did you mean 'txt'?",
    ),
    "other case": (b"Text,label\na,pos\n", "did you mean 'Text'?"),
    "unlike column": (b"x,label\na,pos\n", "has no such column, but 'x', 'label'; name one of them"),
    "semicolons": (
        b"id;text;label\n1;a;pos\n",
        "collect.source.separator = ',': the header line 'id;text;label' has none; set it to ';'",
    ),
    "repeated column": (b"text,label,text\na,pos,b\n", "rows.csv has 2 columns of this name; rename all but one"),
    "header only": (b"text,label\n", "holds no csv row; name a file with rows"),
    "blank lines only": (b"\n\n\n", "has no header line; write the names of the columns in the first line"),
    "every row ragged": (b"text,label\na\n", "holds no csv row: ragged_row in row 1"),
    "UTF-16": ("text,label\na,pos\n".encode("utf-16"), "is UTF-16 text, not csv; save it as UTF-8: iconv -f UTF-16"),
    "UTF-16 without mark": ("text,label\na,pos\n".encode("utf-16-le"), "is binary or UTF-16, not UTF-8 text"),
    "gzip": (gzip.compress(b"text,label\na,pos\n"), "is gzip-compressed, not csv; decompress it first: gunzip"),
    "workbook": (b"PK\x03\x04rest", "is a ZIP archive or an Excel workbook, not csv"),
    "parquet": (b"PAR1rest", "is Parquet, not csv; set collect.source.kind to parquet"),
    "large file pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file"),
    "web page": (b"<!DOCTYPE html><html>", "is a web page, not csv"),
    "binary": (bytes(range(256)) * 8, "is binary or UTF-16"),
    "empty": (b"", "is empty; name a file with rows"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), CSV_BREAKS.values(), ids=CSV_BREAKS)
def test_a_broken_csv_gets_one_clear_line(tmp_path, content, expected):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, content))
    assert expected in message(caught)


def test_all_missing_columns_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, "a,b\n1,2\n"), id_column="id", group_column="who")
    assert [p.field for p in caught.value.problems] == [
        "task.text_column", "task.label_column", "collect.id_column", "collect.group_column",
    ]  # fmt: skip


def test_a_json_array_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, '[{"text": "a", "label": "x"}]', "rows.json"), "jsonl")
    assert "is a JSON array, not one object per line; write each row on its own line: jq -c '.[]' rows.json" in message(
        caught
    )


def test_jsonl_without_the_column_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, '{"txt": "a", "label": "x"}\n', "rows.jsonl"), "jsonl")
    assert "rows.jsonl has no such column, but 'txt', 'label'; did you mean 'txt'?" in message(caught)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"text,label\na,pos\n", "is not Parquet"), (b"PAR1 but then nothing of it", "cannot be read as Parquet")],
)
def test_what_is_not_parquet_is_refused(tmp_path, content, expected):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, content, "rows.parquet"), "parquet")
    assert expected in message(caught)


def test_a_column_of_lists_is_refused(tmp_path):
    pl.DataFrame({"text": [["a"]], "label": ["x"]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "rows.parquet", "parquet")
    assert "task.text_column = 'text': column holds List(String) in rows.parquet" in message(caught)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import fails, as that of many an old data package does."""
    folder = tmp_path / "site" / "old_corpus"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('needs scikit-learn 0.18')")
    (folder / "rows.csv").write_text("text,label\na,pos\n")
    (tmp_path / "site" / "outside.csv").write_text("secret")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_a_package_is_found_but_never_imported(package):
    assert collect.locate("package://old_corpus/rows.csv") == package / "rows.csv"
    assert "old_corpus" not in sys.modules


@pytest.mark.parametrize("inside", ["../outside.csv", "a/../../outside.csv", "/etc/passwd", ""])
def test_a_location_cannot_leave_its_package(package, inside):
    with pytest.raises(DataError) as caught:
        collect.locate(f"package://old_corpus/{inside}")
    assert "leaves the package's folder" in message(caught)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("package://not_installed/x.csv", "package 'not_installed' is not installed; pip install not-installed"),
        ("package://gt-all/x.csv", "'gt-all' is not the name of a Python package; write package://gt_all/x.csv"),
        ("package://json.tool/x.csv", "'json.tool' is not the name of a Python package"),
        ("package://zipfile_of_none/", "leaves the package's folder"),
        ("package://old_corpus/row.csv", "is not there; did you mean 'rows.csv'?"),
    ],
)  # fmt: skip
def test_a_wrong_package_location_gets_one_clear_line(package, location, expected):
    with pytest.raises(DataError) as caught:
        collect.locate(location)
    assert expected in message(caught)
    assert message(caught).startswith("collect.source.path = ")


def test_a_missing_file_names_what_is_near(tmp_path):
    written(tmp_path, "x", "tweets_2024.csv")
    with pytest.raises(DataError) as caught:
        collect.locate(str(tmp_path / "tweets-2024.csv"))
    assert "is not there; did you mean 'tweets_2024.csv'?" in message(caught)
    with pytest.raises(DataError) as caught:
        collect.locate(str(tmp_path / "data" / "tweets.csv"))
    assert f"the folder {tmp_path / 'data'} is not there either" in message(caught)


def test_a_folder_is_refused(tmp_path):
    written(tmp_path, "x", "part-0.csv")
    with pytest.raises(DataError) as caught:
        collect.locate(str(tmp_path))
    assert "is a folder; name a file in it, such as part-0.csv" in message(caught)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError) as caught:
        collect.locate(str(tmp_path / "pipe"))
    assert "is not a regular file" in message(caught)


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "x")
    path.chmod(0)

    def forbidden(self, *args, **kwargs):  # root may read anything, so the refusal is played
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DataError) as caught:
        collect.locate(str(path))
    assert "cannot be read: Permission denied; let this user read it" in message(caught)


def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path):
    source = CsvSource(path=str(tmp_path / "a.csv"), test_path=str(tmp_path / "b.csv"))
    with pytest.raises(DataError) as caught:
        collect.source_paths(source)
    assert [p.field for p in caught.value.problems] == ["collect.source.path", "collect.source.test_path"]


def test_the_digest_is_that_of_the_content(tmp_path):
    home = Home.open(tmp_path)
    first = collect.source_digest(CsvSource(path=str(written(tmp_path, "text\na\n", "a.csv"))), home)
    same = collect.source_digest(CsvSource(path=str(written(tmp_path, "text\na\n", "b.csv"))), home)
    other = collect.source_digest(CsvSource(path=str(written(tmp_path, "text\nb\n", "b.csv"))), home)
    assert set(first) == {"path"}
    assert first == same != other
