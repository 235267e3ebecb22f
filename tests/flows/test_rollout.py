from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from flows import evaluate, rollout
from flows.cli import main
from flows.evaluate import Judged
from schemas.errors import Fault
from schemas.loading import load_recipe
from schemas.records import Check, CheckOutcome
from tasks import registry
from tasks.checks import decide
from tasks.home import Home
from tasks.promotion_journal import history

pytest_plugins = ("tests.mlflow_home",)

RECIPE = """
name: tiny
task: {family: text-classification}
collect: {source: {kind: csv, path: x.csv}}
model: {base: b}
registry: {environments: [{name: staging, gate: {champion_margin: 0.25}}, {name: prod}]}
"""
STAGING = "tiny-staging"


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return str(file)


@pytest.fixture
def mlflow(home: Home) -> MlflowClient:
    """Of three versions the second serves."""
    client = MlflowClient(home.mlflow_uri)
    client.create_registered_model("tiny", tags={"hone.recipe": "tiny"})
    for number in (1, 2, 3):
        tags = {"hone.recipe": "tiny", "hone.identity": f"id{number}", "hone.gate": "promote"}
        client.create_model_version("tiny", "s3://nowhere", "run1", tags=tags)
    registry.promote(home, "tiny", "2", expected_champion=None, by="me", reason="good")
    return client


@dataclass
class Measuring:
    """Stands for the measures: what the gate's checks end with, and what happens meanwhile."""

    outcomes: tuple[CheckOutcome, ...] = ("passed",)
    meanwhile: Callable[[], object] = lambda: None
    asked: list[tuple[str, str, float, str | None]] = field(default_factory=list)

    def __call__(self, context: Any, run: Any, version: Any, gate: Any, serving: Any) -> Judged:
        self.asked.append((version.name, version.version, gate.champion_margin, serving and serving.version))
        self.meanwhile()
        checks = tuple(
            Check(name=f"check:{place}", outcome=outcome, rule=f"rule {place}", found=f"found {place}")
            for place, outcome in enumerate(self.outcomes)
        )
        return Judged(run.run_id, run.url, SimpleNamespace(sides=None), None, serving, checks, *decide(checks))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    stand_in = Measuring()
    monkeypatch.setattr(rollout, "judged", stand_in)
    monkeypatch.setattr(rollout, "prove", lambda *args: None)
    return stand_in


Json = Any


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Json:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def aliases(mlflow: MlflowClient, name: str = STAGING) -> dict[str, str]:
    return registry.aliases_of(mlflow, name)


def copies(mlflow: MlflowClient, name: str = STAGING) -> list[str]:
    found = mlflow.search_model_versions(f"name = '{name}'", order_by=["version_number ASC"])
    return [version.tags["hone.copied_from"] for version in found]


