from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from benchmarks import promotion_races
from tasks import registry
from tasks.home import Home

pytest_plugins = ("tests.mlflow_home",)

NAME = "m"
BY: dict[str, Any] = {"by": "me", "reason": "better", "override": True}


@pytest.fixture
def mlflow(home: Home) -> MlflowClient:
    """A model whose champions were 1, 2 and, 2 being taken back, 1."""
    client = MlflowClient(home.mlflow_uri)
    client.create_registered_model(NAME)
    for _ in promotion_races.VERSIONS:
        client.create_model_version(NAME, "s3://nowhere")
    registry.promote_by_hand(home, NAME, "1", **BY)
    registry.promote_by_hand(home, NAME, "2", **BY)
    registry.rollback_by_hand(home, NAME, by="me", reason="worse")
    return client


def without_line(home: Home, number: int) -> None:
    file = home.journal / "promotions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:number] + lines[number + 1 :]))


def test_an_honest_history_has_no_disagreements(home, mlflow):
    assert promotion_races.disagreements(home, mlflow, NAME) == []
    assert promotion_races.former_of(promotion_races.journal(home, NAME)) is None


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        (5, "an intent to let 1 serve ended 0 times: []"),
        (4, "confirmed without an intent"),
        (3, "1 followed 2, but 1 served"),
    ],
)
def test_a_lost_line_is_found(home, mlflow, lost, found):
    without_line(home, lost)
    assert found in promotion_races.disagreements(home, mlflow, NAME)


def test_an_alias_or_a_tag_that_tells_another_story_is_found(home, mlflow):
    mlflow.delete_model_version_tag(NAME, "2", "hone.rolled_back")
    mlflow.set_registered_model_alias(NAME, "champion", "3")
    mlflow.set_registered_model_alias(NAME, "challenger", "3")
    assert promotion_races.disagreements(home, mlflow, NAME) == [
        "the journal ends with 1, the alias with 3",
        "the champion is its own challenger",
        "version 2: hone.rolled_back is False, not True",
    ]


def test_a_promise_that_was_not_kept_is_found(home, mlflow):
    commands = [{"verb": "promote", "version": number} for number in ("2", "3", "1")]
    ended = [
        {"outcome": "moved", "by": "me"},
        {"outcome": "moved", "by": "you"},
        {"outcome": "refused: because", "by": "me"},
    ]
    assert promotion_races.broken_promises(home, NAME, 0, commands, ended) == [
        "version 3 was reported as promoted, on record are ['1', '2', '1']",
        "a refused promote let ['1', '2', '1'] serve",
    ]


@pytest.mark.parametrize(
    ("moves", "former"),
    [
        ([], ""),
        (["1"], None),
        (["1", "2", "3"], "2"),
        (["1", "2", "back", "3"], "1"),
        (["1", "2", "3", "back", "back"], None),
        (["1", "2", "1", "back"], None),
    ],
)
def test_the_former_champion_is_told_from_the_journal_alone(moves, former):
    lines: list[dict[str, Any]] = []
    for move in moves:
        present = lines[-1]["to"] if lines else None
        back = move == "back"
        to = promotion_races.former_of(lines) if back else move
        lines.append({"event": "confirmed", "before": present, "to": to, "rolls_back": back})
    assert promotion_races.former_of(lines) == former


def test_a_seed_decides_who_does_what_and_who_is_killed():
    drawn = [[promotion_races.command_of(random.Random(seed)) for seed in range(300)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    kills = [command["kill"] for command in drawn[0] if "kill" in command]
    assert 110 < len(kills) < 190
    assert {kill.get("how", "moment") for kill in kills} == {"moment", "before", "during", "after", "torn"}


def test_the_report_counts_ends_and_places(tmp_path: Path):
    under = {"cpu": "a cpu", "cores": 2, "python": "3.11", "libraries": {"mlflow": "3"}, "commit": "abc",
             "date": "2026-01-02", "load_1min": 0.5}  # fmt: skip
    killed = {"outcome": "killed", "killed": True, "where": "torn/moving:confirmed"}
    moved = {"outcome": "moved", "killed": False, "where": ""}
    lines = [
        {"seed": 0, "ended": [killed, moved], "repairs": [moved], "repaired": ["confirmed"], "violations": [],
         "conditions": under, "usual_seconds": 0.1},
        {"seed": 1, "ended": [killed, killed], "repairs": [killed | {"where": "start"}, moved], "repaired": [],
         "violations": ["two champions"], "conditions": under | {"load_1min": 2.5}, "usual_seconds": 0.3},
    ]  # fmt: skip
    results = tmp_path / "lines.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert promotion_races.report(promotion_races.recorded(results)).splitlines() == [
        "2 cases, 1 disagreements.",
        "",
        "- seed 1: two champions",
        "- how 4 commands ended: killed 3, moved 1",
        "- both killed: 1 cases, one: 1",
        "- next commands: 3, of which killed 1; journalled by them: confirmed 1",
        "",
        "| killed while | before | in | after | torn |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| not begun | 1 |  |  |  |",
        "| moving, confirmed |  |  |  | 3 |",
        "",
        "a cpu, 2 cores, Python 3.11, mlflow 3, abc.",
        "A command that nobody killed took 200 ms (median).",
    ]


def test_a_finished_case_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = tmp_path / "lines.jsonl"
    results.write_text('{"seed": 0}\n{"seed": 1}\n')
    monkeypatch.setattr(promotion_races, "mlflow_server", lambda folder: pytest.fail("nothing is left to run"))
    promotion_races.run_cases(range(2), results)
