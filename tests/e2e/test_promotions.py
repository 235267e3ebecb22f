"""Who serves: decided by a person on the command line, and by processes that race and are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.promotion_races import Races
from tasks.home import Home
from tests.e2e.conftest import Ended, Hone, Servers

pytestmark = pytest.mark.e2e

ALL_THE_SAME = "to let it serve all the same, promote it with --override and --reason"


def line(refused: Ended) -> str:
    """The one line a person is told."""
    assert refused.code == 2
    (told,) = [line for line in refused.errors.splitlines() if line.startswith("hone: ")]
    return told


def model(hone: Hone) -> dict[str, object]:
    """What `hone status` says of the project's model."""
    return next(m for m in hone("status").result["models"] if m["name"] == "deciding")


def test_a_person_promotes_rolls_back_and_overrides(project, servers):
    hone: Hone = project("deciding", servers)
    waiting = hone("run", "recipe.yaml", "--set", "registry.promote=manual")
    assert waiting.code == 0, waiting.errors
    assert waiting.result["model"]["aliases"] == ["challenger"]
    assert (model(hone)["champion"], model(hone)["challenger"]) == (None, {"version": "1", "gate": "promote"})
    assert line(hone("rollback", "deciding")) == "hone: champion: no version of deciding serves; promote one first"

    first = hone("promote", "recipe.yaml", "--by", "ada", "--reason", "good enough")
    assert first.result == {
        "model": "deciding", "champion": "1", "before": None, "changed": True, "undo": "hone rollback recipe.yaml",
    }  # fmt: skip
    again = hone("promote", "deciding", "1")
    assert (again.code, again.result["changed"]) == (0, False)

    worse = hone(
        "run", "recipe.yaml", "--set", "registry.promote=manual", "--set", "train.learning_rate=2e-3",
        "--set", "gate.thresholds=[{metric: accuracy, at_least: 1.01}]",
    )  # fmt: skip
    assert worse.code == 0, worse.errors
    assert worse.result["gate"]["decision"] == "reject"

    assert line(hone("promote", "recipe.yaml")) == (
        "hone: version: no version of deciding waits as challenger, and version 1 serves; name a version"
    )
    assert line(hone("promote", "deciding", "2")) == f"hone: version = '2': it failed the gate; {ALL_THE_SAME}"
    assert line(hone("promote", "deciding", "2", "--override")) == (
        "hone: --reason: is required with --override; say why the version shall serve"
    )
    assert line(hone("promote", "deciding", "3")) == (
        "hone: version = '3': deciding has no such version; name a version; the latest are 2, 1"
    )
    assert line(hone("promote", "decided")) == (
        "hone: model = 'decided': nothing of that name is registered; did you mean deciding?"
    )
    forced = hone("promote", "deciding", "2", "--override", "--by", "ada", "--reason", "for a day")
    assert (forced.code, forced.result["champion"], forced.result["before"]) == (0, "2", "1")

    back = hone("rollback", "deciding", "--by", "bob", "--reason", "complaints")
    assert (back.code, back.result["champion"]) == (0, "1")
    told = line(hone("promote", "deciding", "2", "--reason", "again"))
    assert told == f"hone: version = '2': it failed the gate; {ALL_THE_SAME}"

    found = model(hone)
    assert {key: found["champion"][key] for key in ("version", "gate", "by", "reason")} == {
        "version": "1", "gate": "promote", "by": "bob", "reason": "complaints",
    }  # fmt: skip
    assert found["challenger"] is None
    assert [(move["before"], move["to"], move["what"], move["by"], move["reason"]) for move in found["history"]] == [
        (None, "1", "promoted", "ada", "good enough"),
        ("1", "2", "promoted", "ada", "for a day (with --override)"),
        ("2", "1", "rolled back", "bob", "complaints"),
    ]


def test_processes_that_race_and_are_killed_leave_one_champion_and_one_story(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    races = Races(Home.open(tmp_path))
    lines = [races.run(seed) for seed in range(10)]
    assert {line["seed"]: line["violations"] for line in lines if line["violations"]} == {}
    assert sum(end["killed"] for line in lines for end in line["ended"]) >= 2
    assert races.all_agree() == []
