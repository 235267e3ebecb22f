from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import DataError
from tasks.corrections import correction_files, load
from tasks.home import Home

COLUMNS = {"text": "body", "label": "mood"}


def corrections(folder: Path, *contents: str, id_column: str | None = None, end: str = "csv"):
    paths = [folder / f"fix{place}.{end}" for place in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return load([(path, "csv" if end in {"csv", "tsv"} else "jsonl") for path in paths], COLUMNS, id_column)


def rows(**columns: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


RAW = rows(id=["a", "b", "c", "a"], text=["one", "two", None, "four"], label=["x", None, "z", "x"])


def test_a_filled_cell_replaces_and_an_empty_one_leaves(tmp_path):
    right = corrections(tmp_path, "id,mood,body\nb,y,\nc, ,three\n")
    kept, dropped, changed = right.apply(RAW)
    assert kept.rows() == [("a", "one", "x"), ("b", "two", "y"), ("c", "three", "z"), ("a", "four", "x")]
    assert (dropped.height, changed) == (0, 2)
    assert RAW["label"].to_list() == ["x", None, "z", "x"]


def test_all_rows_of_an_id_are_corrected_or_dropped(tmp_path):
    kept, dropped, changed = corrections(tmp_path, "id,mood\na,y\n").apply(RAW)
    assert (kept["label"].to_list(), changed) == (["y", None, "z", "y"], 2)
    kept, dropped, changed = corrections(tmp_path, "id,drop\na,yes\nb,false\n").apply(RAW)
    assert kept["id"].to_list() == ["b", "c"]
    assert dropped.rows() == [("a", "one", "x"), ("a", "four", "x")]
    assert changed == 1


@pytest.mark.parametrize("said", ["true", "1", "YES", " True "])
def test_ways_to_say_drop(tmp_path, said):
    assert corrections(tmp_path, f"id,drop\na,{said}\n").apply(RAW)[1].height == 2


def test_later_lines_and_files_win_cell_by_cell(tmp_path):
    first, second = "id,mood,body,drop\na,1,early,true\na,2,,\n", "id,mood,drop\na,3,no\nb,4,\n"
    assert corrections(tmp_path, first, second).apply(RAW)[0].rows() == [
        ("a", "early", "3"), ("b", "two", "4"), ("c", None, "z"), ("a", "early", "3"),
    ]  # fmt: skip
    assert corrections(tmp_path, second, first).apply(RAW)[0].rows() == [("b", "two", "4"), ("c", None, "z")]


def test_the_ids_column_may_have_the_recipes_name(tmp_path):
    kept, *_ = corrections(tmp_path, "ticket,mood\n b ,y\n", id_column="ticket").apply(RAW)
    assert kept["label"].to_list() == ["x", "y", "z", "x"]
    kept, *_ = corrections(tmp_path, "id,mood\nb,y\n", id_column="ticket").apply(RAW)
    assert kept["label"].to_list() == ["x", "y", "z", "x"]


def test_json_lines_and_tab_separated_corrections(tmp_path):
    lines = [{"id": "a", "mood": "y"}, {"id": "b", "drop": True}, {"id": "c", "drop": False, "body": "three"}]
    kept, *_ = corrections(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), end="jsonl").apply(RAW)
    assert kept.rows() == [("a", "one", "y"), ("c", "three", "z"), ("a", "four", "y")]
    kept, *_ = corrections(tmp_path, "id\tmood\nb\ty\n", end="tsv").apply(RAW)
    assert kept["label"].to_list() == ["x", "y", "z", "x"]


def test_ids_that_name_no_row_are_counted_and_some_are_named(tmp_path):
    right = corrections(tmp_path, "id,mood\n" + "".join(f"late-{n},y\n" for n in range(7)) + "b,y\n")
    assert right.concern(RAW["id"])
    assert not right.concern(pl.Series(["d"]))
    assert right.summary() == {
        "ids": 8,
        "unknown_ids": 7,
        "such_as": ["late-0", "late-1", "late-2", "late-3", "late-4"],
    }


def test_many_corrections_find_their_rows(tmp_path):
    count = 100_000
    right = corrections(tmp_path, "id,mood\n" + "".join(f"{n},{n % 7}\n" for n in range(0, 2 * count, 2)))
    ids = [str(n) for n in range(count)]
    kept, _, changed = right.apply(rows(id=ids, text=["t"] * count, label=["old"] * count))
    assert kept["label"].to_list() == [str(n % 7) if n % 2 == 0 else "old" for n in range(count)]
    assert changed == count / 2


def test_no_corrections_concern_nothing(tmp_path):
    right = load([], COLUMNS, None)
    assert not right.concern(RAW["id"])
    assert right.summary() == {"ids": 0, "unknown_ids": 0, "such_as": []}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id,moood\na,y\n", "correct nothing: 'moood'; name columns of the task ('body', 'mood', 'drop')"),
        ("id,label\na,y\n", "has columns that correct nothing: 'label'"),
        ("who,mood\na,y\n", "fix0.csv has no such column, but 'who', 'mood'; name the column with the ids"),
        ("id,mood\na,y\n ,z\n", "row 2 has no id; name the row it corrects, or delete it"),
        ("id,mood\na,y,z\n", "row 1 is none: ragged_row: 'a,y,z'; put the line right"),
        ("id,drop\na,perhaps\n", "drop is 'perhaps'; write true or false, or leave it empty"),
        ("id,id,mood\na,a,y\n", "fix0.csv has 2 columns of this name"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named(tmp_path, content, expected):
    with pytest.raises(DataError) as caught:
        corrections(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert expected in str(caught.value)


def test_files_are_located_like_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    home = Home.open(tmp_path)
    folder = tmp_path / "fixes"
    folder.mkdir()
    for name in ("2.csv", "1.jsonl", "notes.txt"):
        (folder / name).write_text(name)
    assert list(correction_files([str(folder)], home).values()) == [
        (folder / "1.jsonl", "jsonl"),
        (folder / "2.csv", "csv"),
    ]
    with pytest.raises(DataError) as caught:
        correction_files([str(folder / "notes.txt")], home)
    assert "is neither CSV nor JSON lines; name a .csv" in str(caught.value)
