"""The database of studies, a real one: SQLite below a home."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from schemas.tune import Trial
from tasks.home import Home
from tasks.space import space_of
from tasks.study import LOOKS, Asked, Study, distribution_of, importance_of, rebuilt

ROWS = 20_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HONE_STUDIES", raising=False)
    return Home.open(tmp_path)


def recipe(**tune: Any) -> Recipe:
    return validate_recipe(
        {
            "name": "tickets",
            "task": {"family": "text-classification"},
            "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
            "model": {"base": "/base"},
            "train": {"learning_rate": 1e-4},
            "tune": tune,
        }
    )


def study(home: Home, rows: str = "k", **tune: Any) -> Study:
    given = recipe(**tune)
    return Study(home, given, space_of(given, ROWS), rows=rows, share=0.25, examples=ROWS)


def ended(asked: Asked, value: float | None, state: Any = "complete") -> Trial:
    return Trial(
        stage="trial", key="k", cached=False, why="", seconds=2.0, run_id="r", number=asked.number, state=state,
        values=dict(asked.values), value=value, reached=1.0, course={1.0: value or 0.0}, steps=10, tokens=100,
    )  # fmt: skip


def asked_by(found: Study, most: int = 100) -> Asked:
    asked = found.next(most)
    assert asked is not None
    return asked


def test_the_first_trial_is_the_recipe_as_it_is(home: Home) -> None:
    found = study(home)
    asked = asked_by(found)
    assert (asked.number, asked.values) == (0, {})
    found.tell(ended(asked, 0.7))
    (known,) = optuna.load_study(study_name=found.name, storage=f"sqlite:///{home.root}/studies.db").trials
    assert (known.params["train.learning_rate"], known.value) == (1e-4, 0.7)
    assert known.params["train.epochs"] == 2.0  # what nobody said is known as what it comes to
    assert "train.class_weights" not in known.params  # auto is none of those that are tried


def test_further_trials_have_values_of_the_space(home: Home) -> None:
    found = study(home)
    for number in range(12):
        asked = asked_by(found)
        assert asked.number == number
        found.tell(ended(asked, 0.5 + number / 100))
        if number:
            assert 2.5e-5 <= asked.values["train.learning_rate"] <= 4e-4
            assert asked.values["train.schedule"] in {"linear", "cosine"}
    assert [trial.number for trial in found.trials] == list(range(12))
    assert len({trial.values["train.learning_rate"] for trial in found.trials[1:]}) == 11


def test_there_are_no_more_trials_than_asked_for(home: Home) -> None:
    found = study(home)
    for _ in range(3):
        found.tell(ended(asked_by(found, 3), 0.5))
    assert found.next(3) is None
    assert found.next(4) is not None


def test_an_interrupted_trial_is_gone_on_with_and_none_is_run_twice(home: Home) -> None:
    first = study(home)
    first.tell(ended(asked_by(first), 0.5))
    left = asked_by(first)
    assert not left.before
    second = study(home)  # another command: the first one was killed
    assert [trial.number for trial in second.trials] == [0]
    again = asked_by(second, 0)
    assert (again.number, again.values, again.before) == (left.number, left.values, True)
    assert second.next(0) is None, "it is asked for once"
    second.tell(ended(again, 0.6))
    third = study(home)
    assert [trial.value for trial in third.trials] == [0.5, 0.6]
    assert third.next(2) is None


def test_a_trial_of_another_machine_is_left_alone(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_STUDIES", f"sqlite:///{tmp_path}/shared.db")
    asked_by(study(home))
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "other"))
    assert study(Home.open(tmp_path)).next(1) is None
    assert asked_by(study(Home.open(tmp_path))).number == 1


def test_a_trial_that_another_machine_took_in_between_is_not_run(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_STUDIES", f"sqlite:///{tmp_path}/shared.db")
    one = study(home)
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "other"))
    other = study(Home.open(tmp_path))
    monkeypatch.setattr(Study, "_begun", lambda _: 0)  # what both saw before either asked
    assert asked_by(one).number == 0
    assert other.next(1) is None
    with sqlite3.connect(tmp_path / "shared.db") as database:
        assert database.execute("select number, state from trials order by 1").fetchall() == [
            (0, "RUNNING"),
            (1, "FAIL"),
        ]


def test_an_interrupted_search_draws_on_as_it_would_have(home: Home, tmp_path: Path, monkeypatch: Any) -> None:
    def drawn(one: Study, several: int) -> list[Any]:
        found = []
        for _ in range(several):
            asked = asked_by(one)
            one.tell(ended(asked, 0.5 + 0.01 * len(asked.values.get("train.schedule", ""))))
            found.append(asked.values)
        return found

    whole = drawn(study(home), 10)
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "other"))
    other = Home.open(tmp_path)
    parts = drawn(study(other), 4) + drawn(study(other), 6)
    assert parts == whole


def test_other_rows_another_space_or_another_recipe_are_another_search(home: Home) -> None:
    names = {
        study(home).name,
        study(home, rows="other").name,
        study(home, space={"train.schedule": ["linear", "cosine"]}).name,
        study(home, prune=False).name,
    }
    assert len(names) == 4
    assert study(home, trials=50, minutes=3, finalists=1, seeds=4).name == study(home).name


def test_a_trial_is_given_up_that_is_worse_than_half_of_the_others_were(home: Home) -> None:
    found = study(home)
    for number in range(5):
        asked = asked_by(found)
        for look in range(1, LOOKS + 1):
            assert not found.report(asked.number, look, 0.5 + number / 10 + look / 100)
        found.tell(ended(asked, 0.6))
    worse, better = asked_by(found), asked_by(found)
    assert not found.report(worse.number, 1, 0.1), "the first look is too early"
    assert found.report(worse.number, 2, 0.51)
    assert not found.report(better.number, 2, 0.95)
    assert not found.report(worse.number, LOOKS, 0.1), "at its end it is whole"


def test_nothing_is_given_up_where_the_recipe_says_so(home: Home) -> None:
    found = study(home, prune=False)
    for _ in range(6):
        asked = asked_by(found)
        found.report(asked.number, 1, 0.9)
        found.tell(ended(asked, 0.9))
    assert not found.report(asked_by(found).number, 1, 0.1)


def test_lists_and_sections_are_choices_too(home: Home) -> None:
    targets = [None, ["query", "value"]]
    tried = {"train.method": ["full", {"kind": "lora", "r": 8}], "train.method.target_modules": targets}
    found = study(home, space=tried)
    seen = []
    for _ in range(14):
        asked = asked_by(found)
        found.tell(ended(asked, 0.5))
        seen.append(asked.values)
    methods = [values["train.method"] for values in seen[1:]]
    assert "full" in methods
    assert {"kind": "lora", "r": 8} in methods
    for values in seen[1:]:
        assert ("train.method.target_modules" in values) == (values["train.method"] != "full")
        assert values.get("train.method.target_modules") in targets


def test_whole_numbers_stay_whole(home: Home) -> None:
    found = study(home, space={"train.global_batch_size": {"low": 8, "high": 64, "log": True}})
    found.tell(ended(asked_by(found), 0.5))
    assert isinstance(asked_by(found).values["train.global_batch_size"], int)


def test_the_database_says_how_every_trial_ended(home: Home) -> None:
    found = study(home)
    for state, value in (("complete", 0.5), ("pruned", 0.2), ("failed", None)):
        found.tell(ended(asked_by(found), value, state))
    with sqlite3.connect(home.root / "studies.db") as database:
        states = [row[0] for row in database.execute("select state from trials order by number")]
    assert states == ["COMPLETE", "PRUNED", "FAIL"]


def test_what_explains_the_variation_is_found_and_few_trials_tell_nothing() -> None:
    given = recipe(space={"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "train.epochs": [1, 2]})
    space = space_of(given, ROWS)
    trials = [
        ended(
            Asked(n, {"train.learning_rate": 1e-5 * 10 ** (2 * n / 29), "train.epochs": 1 + n % 2}, before=False),
            n / 29,
        )
        for n in range(30)
    ]
    importance = importance_of(rebuilt(trials, space, given))
    assert importance["train.learning_rate"] > 0.9
    assert importance_of(rebuilt(trials[:9], space, given)) == {}


def test_a_database_that_does_not_open_is_a_mistake_with_its_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemas.errors import EnvironmentMistake

    monkeypatch.setenv("HONE_STUDIES", "postgresql+psycopg://127.0.0.1:9/studies")
    with pytest.raises(EnvironmentMistake, match="HONE_STUDIES: the database does not open"):
        study(home)


def test_a_dimension_is_what_optuna_calls_it() -> None:
    given = recipe(space={"train.weight_decay": {"low": 0.0, "high": 0.1}})
    found = distribution_of(space_of(given, ROWS), "train.weight_decay", whole=False)
    assert found == optuna.distributions.FloatDistribution(0.0, 0.1)
