from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import DataError
from schemas.frames import raw_rows
from schemas.loading import validate_recipe
from schemas.records import Artifact
from tasks import collect, forgotten
from tasks.context import Context, Observer
from tasks.home import Home

CSV = "text,label\ngood,pos\nbad,neg\n"


class Collected:
    """A project in a folder, collected again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context: Context | None = None

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def __call__(self, path: Path | list[Path] | None = None, source: dict | None = None, **options) -> Artifact:
        paths = [str(p) for p in path] if isinstance(path, list) else str(path or self.folder / "data")
        recipe = validate_recipe(
            {
                "name": "r",
                "task": {"family": "text-classification"},
                "model": {"base": "b"},
                "collect": {"source": {"kind": "csv", "path": paths} | (source or {})} | options,
                "split": {"kind": "official" if source or "split_column" in options else "hash"},
            }
        )
        self.context = Context(recipe, Home.open(self.folder), "run", observer=Counting())
        return collect.collect(self.context)

    @property
    def computed(self) -> int:
        """Artifacts computed by the last call."""
        return self.context.observer.computed

    def files(self, artifact: Artifact) -> list[Path]:
        return sorted((self.context.path(artifact) / "rows").iterdir())

    def rows(self, artifact: Artifact) -> pl.DataFrame:
        frames = [pl.read_parquet(path) for path in self.files(artifact)]
        for frame in frames:
            raw_rows(["text", "label"]).validate(frame, lazy=True)
        return pl.concat(frames)

    def quarantine(self, artifact: Artifact) -> pl.DataFrame:
        return pl.read_parquet(self.context.path(artifact) / "quarantine.parquet")


class Counting(Observer):
    computed = 0

    def computing(self, stage: str) -> None:
        assert stage == "collect"
        self.computed += 1


@pytest.fixture
def run(tmp_path, monkeypatch) -> Collected:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    return Collected(tmp_path)


def test_rows_keep_their_file_and_number(run):
    run.write("data/a.csv", CSV)
    run.write("data/b.csv", "label,text,more\npos,fine,1\n")
    artifact = run()
    assert run.rows(artifact).select("source", "row", "text", "label").rows() == [
        ("a.csv", 1, "good", "pos"),
        ("a.csv", 2, "bad", "neg"),
        ("b.csv", 1, "fine", "pos"),
    ]
    assert [path.name for path in run.files(artifact)] == ["00000.parquet", "00001.parquet"]
    assert run.quarantine(artifact).is_empty()
    summary = artifact.summary
    assert summary["rows"] == 3
    assert summary["columns"] == ["text", "label", "more"]
    assert summary["pieces"] == {"a.csv": {"rows": 2, "cached": False}, "b.csv": {"rows": 1, "cached": False}}
    assert {name: file["rows"] for name, file in summary["files"].items()} == {"a.csv": 2, "b.csv": 1}


def test_a_new_file_in_a_folder_is_the_only_one_read(run):
    run.write("data/b.csv", CSV)
    run.write("data/c.csv", "text,label\nfine,pos\n")
    before = run()
    assert run.computed == 3
    digests = {p.read_bytes() for p in run.files(before)}
    run.write("data/a.csv", "text,label\nnew,pos\n")
    after = run()
    assert run.computed == 2
    assert [p["cached"] for p in after.summary["pieces"].values()] == [False, True, True]
    assert digests < {p.read_bytes() for p in run.files(after)}
    assert run().cached
    assert run.computed == 0


def test_a_piece_is_known_by_its_content_wherever_it_lies(run, monkeypatch):
    first = run(run.write("here/rows.csv", CSV))
    assert run(run.write("there/rows.csv", CSV)).key == first.key
    assert run(run.write("there/other.csv", CSV)).key != first.key  # rows say where they are from
    assert run(run.write("there/rows.csv", CSV), keep=["label"]).key != first.key


def test_parts_share_their_file_with_the_whole_where_links_work(run, monkeypatch):
    artifact = run(run.write("rows.csv", CSV))
    assert run.files(artifact)[0].stat().st_nlink == 2

    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    copied = run(run.write("rows.csv", "text,label\nfine,pos\n"))
    assert run.rows(copied)["text"].to_list() == ["fine"]
    assert run.files(copied)[0].stat().st_nlink == 1


def test_ids_are_digests_of_the_raw_text_and_rows_of_one_text_share_one(run):
    rows = run.rows(run(run.write("rows.csv", "text,label\ngood,pos\nbad,neg\ngood,neg\n ,pos\n")))
    from hashlib import blake2b

    assert rows["id"].to_list() == [blake2b(t, digest_size=8).hexdigest() for t in (b"good", b"bad", b"good", b" ")]


def test_rows_without_an_id_are_set_aside_and_double_ids_are_not(run):
    path = run.write("rows.csv", "id,text,label\n7,good,pos\n 7 ,bad,neg\n ,worse,neg\n8,fine,pos\n")
    artifact = run(path, id_column="id")
    assert run.rows(artifact).select("id", "row").rows() == [("7", 1), ("7", 2), ("8", 4)]
    fallen = run.quarantine(artifact)
    assert fallen.select("source", "row", "reason").rows() == [("rows.csv", 3, "missing_id")]
    assert json.loads(fallen["raw"][0]) == {"id": None, "text": "worse", "label": "neg"}
    assert artifact.summary["unreadable"] == {"missing_id": 1}


def test_lines_that_are_no_rows_are_counted_by_reason(run):
    run.write("data/a.csv", 'text,label\na\n"b,x\ngood,pos\n')
    run.write("data/b.csv", "text,label\nc,d,e\ncaf\ufffd,neg\n")
    artifact = run()
    assert run.quarantine(artifact).rows() == [
        ("a.csv", 1, "a", "ragged_row"),
        ("a.csv", 2, '"b,x', "broken_quotes"),
        ("b.csv", 1, "c,d,e", "ragged_row"),
    ]
    assert artifact.summary["unreadable"] == {"broken_quotes": 1, "ragged_row": 2}
    assert artifact.summary["files"]["a.csv"]["unreadable"] == 2
    assert artifact.summary["replacement_character"] == 1


def test_group_time_and_kept_columns_come_with_the_rows(run):
    path = run.write("rows.csv", "text,label,author,at,shop\na,pos, kim ,2026-01-02, 1\nb,neg, , ,\n")
    rows = run.rows(run(path, group_column="author", time_column="at", keep=["shop", "author"]))
    assert rows.drop("id", "source", "row").to_dicts() == [
        {"text": "a", "label": "pos", "group": "kim", "time": "2026-01-02", "meta.shop": " 1", "meta.author": " kim "},
        {"text": "b", "label": "neg", "group": None, "time": None, "meta.shop": "", "meta.author": " "},
    ]


def test_sides_come_from_the_split_column(run):
    rows = run.rows(run(run.write("rows.csv", "text,label,fold\na,pos,dev\nb,neg,train\n"), split_column="fold"))
    assert rows["split"].to_list() == ["dev", "train"]


def test_sides_come_from_the_files(run):
    main = run.write("rows.csv", CSV)
    test = run.write("held/rows.csv", "label,text\nneg,b\n")
    artifact = run(main, source={"test_path": str(test)})
    assert run.rows(artifact).select("source", "row", "text", "split").rows() == [
        (f"{run.folder.name}/rows.csv", 1, "good", "train"),
        (f"{run.folder.name}/rows.csv", 2, "bad", "train"),
        ("held/rows.csv", 1, "b", "test"),
    ]


def test_the_split_column_is_asked_of_the_main_files_alone(run):
    main = run.write("rows.csv", "text,label,fold\na,pos,dev\nb,neg,train\n")
    test = run.write("test.csv", "text,label\nc,pos\n")
    rows = run.rows(run(main, source={"test_path": str(test)}, split_column="fold"))
    assert rows.select("text", "split").rows() == [("a", "dev"), ("b", "train"), ("c", "test")]


def test_a_file_without_rows_is_fine_among_others_and_a_mistake_alone(run):
    run.write("data/a.csv", "text,label\n")
    run.write("data/b.csv", CSV)
    artifact = run()
    assert {name: piece["rows"] for name, piece in artifact.summary["pieces"].items()} == {"a.csv": 0, "b.csv": 2}
    assert [pl.read_parquet(path).height for path in run.files(artifact)] == [0, 2]
    assert run.rows(artifact).height == 2
    for content, found in {"text,label\n": "", "text,label\na\n": ": ragged_row in row 1"}.items():
        with pytest.raises(DataError) as caught:
            run(run.write("alone.csv", content))
        assert f"'alone.csv': holds no csv row{found}; name a file with rows" in str(caught.value)


def test_a_test_file_without_rows_is_a_mistake(run):
    empty = run.write("test.csv", "text,label\n")
    with pytest.raises(DataError) as caught:
        run(run.write("rows.csv", CSV), source={"test_path": str(empty)})
    assert str(caught.value).startswith("collect.source.test_path = 'test.csv': holds no csv row")


def test_an_error_names_the_file(run):
    run.write("data/a.csv", CSV)
    run.write("data/b.csv", "txt,label\na,pos\n")
    with pytest.raises(DataError) as caught:
        run()
    assert "task.text_column = 'text': b.csv has no such column, but 'txt', 'label'" in str(caught.value)


def test_many_rows_are_written_batch_by_batch(run):
    import pyarrow.parquet as pq

    count = 120_000
    run.write("data/a.csv", "text,label\n" + "".join(f"text number {n},pos\n" for n in range(count)))
    artifact = run()
    written = pq.ParquetFile(run.files(artifact)[0]).metadata
    assert max(written.row_group(i).num_rows for i in range(written.num_row_groups)) <= 50_000
    assert run.rows(artifact)["row"].to_list() == list(range(1, count + 1))


def test_corrections_touch_the_pieces_of_their_ids_alone(run):
    run.write("data/a.csv", "id,text,label\n1,good,\n2,bad,neg\n")
    run.write("data/b.csv", "id,text,label\n3,fine,pos\n4,awful,neg\n")
    before = run(id_column="id")
    files = [path.read_bytes() for path in run.files(before)]
    fixes = run.write("fixes.csv", "id,label,drop\n1,pos,\n2,,yes\n9,pos,\n")
    after = run(id_column="id", corrections=[str(fixes)])
    assert run.computed == 1
    assert run.rows(after).select("id", "label").rows() == [("1", "pos"), ("3", "pos"), ("4", "neg")]
    assert [path.read_bytes() == old for path, old in zip(run.files(after), files, strict=True)] == [False, True]
    fallen = run.quarantine(after)
    assert fallen.select("source", "row", "reason").rows() == [("a.csv", 2, "dropped_by_correction")]
    assert json.loads(fallen["raw"][0]) == {"id": "2", "text": "bad", "label": "neg"}
    assert after.summary["rows"] == 3
    assert after.summary["unreadable"] == {"dropped_by_correction": 1}
    assert after.summary["corrections"] == {
        "files": 1, "rows_changed": 1, "rows_dropped": 1, "ids": 3, "unknown_ids": 1, "such_as": ["9"],
    }  # fmt: skip


def test_a_changed_correction_is_noticed(run):
    path = run.write("rows.csv", CSV)
    row = run.rows(run(path))["id"][0]
    fixes = run.write("fixes.csv", f"id,label\n{row},neg\n")
    first = run(path, corrections=str(fixes))
    assert run.rows(first)["label"].to_list() == ["neg", "neg"]
    run.write("fixes.csv", f"id,text\n{row},great\n")
    second = run(path, corrections=str(fixes))
    assert run.rows(second).select("id", "text", "label").row(0) == (row, "great", "pos")
    assert run(path, corrections=str(fixes)).cached


def test_forgotten_rows_are_left_out_though_the_source_still_has_them(run):
    lines = ["text,label", "good,pos", "My secret: here!,neg", "bad,neg", "my secret here,too,many", "1,2,3"]
    run.write("data/a.csv", "\n".join(lines) + "\n")
    before = run()
    good = run.rows(before)["id"][0]
    forgotten.remember(run.context.home, [good], ["my secret here", "my secret here too many"])
    after = run()
    assert after.key != before.key
    assert (before.summary["rows"], before.summary["forgotten"]) == (3, 0)
    assert (after.summary["rows"], after.summary["forgotten"]) == (1, 3)
    assert run.rows(after)["text"].to_list() == ["bad"]
    quarantine = pl.read_parquet(run.context.path(after) / "quarantine.parquet")
    assert quarantine["raw"].to_list() == ["1,2,3"]
    assert run().cached


def test_a_correction_does_not_bring_a_forgotten_text_back(run):
    run.write("data/a.csv", "key,text,label\nk1,good,pos\nk2,bad,neg\n")
    right = run.write("right.csv", "id,text\nk2,my secret here\n")
    run(id_column="key")
    forgotten.remember(run.context.home, [], ["my secret here"])
    after = run(id_column="key", corrections=[str(right)])
    assert run.rows(after)["id"].to_list() == ["k1"]
    assert (after.summary["rows"], after.summary["forgotten"]) == (1, 1)
