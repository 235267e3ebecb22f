from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.errors import DataError, EnvironmentMistake
from schemas.loading import load_recipe
from tasks import forgotten, tracking
from tasks.forget import erase, find
from tasks.held_out import known_by, write_hashes
from tasks.home import Home
from tasks.store import Store
from tasks.tracking import client

pytest_plugins = ("tests.mlflow_home",)

SECRET = "My name is Ann Example, call me!"
LIKENESS = "my name is ann example call me"
OTHERS = ["a fine day", "so so", "my name is", "Ann Example"]


def rows(texts: list[str], **columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": texts} | columns)


class World:
    """A home with artifacts, copies, a run and a registered version, written by hand; `raw` alone has mojibake."""

    def __init__(self, root: Path, home: Home) -> None:
        self.home, self.store = home, Store(home.store, home.materialised)
        self.source = root / "rows.csv"
        self.source.write_text(f'text,label\n"{SECRET}",good\n' + "".join(f"{text},bad\n" for text in OTHERS))
        (root / "recipe.yaml").write_text(
            "name: tiny\ntask: {family: text-classification}\nmodel: {base: /models/tiny}\n"
            "collect: {source: {kind: csv, path: rows.csv}}\n"
        )
        self.path = root / "recipe.yaml"
        self.recipe = load_recipe(self.path)
        broken = rows(["My n\u00c3\u00a4me is garbled", *OTHERS])
        clean = broken.with_columns(text=pl.Series([SECRET, *OTHERS]))
        part = self.put("collect-part", "a" * 32, {"rows.parquet": broken})
        self.put("collect-part", "b" * 32, {"rows.parquet": rows(OTHERS).with_columns(id="o" + pl.col("id"))})
        raw = self.put("collect", "c" * 32, {"rows/00000.parquet": broken}, [part])
        sha = self.store.find("collect", raw).files["rows/00000.parquet"]["sha256"]
        self.put("clean-part", "d" * 32, {"rows.parquet": clean}, [sha])
        cleaned = self.put("clean", "e" * 32, {"rows/00000.parquet": clean})
        sha = self.store.find("clean", cleaned).files["rows/00000.parquet"]["sha256"]
        self.put("signature-part", "f" * 32, {}, [sha])
        self.put("signature-part", "0" * 32, {}, ["1" * 64])
        self.put("tokens-part", "5" * 32, {"tokens.arrow": clean.select("id")}, [sha])
        self.put("tokens-part", "6" * 32, {"tokens.arrow": pl.DataFrame({"id": ["o0", "o1"]})}, ["1" * 64])
        split = self.put("split", "2" * 32, {"train.parquet": clean, "test.parquet": rows(OTHERS).head(0)}, [cleaned])
        self.put("train", "3" * 32, {}, [split])
        self.put("train", "4" * 32, {}, ["9" * 32])
        self.snapshot = home.root / "cache" / "snapshots" / "x.parquet"
        self.download = home.root / "cache" / "sources" / "d1" / "rows.jsonl"
        self.clean_download = home.root / "cache" / "sources" / "d2" / "rows.jsonl"
        self.work = home.root / "work" / "train-5" / "spec.json"
        for file in (self.snapshot, self.download, self.clean_download, self.work):
            file.parent.mkdir(parents=True, exist_ok=True)
        clean.select("text").write_parquet(self.snapshot)
        self.download.write_text(json.dumps({"text": SECRET}))
        self.clean_download.write_text(json.dumps({"text": OTHERS[0]}))
        self.work.write_text(json.dumps({"tokens": f"/store/split/{split}"}))

    def put(self, stage: str, key: str, files: dict[str, pl.DataFrame], made_of: list[str] | None = None) -> str:
        with self.store.draft(stage, key) as out:
            for name, frame in files.items():
                (out / name).parent.mkdir(exist_ok=True)
                (frame.write_ipc_stream if name.endswith(".arrow") else frame.write_parquet)(out / name)
            (out / "note.txt").write_text(key)
            self.store.publish(out, stage, key, ingredients={"inputs": made_of or []}, summary={}, run_id="")
        return key

    def kept(self) -> set[tuple[str, str]]:
        return {
            (path.parent.parent.name, path.parent.name[0]) for path in Path(self.home.store).glob("*/*/manifest.json")
        }

    def register(self, root: Path, version_texts: list[str]) -> None:
        mlflow = client(self.home)
        folder = root / f"model{len(version_texts)}"
        folder.mkdir()
        write_hashes(np.unique(known_by(version_texts)), folder / "training_hashes.safetensors")
        if not mlflow.search_registered_models():
            mlflow.create_registered_model("tiny")
        mlflow.create_model_version("tiny", folder.as_uri(), tags={"hone.identity": folder.name})


UNTOUCHED = {("collect-part", "b"), ("signature-part", "0"), ("tokens-part", "6"), ("train", "4")}


@pytest.fixture
def world(tmp_path, home, monkeypatch):
    monkeypatch.setattr("flows.forget.configure", lambda _: None)  # it would change the environment of other tests
    return World(tmp_path, home)


def test_a_text_leaves_everything_that_holds_it_or_was_made_from_it(world):
    before = world.kept()
    found = find(world.home, world.recipe, [], ["my name is Ann Example, CALL ME"])
    assert world.kept() == before
    assert found.terms.ids == {"r0"}
    assert {hit.stage: hit.rows for hit in found.artifacts} == {
        "collect-part": 1, "collect": 1, "clean-part": 1, "clean": 1, "signature-part": 0, "tokens-part": 1, "split": 1,
        "train": 0,
    }  # fmt: skip
    erase(world.home, found)
    assert world.kept() == UNTOUCHED
    assert [file.exists() for file in (world.snapshot, world.download, world.clean_download)] == [False, False, True]
    assert not world.work.parent.exists()
    assert SECRET in world.source.read_text()
    assert found.sources == {"rows.csv": 1}
    hashes = forgotten.load(world.home)
    assert forgotten.leave_out(rows(["garbled", "x"]), ["text"], hashes)["id"].to_list() == ["r1"]


def test_an_id_is_as_good_as_a_text(world):
    erase(world.home, find(world.home, world.recipe, ["r0"], []))
    assert world.kept() == UNTOUCHED
    assert not world.snapshot.exists()


def test_erasing_again_finds_nothing_more_in_the_home(world):
    for _ in range(2):
        found = find(world.home, world.recipe, [], [SECRET])
        erase(world.home, found)
    assert (found.artifacts, found.copies) == ((), ())


def test_what_is_nowhere_is_not_found(world):
    before = world.kept()
    found = find(world.home, world.recipe, ["r77"], ["never said"])
    assert found.nothing
    erase(world.home, found)
    assert world.kept() == before


def test_versions_trained_on_the_row_are_named(world, tmp_path):
    world.register(tmp_path, ["a fine day", LIKENESS])
    world.register(tmp_path, ["a fine day"])
    client(world.home).set_registered_model_alias("tiny", "champion", "1")
    found = find(world.home, world.recipe, ["r0"], [])
    assert [(one.name, one.version, one.aliases) for one in found.versions] == [("tiny", "1", ("champion",))]


def test_runs_that_quote_the_row_are_named_and_kept(world):
    location = world.home.root / "mlartifacts" / "tiny"
    client(world.home).create_experiment("tiny", artifact_location=location.as_uri())
    for run, text in {"run1": SECRET, "run2": "a fine day"}.items():
        (location / run / "artifacts").mkdir(parents=True)
        (location / run / "artifacts" / "report.md").write_text(f"| {text} |")
    example = location / "models" / "m-1" / "artifacts" / "input_example.json"
    example.parent.mkdir(parents=True)
    example.write_text(json.dumps({"columns": ["text"], "data": [[SECRET]]}))
    found = find(world.home, world.recipe, [], [SECRET])
    assert found.quotes == {
        "MLflow models/m-1": ["artifacts/input_example.json"],
        "MLflow run1": ["artifacts/report.md"],
    }
    erase(world.home, found)
    assert example.exists()


def test_prefects_reports_that_quote_the_row_are_named(world):
    world.home.prefect.mkdir(exist_ok=True)
    with closing(sqlite3.connect(world.home.prefect / "prefect.db")) as database:
        database.execute("CREATE TABLE artifact (id, data)")
        database.execute("CREATE TABLE log (id, message)")
        reports = [("a1", "a fine day"), ("a2", f"| {SECRET} |"), ("a3", None)]
        database.executemany("INSERT INTO artifact VALUES (?, ?)", reports)
        database.commit()
    assert find(world.home, world.recipe, [], [SECRET]).quotes == {"Prefect artifact": ["a2"]}


def test_a_line_that_is_no_row_stays_out_as_a_whole(world):
    broken = pl.DataFrame({"source": ["a"] * 2, "raw": [f'1,"{SECRET}",oops', "1,2,3"], "reason": ["ragged_row"] * 2})
    world.put("collect", "7" * 32, {"quarantine.parquet": broken})
    erase(world.home, find(world.home, world.recipe, [], [SECRET]))
    assert ("collect", "7") not in world.kept()
    assert forgotten.leave_out(broken, ["raw"], forgotten.load(world.home))["raw"].to_list() == ["1,2,3"]


def test_a_remote_store_is_searched_and_erased_too(tmp_path, home, monkeypatch):
    monkeypatch.setenv("HONE_STORE", f"memory://{tmp_path.name}")
    store = Store(home.store, home.materialised)
    for key, frame in {"a" * 32: rows(["x", SECRET])[1:], "b" * 32: rows(["a fine day"])}.items():
        with store.draft("clean", key) as out:
            frame.write_parquet(out / "rows.parquet")
            store.publish(out, "clean", key, ingredients={}, summary={}, run_id="")
        store.open("clean", key)
    (tmp_path / "rows.csv").write_text("text,label\na,good\n")
    (tmp_path / "r.yaml").write_text(
        "name: tiny\ntask: {family: text-classification}\nmodel: {base: /m}\n"
        "collect: {source: {kind: csv, path: rows.csv}}\n"
    )
    erase(home, find(home, load_recipe(tmp_path / "r.yaml"), [], [SECRET]))
    assert store.find("clean", "a" * 32) is None
    assert store.find("clean", "b" * 32) is not None
    assert [path.name[0] for path in (home.materialised / "clean").iterdir()] == ["b"]


def run_flow(world: World, **more):
    from flows.forget import forget

    asked = {"ids": [], "texts": [], "file": None, "dry_run": False, "as_json": True} | more
    return forget(world.path, [], **asked)


def test_a_dry_run_only_lists(world, capsys):
    before = world.kept()
    assert run_flow(world, texts=[SECRET], dry_run=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["stages"]["clean"] == {"artifacts": 1, "rows": 1}
    assert shown["sources"] == {"rows.csv": 1}
    assert world.kept() == before
    assert not forgotten.load(world.home)
    assert SECRET not in json.dumps(shown)


def test_a_file_names_rows_by_id_and_text(world, tmp_path, capsys):
    (tmp_path / "who.csv").write_text(f'id,text\n,"{SECRET}"\nr77,\n')
    assert run_flow(world, file=tmp_path / "who.csv", as_json=False) == 0
    assert world.kept() == UNTOUCHED
    shown = capsys.readouterr().out
    assert "clean-part" in shown
    assert "rows.csv still holds 1: remove it there" in shown
    assert len(forgotten.load(world.home)) == 3


def test_nothing_found_is_said_and_is_no_error(world, capsys):
    assert run_flow(world, texts=["never said"], as_json=False) == 0
    assert capsys.readouterr().out.startswith("nothing found")


def test_a_file_without_a_column_of_either_is_refused(world, tmp_path):
    (tmp_path / "who.csv").write_text("name\nAnn\n")
    with pytest.raises(DataError, match="has the columns name; name a CSV or JSONL file"):
        run_flow(world, file=tmp_path / "who.csv")
    with pytest.raises(DataError, match="cannot be read"):
        run_flow(world, file=tmp_path / "nobody.jsonl")
    with pytest.raises(DataError, match="no row is named"):
        run_flow(world)


def test_nothing_is_erased_beside_a_run(world, monkeypatch):
    entry = tracking.Entry("t", "r", "0", "", 4711, "here", "now", "tiny", "")
    monkeypatch.setattr(tracking, "live_runs", lambda _: [entry])
    with pytest.raises(EnvironmentMistake, match="'tiny': is running, in process 4711; wait until it has ended"):
        run_flow(world, texts=[SECRET])
    assert run_flow(world, texts=[SECRET], dry_run=True) == 0
