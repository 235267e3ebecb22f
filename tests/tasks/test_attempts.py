from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from schemas.records import Artifact, Attempt, Decision, ModelVersion, Verdict
from tasks import attempts
from tasks.attempts import judged_already, remember, said
from tasks.home import Home
from tests.prepared import version

pytest_plugins = ("tests.mlflow_home",)

OUTCOME: dict[str, Any] = {"key": "k", "cached": False, "why": "", "seconds": 0.0, "run_id": "r"}


def rows(key: str = "rows") -> Artifact:
    return Artifact(**OUTCOME | {"key": key}, stage="collect", summary={})


Judge = Callable[..., Attempt]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def act(number: str | None) -> None:
        monkeypatch.setattr(attempts, "champion", lambda home, name: number and version(number=number))

    act(None)
    return act


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "known_digest", lambda model, home: f"digest of {model.base}")


@pytest.fixture
def judge(home: Home, recipe: Recipe, serve: Callable[[str | None], None]) -> Judge:
    def act(
        raw: Artifact | None = None, decision: Decision = "reject", made: str = "4", against: str | None = "3"
    ) -> Attempt:
        verdict = Verdict(**OUTCOME, stage="gate", decision=decision, checks=(), champion=against)
        model = ModelVersion(**OUTCOME, stage="register", name="tiny", version=made, aliases=())
        return remember(home, recipe, raw or rows(), verdict, model, flow_run_id="f")

    return act


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    values = recipe.model_dump(mode="json")
    for name, value in sections.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return validate_recipe(values)


def test_an_attempt_is_known_by_its_rows_its_recipe_and_whom_it_was_measured_against(
    home: Home, recipe: Recipe, serve: Callable[[str | None], None], judge: Judge
) -> None:
    assert judged_already(home, recipe, rows()) is None
    attempt = judge()
    assert (attempt.decision, attempt.version, attempt.run_id, attempt.flow_run_id) == ("reject", "4", "r", "f")
    assert judged_already(home, recipe, rows()) is None
    serve("3")
    assert judged_already(home, recipe, rows()) == attempt
    assert judged_already(home, recipe, rows("other rows")) is None
    serve("5")
    assert judged_already(home, recipe, rows()) is None


def test_the_champion_is_not_made_again_from_what_made_it(
    home: Home, recipe: Recipe, serve: Callable[[str | None], None], judge: Judge
) -> None:
    attempt = judge(decision="promote", made="1", against=None)
    serve("1")
    assert judged_already(home, recipe, rows()) == attempt


@pytest.mark.parametrize(
    "sections",
    [
        {"description": "In other words."},
        {"schedule": {"retrain": {"cron": "0 3 * * *"}}},
        {"collect": {"source": {"kind": "csv", "path": "/moved/tiny.csv"}}},  # the same rows: the key says so
        {"registry": {"intended_use": "Tests.", "environments": [{"name": "prod"}]}},
        {"train": {"save_minutes": 1, "save_steps": 10}},
        {"retrain": {"on_new_rows": True, "replay": 0.5}},  # from the base nothing is replayed
    ],
)
def test_what_cannot_change_the_outcome_makes_no_new_attempt(
    home: Home, recipe: Recipe, serve: Callable[[str | None], None], judge: Judge, sections: dict[str, Any]
) -> None:
    judge()
    serve("3")
    assert judged_already(home, changed(recipe, **sections), rows()) is not None


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"learning_rate": 1e-3}},
        {"clean": {"min_chars": 3}},
        {"gate": {"champion_margin": 0.02}},
        {"evaluate": {"confidence": 0.9}},
        {"registry": {"promote": "manual"}},
        {"retrain": {"start_from": "champion"}},
        {"model": {"base": "/models/another"}},
    ],
)
def test_what_can_change_it_does(
    home: Home, recipe: Recipe, serve: Callable[[str | None], None], judge: Judge, sections: dict[str, Any]
) -> None:
    judge()
    serve("3")
    assert judged_already(home, changed(recipe, **sections), rows()) is None


def test_another_base_model_in_the_same_place_is_another_attempt(
    home: Home, recipe: Recipe, serve: Callable[[str | None], None], judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge()
    serve("3")
    monkeypatch.setattr(attempts, "known_digest", lambda model, home: "another digest")
    assert judged_already(home, recipe, rows()) is None


def test_the_last_ones_are_kept(home: Home, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "KEPT", 2)
    for number in "123":
        judge(made=number)
    assert [attempt.version for attempt in attempts.attempts(home, "tiny")] == ["2", "3"]


def test_a_file_that_cannot_be_read_forgets_and_says_so(
    home: Home, judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    judge()
    (home.journal / "attempts" / "tiny.json").write_text("[{]")
    assert attempts.attempts(home, "tiny") == []
    assert "a retraining may repeat an attempt" in caplog.text
    judge(made="5")
    assert [attempt.version for attempt in attempts.attempts(home, "tiny")] == ["5"]


def test_a_person_is_told_why_nothing_is_done(judge: Judge) -> None:
    attempt = judge().model_copy(update={"at": "2026-11-25T08:22:35+00:00"})
    judged = "judged on 2026-11-25 08:22 UTC (reject): nothing to do"
    assert said(attempt, "3") == f"the rows, the recipe and champion version 3 are those {judged}"
    assert said(attempt, "4") == f"the rows and the recipe are those of champion version 4, {judged}"
    assert said(attempt, None) == f"nothing serves, and the rows and the recipe are those {judged}"
