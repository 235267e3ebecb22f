from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import RecipeError
from schemas.loading import validate_recipe
from schemas.recipe import LEARNING_RATES, Recipe
from schemas.tune import Range
from tasks import space

ROWS = 20_000


def recipe(**sections: Any) -> Recipe:
    plain: dict[str, Any] = {
        "name": "tickets",
        "task": {"family": "text-classification"},
        "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
        "model": {"base": "/base"},
    }
    return validate_recipe(plain | sections)


def test_the_default_space_lies_around_what_the_recipe_says() -> None:
    found = space.space_of(recipe(train={"learning_rate": 1e-4, "global_batch_size": 32}), ROWS)
    assert found["train.learning_rate"] == Range(low=2.5e-5, high=4e-4, log=True)
    assert found["train.global_batch_size"] == (16, 32, 64)
    assert found["train.epochs"] == (1.0, 2.0, 3.0, 4.0)
    assert "train.class_weights" in found
    assert "train.layer_decay" in found


@pytest.mark.parametrize(
    ("method", "field", "absent"),
    [
        ("lora", "train.method.r", "train.layer_decay"),
        ("dora", "train.method.dropout", "train.layer_decay"),
        ("freeze", "train.method.layers", "train.method.r"),
        ("full", "train.layer_decay", "train.method.r"),
        ("bitfit", "train.learning_rate", "train.method.r"),
        ("ia3", "train.learning_rate", "train.layer_decay"),
    ],
)
def test_each_method_has_what_is_its_own(method: str, field: str, absent: str) -> None:
    found = space.space_of(recipe(train={"method": method}), ROWS)
    assert field in found
    assert absent not in found


def test_models_that_write_have_no_class_weights_and_no_dropout() -> None:
    task = {"task": {"family": "causal-lm"}, "clean": {"collapse_whitespace": False}}
    found = space.space_of(recipe(**task, train={"method": "lora"}), ROWS)
    assert not {"train.class_weights", "train.label_smoothing", "model.dropout"} & set(found)


def test_few_rows_are_passed_as_often_as_they_are_by_default() -> None:
    few = recipe(train={"global_batch_size": 10})  # 100 steps of 10 rows: 5 passes over 200
    assert space.resolved(few, "train.epochs", 200) == 5.0
    epochs = space.space_of(few, 200)["train.epochs"]
    assert isinstance(epochs, tuple)
    assert 5.0 in epochs


@pytest.mark.parametrize(
    ("rows", "share"), [(100_000, 0.25), (8_000, 0.4), (1_000, 1.0)]
)  # 100 steps of 64 rows in two passes are 3,200 rows
def test_trials_learn_from_enough_rows_for_a_hundred_steps(rows: int, share: float) -> None:
    assert space.share_of(recipe(), rows) == pytest.approx(share)
    assert space.share_of(recipe(tune={"share": 0.1}), rows) == 0.1


def test_other_values_make_another_recipe() -> None:
    given = recipe(train={"method": "lora", "learning_rate": 1e-3})
    found = space.with_values(given, {"train.method.r": 4, "train.schedule": "cosine", "model.dropout": 0.1})
    assert found.train.method.model_dump()["r"] == 4
    assert (found.train.schedule, found.model.dropout) == ("cosine", 0.1)
    assert found.train.learning_rate == 1e-3
    assert given.train.schedule == "linear"


def test_another_method_has_its_own_learning_rate_unless_one_is_named() -> None:
    given = recipe(train={"learning_rate": 2e-5})
    assert space.with_values(given, {"train.method": "lora"}).train.learning_rate == LEARNING_RATES["lora"]
    both = {"train.method.r": 4, "train.learning_rate": 7e-4, "train.method": {"kind": "lora"}}
    found = space.with_values(given, both)
    assert (found.train.learning_rate, found.train.method.model_dump()["r"]) == (7e-4, 4)


def test_a_rank_is_searched_of_the_methods_that_have_one() -> None:
    tried = {"train.method": ["full", "lora"], "train.method.r": [4, 8]}
    found = space.space_of(recipe(tune={"space": tried}), ROWS)
    assert set(found) == set(tried)


@pytest.mark.parametrize(
    ("tried", "told"),
    [
        ({"train.rank": [1, 2]}, "tune.space.train.rank: is not a field of the recipe"),
        ({"train.method.r": [4, 8]}, "tune.space.train.method.r: is not a field of the recipe"),
        ({"train.schedule": ["linear", "spiral"]}, "tune.space.train.schedule = 'spiral': must be one of linear"),
        ({"train.learning_rate": {"low": 0.1, "high": 3.0}}, "tune.space.train.learning_rate = 3.0: input should be"),
        ({"train.schedule": {"low": 1, "high": 3}}, "is no number; list its values instead"),
        ({"train.method": ["full", "lore"]}, "tune.space.train.method = 'lore': must be one of full, lora"),
    ],
)
def test_what_no_recipe_could_say_is_refused_before_anything_runs(tried: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        space.space_of(recipe(tune={"space": tried}), ROWS)
    assert any(told in str(problem) for problem in caught.value.problems), str(caught.value)


def test_whole_numbers_are_told_by_the_field() -> None:
    given = recipe(train={"method": "lora"})
    assert space.is_whole(given, "train.method.r")
    assert space.is_whole(given, "train.global_batch_size")
    assert not space.is_whole(given, "train.epochs")
    assert not space.is_whole(given, "train.weight_decay")