def test_the_json_says_who_serves_where_and_why(home, mlflow, measuring, recipe_file, capsys):
    found = told(capsys, "promote", recipe_file, "--to", "staging", "--by", "ada")
    run = mlflow.get_run(found["mlflow_run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "promote tiny 2 to staging")
    assert {tag: run.data.tags[tag] for tag in ("hone.kind", "hone.model", "hone.environment")} == {
        "hone.kind": "promote", "hone.model": "models:/tiny/2", "hone.environment": "staging",
    }  # fmt: skip
    assert found == {
        "model": STAGING, "champion": "1", "before": None, "changed": True, "undo": "hone rollback tiny-staging",
        "environment": "staging", "copied_from": "models:/tiny/2", "mlflow_run_id": found["mlflow_run_id"],
        "mlflow_url": None,
        "gate": {
            "decision": "promote", "rows_needed": None, "champion": None,
            "checks": [
                {"name": "check:0", "outcome": "passed", "rule": "rule 0", "found": "found 0", "rows_needed": None}
            ],
        },
    }  # fmt: skip
    assert measuring.asked == [("tiny", "2", 0.25, None)]
    confirmed = history(home, STAGING)[-1]
    assert (confirmed["event"], confirmed["by"], confirmed["reason"]) == (
        "confirmed", "ada", "version 2 of tiny passed the gate of staging",
    )  # fmt: skip


def test_a_person_reads_the_checks_and_who_serves_now(home, mlflow, measuring, recipe_file, capsys):
    told(capsys, "promote", recipe_file, "1", "--to", "staging")
    capsys.readouterr()
    assert main(["promote", recipe_file, "--to", "staging"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].split() == ["tiny", "version", "2", "gate", "passed"]
    assert lines[2].split() == ["✓", "check:0", "rule", "0", "found", "0"]
    assert lines[3:] == [
        "tiny-staging: promoted",
        "  serves now     version 2",
        "  served before  version 1",
        "  copied from    models:/tiny/2",
        "  to undo        hone rollback tiny-staging",
    ]


def test_each_environment_asks_for_itself_and_against_its_own_champion(home, mlflow, measuring, recipe_file, capsys):
    told(capsys, "promote", recipe_file, "1", "--to", "staging")
    told(capsys, "promote", recipe_file, "--to", "prod")
    told(capsys, "promote", recipe_file, "--to", "staging")
    found = told(capsys, "promote", recipe_file, "2", "--to", "prod", "--reason", "a week without complaints")
    assert measuring.asked == [
        ("tiny", "1", 0.25, None), (STAGING, "1", 0.01, None), ("tiny", "2", 0.25, "1"), (STAGING, "2", 0.01, "1"),
    ]  # fmt: skip
    assert (found["model"], found["champion"], found["before"]) == ("tiny-prod", "2", "1")
    assert copies(mlflow, "tiny-prod") == ["models:/tiny-staging/1", "models:/tiny-staging/2"]
    assert history(home, "tiny-prod")[-1]["reason"] == "a week without complaints"
    assert (aliases(mlflow, "tiny"), aliases(mlflow)) == ({"champion": "2"}, {"champion": "2"})


def test_a_closed_gate_is_told_check_by_check_and_leaves_nothing_behind(home, mlflow, measuring, recipe_file, capsys):
    measuring.outcomes = ("failed", "passed", "undecidable")
    capsys.readouterr()
    assert main(["promote", recipe_file, "--to", "staging"]) == 2
    shown = capsys.readouterr()
    remedy = "to let it serve all the same, add --override and --reason"
    assert shown.out == ""
    assert [line for line in shown.err.splitlines() if line.startswith("hone: ")] == [
        f"hone: gate of staging, check:0: failed: found 0; asked: rule 0; {remedy}",
        f"hone: gate of staging, check:2: undecidable: found 2; asked: rule 2; {remedy}",
    ]
    assert [model.name for model in mlflow.search_registered_models()] == ["tiny"]
    assert history(home, STAGING) == []


@pytest.mark.parametrize("outcome", ["undecidable", "not better"])
def test_what_is_not_shown_to_be_good_enough_does_not_go_on(home, mlflow, measuring, recipe_file, capsys, outcome):
    measuring.outcomes = (outcome,)
    told(capsys, "promote", recipe_file, "--to", "staging", code=2)
    assert aliases(mlflow) == {}


def test_with_a_reason_a_person_may_override_the_gate_which_stays_on_record(
    home, mlflow, measuring, recipe_file, capsys
):
    measuring.outcomes = ("failed",)
    told(capsys, "promote", recipe_file, "--to", "staging", "--override", code=2)
    found = told(capsys, "promote", recipe_file, "--to", "staging", "--override", "--reason", "an emergency")
    assert (found["champion"], found["gate"]["decision"]) == ("1", "reject")
    tags = mlflow.get_model_version(STAGING, "1").tags
    assert tags["hone.gate"] == "reject"
    assert tags["hone.promoted"].endswith(": an emergency (with --override)")


def test_the_same_command_again_does_nothing(home, mlflow, measuring, recipe_file, capsys):
    told(capsys, "promote", recipe_file, "--to", "staging")
    again = told(capsys, "promote", recipe_file, "--to", "staging")
    assert (again["champion"], again["before"], again["changed"], again["undo"]) == ("1", "1", False, None)
    assert (again["gate"]["decision"], again["mlflow_run_id"]) == ("promote", None)
    assert (len(measuring.asked), copies(mlflow), len(history(home, STAGING))) == (1, ["models:/tiny/2"], 2)


def test_what_was_rolled_back_where_it_comes_from_or_where_it_goes_needs_an_override(
    home, mlflow, measuring, recipe_file, capsys
):
    told(capsys, "promote", recipe_file, "1", "--to", "staging")
    told(capsys, "promote", recipe_file, "2", "--to", "staging")
    assert told(capsys, "rollback", STAGING, "--by", "bob", "--reason", "complaints")["champion"] == "1"

    for arguments in (["2", "--to", "staging"], ["2", "--to", "prod"]):
        (problem,) = told(capsys, "promote", recipe_file, *arguments, code=2)["error"]["problems"]
        assert problem["rule"].startswith("version 2 of tiny-staging was rolled back: until ")
        assert problem["rule"].endswith(", by bob: complaints")
    assert len(measuring.asked) == 2

    back = told(capsys, "promote", recipe_file, "2", "--to", "staging", "--override", "--reason", "it was the data")
    assert (back["champion"], len(copies(mlflow))) == ("2", 2)
    assert "hone.rolled_back" not in mlflow.get_model_version(STAGING, "2").tags


def test_a_champion_that_came_meanwhile_is_not_pushed_aside(home, mlflow, measuring, recipe_file, capsys):
    told(capsys, "promote", recipe_file, "1", "--to", "staging")

    def somebody_else() -> None:
        tags = {"hone.gate": "promote", "hone.copied_from": "models:/tiny/3", "hone.identity": "id3"}
        mlflow.create_model_version(STAGING, "s3://nowhere", tags=tags)
        registry.promote(home, STAGING, "2", expected_champion="1", by="bob", reason="mine")

    measuring.meanwhile = somebody_else
    refused = told(capsys, "promote", recipe_file, "--to", "staging", code=2)
    assert refused["error"]["problems"][0]["rule"] == "version 3 of tiny-staging was measured against champion 1"
    assert aliases(mlflow) == {"champion": "2"}

    measuring.meanwhile = lambda: None
    assert told(capsys, "promote", recipe_file, "--to", "staging")["champion"] == "3"
    assert measuring.asked[-1] == ("tiny", "2", 0.25, "2")
    assert copies(mlflow) == ["models:/tiny/1", "models:/tiny/3", "models:/tiny/2"]


def test_a_copy_is_evaluated_by_the_gate_of_its_environment(home, mlflow, measuring, recipe_file, capsys, monkeypatch):
    told(capsys, "promote", recipe_file, "--to", "staging")
    monkeypatch.setattr(evaluate, "judged", measuring)
    monkeypatch.setattr(evaluate, "recorded_recipe", lambda *args: load_recipe(Path(recipe_file)))
    monkeypatch.setattr(evaluate, "_result", lambda *args: {})
    told(capsys, "evaluate", STAGING)
    told(capsys, "evaluate", "tiny", "2")
    assert measuring.asked[1:] == [(STAGING, "1", 0.25, "1"), ("tiny", "2", 0.01, "2")]


class Died(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize(
    ("place", "function", "measured"),
    [(rollout, "promote", 2), (registry, "_set_champion", 1), (registry, "_finish", 1)],
)
def test_the_same_command_ends_what_a_crash_cut_short(
    home, mlflow, measuring, recipe_file, capsys, monkeypatch, place, function, measured
):
    def die(*args: Any, **more: Any) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(place, function, die)
        main(["promote", recipe_file, "--to", "staging"])
    found = told(capsys, "promote", recipe_file, "--to", "staging")
    assert (found["champion"], aliases(mlflow), copies(mlflow)) == ("1", {"champion": "1"}, ["models:/tiny/2"])
    assert [line["event"] for line in history(home, STAGING)] == ["intent", "confirmed"]
    assert len(measuring.asked) == measured


def test_a_copy_that_does_not_answer_does_not_serve(home, mlflow, measuring, recipe_file, capsys, monkeypatch):
    def broken(*args: Any) -> None:
        raise Fault("a fresh process cannot predict with the logged model")

    monkeypatch.setattr(rollout, "prove", broken)
    assert told(capsys, "promote", recipe_file, "--to", "staging", code=1)["error"]["type"] == "Fault"
    assert (aliases(mlflow), history(home, STAGING)) == ({}, [])


def test_a_measuring_that_fails_leaves_a_failed_run_and_no_copy(home, mlflow, measuring, recipe_file, capsys):
    def fail() -> None:
        raise Fault("the source is away")

    measuring.meanwhile = fail
    told(capsys, "promote", recipe_file, "--to", "staging", code=1)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FAILED"
    assert [model.name for model in mlflow.search_registered_models()] == ["tiny"]


def test_status_tells_what_serves_in_every_environment(home, mlflow, measuring, recipe_file, capsys):
    told(capsys, "promote", recipe_file, "--to", "staging", "--by", "ada")
    measuring.outcomes = ("failed",)
    told(capsys, "promote", recipe_file, "--to", "prod", "--override", "--reason", "an emergency", "--by", "ada")
    models = {model["name"]: model for model in told(capsys, "status")["models"]}
    assert {name: (model["champion"]["version"], model["champion"]["gate"]) for name, model in models.items()} == {
        "tiny": ("2", "promote"), STAGING: ("1", "promote"), "tiny-prod": ("1", "reject"),
    }  # fmt: skip
    assert models[STAGING]["champion"]["reason"] == "version 2 of tiny passed the gate of staging"
