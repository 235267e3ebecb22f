from __future__ import annotations

import json

import polars as pl

from tasks import forgotten

pytest_plugins = ("tests.mlflow_home",)

LIKENESS = "my name is ann example call me"


def rows(texts: list[str], **columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": texts} | columns)


def test_forgotten_rows_are_left_out_by_id_and_by_text(home):
    assert forgotten.digest(forgotten.load(home)) is None
    assert forgotten.remember(home, ["r1"], [LIKENESS]) == 2
    assert forgotten.remember(home, ["r1", "r9"], []) == 1
    hashes = forgotten.load(home)
    assert len(hashes) == 3
    frame = rows(["a", "b", None, "my name is ann EXAMPLE call me", LIKENESS + " now"])
    assert forgotten.leave_out(frame, ["text"], hashes)["id"].to_list() == ["r0", "r2", "r4"]
    assert forgotten.leave_out(frame, ["text"], frozenset()) is frame


def test_the_journal_of_erasures_holds_neither_id_nor_text(home):
    forgotten.remember(home, ["ann-7"], [LIKENESS])
    written = (home.journal / "forgotten.jsonl").read_text()
    assert [set(json.loads(line)) for line in written.splitlines()] == [{"at", "kind", "hash"}] * 2
    assert "ann" not in written
