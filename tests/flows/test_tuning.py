from __future__ import annotations

from typing import Any

import pytest

from flows.tuning import _spent, best_of
from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from schemas.tune import Trial


def trial(number: int, value: float, *, state: Any = "complete", seconds: float = 60.0, **values: Any) -> Trial:
    return Trial(
        stage="trial",
        key="k",
        cached=False,
        why="",
        seconds=seconds,
        run_id="r",
        number=number,
        state=state,
        values=values,
        value=value,
        reached=1.0,
        steps=10,
        tokens=1_000,
        learning_seconds=seconds / 2,
        evaluation_seconds=seconds / 2,
    )


AS_IT_IS = trial(0, 0.7)


def recipe(**tune: Any) -> Recipe:
    return validate_recipe(
        {
            "name": "tickets",
            "task": {"family": "text-classification"},
            "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
            "model": {"base": "/base"},
            "tune": tune,
        }
    )


def test_finalists_are_the_best_that_were_brought_to_an_end_and_no_two_alike() -> None:
    trials = [
        AS_IT_IS,
        trial(1, 0.8, epochs=1),
        trial(2, 0.9, state="pruned", epochs=2),
        trial(3, 0.85, epochs=3),
        trial(4, 0.85, epochs=3),
        trial(5, 0.75, epochs=4),
    ]
    assert [each.number for each in best_of(trials, 2)] == [3, 1]
    assert [each.number for each in best_of(trials, 9)] == [3, 1, 5]


def test_a_finalist_that_would_not_fit_is_passed_over_for_one_that_does() -> None:
    trials = [AS_IT_IS, trial(1, 0.9, seconds=900.0, epochs=1), trial(2, 0.8, epochs=2), trial(3, 0.75, epochs=3)]

    def short(several: Any) -> bool:
        return sum(each.seconds for each in several) <= 130

    assert [each.number for each in best_of(trials, 2, short)] == [2, 3]


def test_steps_take_as_much_longer_as_there_are_more_rows_and_looks_do_not() -> None:
    assert trial(1, 0.8, seconds=60.0).seconds_on_all(0.25) == 30 / 0.25 + 30


def test_trials_end_in_time_for_the_finalists() -> None:
    # Of 20 minutes the finalists take 2 * 2 * 150 s = 10 minutes, and a trial takes one.
    asked = recipe(minutes=20, finalists=1, seeds=2)
    few = [AS_IT_IS, *(trial(n, 0.8) for n in range(1, 8))]
    assert _spent(asked, few, 0.25, 1) == ""
    assert _spent(asked, [*few, trial(8, 0.8), trial(9, 0.8)], 0.25, 1) == (
        "10 minutes of trials, and about 10 for the finalists: no further trial"
    )


def test_tokens_bound_the_trials_too() -> None:
    assert _spent(recipe(tokens=1_500), [AS_IT_IS], 0.25, 1) == ""
    assert _spent(recipe(tokens=2_000), [AS_IT_IS, trial(1, 0.8)], 0.25, 1) == (
        "2,000 tokens are learnt: no further trial"
    )


def test_too_little_time_for_the_finalists_is_said_after_the_first_trial() -> None:
    with pytest.raises(RecipeError, match=r"tune\.minutes = 5\.0: the finalists alone take about 10 minutes"):
        _spent(recipe(minutes=5, finalists=1, seeds=2), [AS_IT_IS], 0.25, 1)
