from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.quarantine import quarantine
from schemas.loading import load_recipe
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.split import split

RECIPE = """
name: r
task: {family: text-classification}
collect: {source: {kind: csv, path: x.csv}}
clean: {min_chars: 3}
split: {kind: hash, near_duplicates: {search: false}}
model: {base: b}
"""
OPTIONS = {"reason": None, "examples": 2, "export": None, "replay": False, "as_json": False}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    rows = [f"text of row {'abcdefghij'[i % 10] * (1 + i // 10)},{('pos', 'neg')[i % 2]}" for i in range(200)]
    (tmp_path / "x.csv").write_text(
        "\n".join(["text,label", *rows, "[b],pos", f"[red]{'long ' * 100}[/red],", "a,b,c", ""])
    )
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    context = Context(load_recipe(path, ["clean.min_chars=4"]), Home.open(path), "run")
    split(context, clean(context, collect(context)))
    return path


def test_a_person_sees_reasons_and_examples_as_they_are(recipe, capsys):
    assert quarantine(recipe, [], **OPTIONS) == 0
    out = capsys.readouterr().out
    assert "too_short" in out
    assert "[b]" in out
    assert "[red]long long" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "a,b,c" in out


def test_the_json_is_one_object_on_the_last_line(recipe, capsys, tmp_path):
    target = tmp_path / "fixes.csv"
    assert quarantine(recipe, [], **OPTIONS | {"as_json": True, "replay": True, "export": target}) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    short = next(group for group in found["groups"] if group["reason"] == "too_short")
    assert short["examples"][0]["text"] == "[b]"
    assert found["replay"]["fates"]["too_short"] == {"kept": 1}
    assert found["export"] == {"file": str(target), "rows": 2, "without_id": 1}
    assert all(len(example["text"]) <= 200 for group in found["groups"] for example in group["examples"])


def test_a_person_is_told_what_to_do_with_an_export_and_what_a_replay_found(recipe, capsys, tmp_path):
    assert quarantine(recipe, [], **OPTIONS | {"examples": 0, "replay": True, "export": tmp_path / "fixes.csv"}) == 0
    out = capsys.readouterr().out
    assert f"collect: {{corrections: [{tmp_path / 'fixes.csv'}]}}" in out
    assert "too_short → 1 kept" in out
    assert "lines without an id, to be put right in the source itself: 1" in out
    assert "[b]" not in out
