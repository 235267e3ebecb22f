"""Which registered model a command means: by its name, or by the recipe that makes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.engine import configure
from schemas.errors import EnvironmentMistake, Problem, RecipeError
from schemas.loading import load_recipe
from tasks.home import Home

if TYPE_CHECKING:
    from schemas.recipe import Recipe
    from tasks.registry import Registered

RECIPES = (".yaml", ".yml")
"""How the name of a recipe file ends."""


def open_model(model: str, overrides: Sequence[str] = ()) -> tuple[Home, str, Recipe | None]:
    """The home to use, made ready, the registered model, and the recipe where a file of one was named.

    Args:
        model: A registered model's name, or a recipe file.
        overrides: Of the recipe.

    Raises:
        Mistake: Nothing was ever run here, so that no model can be known.
        RecipeError: The recipe cannot be read, or there are overrides without one.
    """
    start, name, recipe = Path.cwd(), model, None
    if model.endswith(RECIPES):
        recipe = load_recipe(Path(model), overrides)
        start, name = Path(model), recipe.model_name
    elif overrides:
        raise RecipeError(Problem("--set", overrides[0], "needs a recipe file", f"name the recipe instead of {model}"))
    root = Home.locate(start)
    if not root.exists() and "MLFLOW_TRACKING_URI" not in os.environ:
        rule = f"there is no home at {root}, so nothing is registered"
        raise EnvironmentMistake(Problem("model", model, rule, "go to the project, name its recipe, or set HONE_HOME"))
    home = Home.open(start)
    configure(home)
    from tasks.tracking import prepare

    prepare(home)
    return home, name, recipe


def find(home: Home, name: str, version: str) -> Registered:
    """A version of a model, by its number or an alias.

    Raises:
        Mistake: There is no such model or version.
    """
    from tasks.registry import wanted

    return wanted(home, name, version)
