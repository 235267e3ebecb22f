from __future__ import annotations

import json
import time

import pytest
from mlflow import MlflowClient

from schemas.errors import Mistake
from schemas.recipe import Recipe
from tasks.home import Home
from tasks.recorded import as_recipe, recorded_metrics, recorded_plan, recorded_recipe, recorded_values
from tasks.registry import Registered
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)


def version(run_id: str) -> Registered:
    return Registered(name="tiny", version="3", run_id=run_id, model_id="m")


@pytest.fixture
def run(home: Home, recipe: Recipe) -> Run:
    """A run that has ended, of a recipe with an override."""
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 3e-4})})
    made = Run.start(home, changed)
    made.log_metrics([(0, {"test/accuracy": 0.75, "test/f1/good": 0.5, "loss": 9.0, "baseline/tfidf/accuracy": 0.7})])
    made.log_params({"plan.threads": 2, "plan.class_weights": None})
    made.end("FINISHED")
    return made


def test_the_recipe_comes_back_as_it_was_run(home: Home, recipe: Recipe, run: Run) -> None:
    found = recorded_recipe(home, version(run.run_id))
    assert found.train.learning_rate == 3e-4
    assert found.model_copy(update={"train": recipe.train}) == recipe


def test_only_measures_of_the_test_rows_come_back_by_their_names(home: Home, run: Run) -> None:
    assert recorded_metrics(home, version(run.run_id)) == {"accuracy": 0.75, "f1/good": 0.5}


def test_the_plan_comes_back_in_words_and_the_recipe_is_no_part_of_it(home: Home, run: Run) -> None:
    assert recorded_plan(home, version(run.run_id)) == {"threads": "2", "class_weights": "None"}


def test_what_is_measured_of_a_version_later_is_not_taken_for_what_was_recorded(
    home: Home, recipe: Recipe, run: Run
) -> None:
    later = Run.start(home, recipe, tags={"hone.kind": "evaluate"})
    later.log_metrics([(0, {"test/accuracy": 0.1})])
    later.end("FINISHED")
    assert recorded_metrics(home, version(run.run_id))["accuracy"] == 0.75


@pytest.mark.parametrize("run_id", ["", "0" * 32, "of another tool"])
def test_a_version_of_another_tool_is_a_mistake_at_once(home: Home, run_id: str) -> None:
    if run_id == "of another tool":
        mlflow = MlflowClient(home.mlflow_uri)
        run_id = mlflow.create_run("0").info.run_id
    began = time.monotonic()
    with pytest.raises(
        Mistake, match=r"tiny version 3.*its MLflow run .* has no recipe\.json; name a version that hone"
    ):
        recorded_recipe(home, version(run_id))
    assert time.monotonic() - began < 5


def test_a_recipe_of_another_hone_names_the_field_and_is_still_to_be_had_as_it_was_written(
    home: Home, recipe: Recipe
) -> None:
    mlflow = MlflowClient(home.mlflow_uri)
    run_id = mlflow.create_run("0").info.run_id
    written = recipe.model_dump(mode="json")
    written["train"]["warp_speed"] = 9
    mlflow.log_text(run_id, json.dumps(written), "recipe.json")
    with pytest.raises(Mistake, match=r"its recipe is of another hone: train\.warp_speed: .*; name the recipe file"):
        recorded_recipe(home, version(run_id))
    assert recorded_values(home, version(run_id)) == written


def test_who_reads_a_recipe_says_what_to_do_about_one_that_does_not_fit(recipe: Recipe) -> None:
    values = recipe.model_dump(mode="json")
    assert as_recipe(values, "tiny version 3", remedy="") == recipe
    del values["model"]
    with pytest.raises(Mistake, match=r"'tiny version 3': .* model: Field required; check out the commit"):
        as_recipe(values, "tiny version 3", remedy="check out the commit")
