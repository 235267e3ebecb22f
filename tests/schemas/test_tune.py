from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from schemas.tune import UNTUNABLE, why_untunable

PLAIN: dict[str, Any] = {
    "name": "tickets",
    "task": {"family": "text-classification"},
    "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
    "model": {"base": "/base"},
}


def problems(space: Any, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(PLAIN | {"tune": {"space": space, **more}})
    return [str(problem) for problem in caught.value.problems]


def test_a_space_is_ranges_and_lists() -> None:
    space = {
        "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "train.schedule": ["linear", "cosine"],
        "train.method": ["full", {"kind": "lora", "r": 8}],
    }
    found = validate_recipe(PLAIN | {"tune": {"space": space}}).tune.space
    assert found["train.schedule"] == ("linear", "cosine")
    assert found["train.method"] == ("full", {"kind": "lora", "r": 8})
    assert not isinstance(found["train.learning_rate"], tuple)


@pytest.mark.parametrize("field", ["split.test", "clean.min_chars", "gate.beat_baseline", "train.seed", "task.family"])
def test_what_would_make_trials_incomparable_is_refused_with_the_reason(field: str) -> None:
    (problem,) = problems({field: [1, 2]})
    assert f"{field} may not be tuned: {why_untunable(field)}" in problem


def test_every_field_that_is_refused_is_one_of_the_recipe() -> None:
    recipe = validate_recipe(PLAIN)
    for field in UNTUNABLE:
        here: Any = recipe
        for name in field.split("."):
            here = getattr(here, name)


@pytest.mark.parametrize(
    ("dimension", "rule"),
    [
        ({"low": 2, "high": 1}, "low (2) must be below high (1)"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low is 0: with log it must be above 0"),
        ([1], "at least 2 items"),
    ],
)
def test_a_dimension_that_means_nothing_is_refused(dimension: Any, rule: str) -> None:
    assert any(rule in problem for problem in problems({"train.weight_decay": dimension}))


def test_one_seed_tells_no_luck_from_skill() -> None:
    assert any("tune.seeds = 1" in problem for problem in problems({}, seeds=1))
