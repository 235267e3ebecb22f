from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.recipe import Recipe
from tasks import start
from tasks.context import Context
from tasks.held_out import training_hashes
from tasks.home import Home
from tasks.start import starting_point
from tests.prepared import Prepared, version
from tests.tiny_classifier import tiny_model

pytest_plugins = ("tests.mlflow_home",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("saved"), seed=1) / "model"


class Champion:
    """Version 3 serves, knows the labels bad and good, and has learnt the first rows."""

    def __init__(self, context: Context, saved: Path, patch: pytest.MonkeyPatch) -> None:
        self.prepared = Prepared(context)
        self.learnt: Any = training_hashes(context.path(self.prepared.sides))[:20]
        self._patch = patch
        self.set("champion", version())
        self.set("files_of", saved)
        self._patch.setattr(start, "training_hashes_of", lambda home, registered: self.learnt)

    def set(self, what: str, given: Any) -> None:
        def act(*_: Any) -> Any:
            if isinstance(given, Exception):
                raise given
            return given

        self._patch.setattr(start, what, act)

    def begin(self) -> start.Start:
        return starting_point(self.prepared.context, self.prepared.sides)


@pytest.fixture
def serving(home: Home, recipe: Recipe, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Champion:
    return Champion(Context(recipe, home, run_id=""), saved, monkeypatch)


def test_the_champion_learns_on_where_rows_are_new_to_it(serving: Champion) -> None:
    found = serving.begin()
    assert (found.base, found.told) == ("models:/tiny/3", "from version 3, to which 40 of 60 training rows are new")
    assert found.learnt is serving.learnt


def test_with_nobody_serving_the_base_model_learns(serving: Champion) -> None:
    serving.set("champion", None)
    found = serving.begin()
    assert (found.base, found.learnt, found.told) == (
        None, None, "from the base model: no version of tiny serves yet",
    )  # fmt: skip


def test_what_has_nothing_to_learn_begins_anew(serving: Champion) -> None:
    serving.learnt = training_hashes(serving.prepared.context.path(serving.prepared.sides))
    found = serving.begin()
    assert (found.base, found.told) == (None, "from the base model: version 3 has learnt all 60 training rows already")


@pytest.mark.parametrize(
    ("what", "given", "told"),
    [
        ("labels_of", ["good", "bad"], "version 3 knows the labels good, bad"),
        ("files_of", FileNotFoundError(), "version 3 has no files any more"),
        ("training_hashes_of", None, "nobody knows which rows version 3 has learnt"),
        ("training_hashes_of", FileNotFoundError(), "nobody knows which rows version 3 has learnt"),
    ],
)
def test_a_champion_that_cannot_learn_on_is_left_alone(serving: Champion, what: str, given: Any, told: str) -> None:
    serving.set(what, given)
    assert (serving.begin().base, serving.begin().told) == (None, f"from the base model: {told}")


def test_a_champion_of_another_task_is_left_alone(serving: Champion) -> None:
    other = version()
    other.tags["hone.family"] = "regression"
    serving.set("champion", other)
    assert serving.begin().told == "from the base model: version 3 is a model for regression"


def test_a_context_that_starts_from_a_version_says_so_in_its_recipe(home: Home, recipe: Recipe) -> None:
    context = Context(recipe, home, run_id="")
    assert context.started_from is None
    context.start_from("models:/tiny/3")
    assert (context.started_from, context.recipe.model.base) == ("models:/tiny/3", "models:/tiny/3")
    assert recipe.model.base == "/models/tiny"


def test_a_model_has_learnt_what_its_beginning_had_learnt(
    serving: Champion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tasks import register

    context, sides = serving.prepared.context, serving.prepared.sides
    own, before = training_hashes(context.path(sides)), np.array([1, 2], np.uint64)
    assert register.rows_learnt(context, sides).tolist() == own.tolist()
    monkeypatch.setattr(register, "registered_base", lambda model, home: version())
    monkeypatch.setattr(register, "training_hashes_of", lambda home, registered: before)
    assert register.rows_learnt(context, sides).tolist() == sorted({1, 2, *own.tolist()})
    monkeypatch.setattr(register, "training_hashes_of", lambda home, registered: None)
    assert register.rows_learnt(context, sides).tolist() == own.tolist()
    assert "nobody knows which rows tiny version 3 has learnt" in caplog.text
