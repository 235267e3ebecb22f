from __future__ import annotations

from typing import Any

from flows.comparing import recipes_of
from schemas.loading import validate_recipe
from schemas.recipe import LEARNING_RATES, Recipe


def recipe(**sections: Any) -> Recipe:
    plain: dict[str, Any] = {
        "name": "tickets",
        "task": {"family": "text-classification"},
        "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
        "model": {"base": "package://small/model", "revision": "abc"},
        "train": {"learning_rate": 2e-5},
    }
    return validate_recipe(plain | sections)


def test_every_base_model_with_every_method_has_a_name_of_its_own() -> None:
    found = recipes_of(recipe(), ["package://small/model", "/models/large"], ["full", "lora", "full"])
    assert list(found) == ["small full", "small lora", "large full", "large lora"]
    assert found["large lora"].model.base == "/models/large"
    assert found["large lora"].model.revision is None, "it was another model's"
    assert found["small full"] == recipe()


def test_nothing_asked_is_the_recipes_own() -> None:
    assert recipes_of(recipe(), [], []) == {"full": recipe()}


def test_another_method_has_its_usual_learning_rate_and_the_own_one_what_the_recipe_says() -> None:
    found = recipes_of(recipe(), [], ["full", "bitfit"])
    assert found["full"].train.learning_rate == 2e-5
    assert found["bitfit"].train.learning_rate == LEARNING_RATES["bitfit"]


def test_a_method_that_is_the_recipes_own_keeps_its_settings() -> None:
    given = recipe(train={"method": {"kind": "lora", "r": 4}})
    found = recipes_of(given, [], ["lora", "dora"])
    assert found["lora"].train.method == given.train.method
    assert found["dora"].train.method.model_dump()["r"] == 16


def test_layer_decay_is_left_out_where_no_layer_changes() -> None:
    given = recipe(train={"layer_decay": 0.9, "learning_rate": 1e-4})
    found = recipes_of(given, [], ["full", "lora", "freeze"])
    assert [one.train.layer_decay for one in found.values()] == [0.9, 1.0, 0.9]


def test_two_folders_of_one_name_are_told_apart() -> None:
    found = recipes_of(recipe(), ["/a/encoder", "/b/encoder"], [])
    assert list(found) == ["encoder full", "/b/encoder full"]
