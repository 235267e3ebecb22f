"""What a registered version was made from: the recipe, the plan and the measures that its MLflow run recorded."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from schemas.errors import Mistake, Problem
from schemas.recipe import Recipe
from tasks.home import Home
from tasks.outbox import patiently
from tasks.registry import Registered
from tasks.tracking import client

if TYPE_CHECKING:
    from mlflow.entities import RunData

RECIPE = "recipe.json"
"""Artifact of every run; `tasks.tracking.Run.start` writes it."""
TEST = "test/"
"""Prefix of the metrics on the test rows."""
PLAN = "plan."
"""Prefix of the params that tell the plan of the training."""


def recorded_recipe(home: Home, version: Registered) -> Recipe:
    """The recipe that a version was made by, overrides included.

    Raises:
        Mistake: hone did not register it, its run is gone, or the recipe is of a hone that had other fields.
        Fault: MLflow is away.
    """
    remedy = "name the recipe file, brought up to date"
    return as_recipe(recorded_values(home, version), _told(version), remedy=remedy)


def recorded_values(home: Home, version: Registered) -> dict[str, Any]:
    """The recipe as the hone of then wrote it down, which the present one may not understand.

    Raises:
        Mistake: hone did not register the version, or its run is gone.
        Fault: MLflow is away.
    """
    from mlflow.exceptions import MlflowException

    mlflow = client(home)

    def read() -> str | None:
        if not version.run_id or RECIPE not in {file.path for file in mlflow.list_artifacts(version.run_id)}:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return Path(mlflow.download_artifacts(version.run_id, RECIPE, scratch)).read_text(encoding="utf-8")

    try:
        text = patiently(read, home)
    except MlflowException:  # there is no such run
        text = None
    if text is None:
        rule = f"its MLflow run {version.run_id or '(none)'} has no {RECIPE}"
        remedy = "name a version that hone registered, or a recipe file"
        raise Mistake(Problem("model", _told(version), rule, remedy))
    found: dict[str, Any] = json.loads(text)
    return found


def as_recipe(values: dict[str, Any], told: str, *, remedy: str) -> Recipe:
    """A recipe out of what was written down.

    Args:
        values: See `recorded_values`.
        told: What the version is called.
        remedy: What to do where they are of another hone.

    Raises:
        Mistake: This hone has other fields.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        rule = f"its recipe is of another hone: {where or 'recipe'}: {first['msg']}"
        raise Mistake(Problem("model", told, rule, remedy)) from error


def recorded_metrics(home: Home, version: Registered) -> dict[str, float]:
    """The test metrics that the version's run logged: name → value."""
    metrics: dict[str, float] = _run_data(home, version).metrics
    return {name.removeprefix(TEST): value for name, value in metrics.items() if name.startswith(TEST)}


def recorded_plan(home: Home, version: Registered) -> dict[str, str]:
    """The plan by which the version was trained, as its run logged it: field → value in words."""
    params: dict[str, str] = _run_data(home, version).params
    return {name.removeprefix(PLAN): value for name, value in params.items() if name.startswith(PLAN)}


def _run_data(home: Home, version: Registered) -> RunData:
    mlflow = client(home)
    return patiently(lambda: mlflow.get_run(version.run_id).data, home)


def _told(version: Registered) -> str:
    return f"{version.name} version {version.version}"
