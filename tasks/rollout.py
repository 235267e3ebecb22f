"""Roll-out: a version goes from one environment to the next, as a copy with all that is known of it.

An environment is a registered model of its own, `<model>-<environment>`, fed from the one before it, the first from the
model itself. A copy has the files, the run, the description and the lineage of its original, and is made once. Does not
cover the gate (`tasks.gate`), nor who serves (`tasks.registry`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from schemas.errors import Mistake, Problem
from schemas.recipe import Environment, Gate, Recipe
from schemas.records import Artifact, Decision
from tasks.context import Context
from tasks.home import Home
from tasks.outbox import patiently
from tasks.recorded import recorded_recipe
from tasks.register import start_verifier
from tasks.registry import (
    CHAMPION,
    CHAMPION_BEFORE,
    ENVIRONMENT_OF,
    PROMOTED,
    ROLLED_BACK,
    WAS_CHAMPION,
    Registered,
    champion,
    latest,
    version_of,
    version_with,
    wanted,
)
from tasks.tracking import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

COPIED_FROM = "hone.copied_from"
"""Tag of a copy: the version it was made from, as MLflow's URI."""
OF_ONE_PLACE = frozenset({"hone.gate", CHAMPION_BEFORE, PROMOTED, ROLLED_BACK, WAS_CHAMPION, COPIED_FROM})
"""Tags that tell of a version where it is, and not of the model: they stay behind."""


@dataclass(frozen=True)
class Step:
    """The last step of a version into an environment.

    Attributes:
        environment: Where it goes.
        model: Registered model that the environments belong to.
        source: Registered model it comes from: the environment's before, or `model`.
        target: Registered model of the environment.
    """

    environment: Environment
    model: str
    source: str
    target: str


def gate_of(recipe: Recipe, name: str) -> Gate:
    """The gate before a registered model of the recipe: an environment's, or the recipe's own."""
    gates = {_name(recipe.model_name, environment): environment.gate for environment in recipe.registry.environments}
    return gates.get(name, recipe.gate)


def find_way(
    home: Home, model: str, version: str | None, to: str, recipe: Recipe | None
) -> tuple[Step, Registered, Recipe]:
    """Which step is meant, which version takes it, and by which recipe it is judged.

    Args:
        home: Whose MLflow it is.
        model: Registered model that the environments belong to.
        version: Number or alias in the environment before; default: who serves there.
        to: Name of the environment.
        recipe: Says which environments there are, and their gates; default: the recipe of the newest version of the
            model says which there are, and that of the version which takes the step what is asked of it.

    Raises:
        Mistake: There is no such model, version or environment, or nobody serves in the environment before.
        Fault: MLflow is away.
    """
    if recipe is not None:
        step = step_to(recipe, model, to)
        return step, _traveller(home, step, version), recipe
    newest = latest(home, model)
    known = recorded_recipe(home, newest)
    if COPIED_FROM in newest.tags:
        rule = f"is an environment of {known.model_name}"
        raise Mistake(Problem("model", model, rule, f"name the model: hone promote {known.model_name} --to {to}"))
    step = step_to(known, model, to)
    traveller = _traveller(home, step, version)
    own = recorded_recipe(home, traveller)
    return replace(step, environment=step_to(own, model, to).environment), traveller, own


def step_to(recipe: Recipe, model: str, to: str) -> Step:
    """The step into an environment of a recipe.

    Raises:
        Mistake: It has no such environment.
    """
    environments = recipe.registry.environments
    names = [environment.name for environment in environments]
    if to not in names:
        raise Mistake(_no_environment(recipe, to, names))
    place = names.index(to)
    source = _name(model, environments[place - 1]) if place else model
    return Step(environments[place], model, source, _name(model, environments[place]))


def copy_in(home: Home, step: Step, version: Registered) -> Registered | None:
    """The copy of a version in the environment; none where there is none yet.

    Raises:
        Mistake: The environment's registered model belongs to something else.
        Fault: MLflow is away.
    """
    mlflow = client(home)
    for found in patiently(lambda: mlflow.search_registered_models(f"name = '{step.target}'"), home):
        recipe = found.tags.get("hone.recipe")
        if recipe and found.tags.get(ENVIRONMENT_OF) != step.model:
            rule = f"{step.target} is already the model of something else: of recipe {recipe}"
            raise Mistake(Problem("--to", step.environment.name, rule, "name the environment otherwise"))
    return patiently(lambda: version_with(mlflow, step.target, version.identity), home)


def refuse_rolled_back(*versions: Registered | None) -> None:
    """Let nothing go on by itself that was taken back, be it where it comes from or where it goes.

    Raises:
        Mistake: One was.
    """
    for version in versions:
        if version is not None and version.rolled_back:
            rule = f"version {version.version} of {version.name} was rolled back: {version.tags[ROLLED_BACK]}"
            raise Mistake(
                Problem("version", version.version, rule, "to let it serve again, add --override and --reason")
            )


def copied(home: Home, step: Step, version: Registered, decision: Decision) -> Registered:
    """The version's copy in the environment: the one it has, or a new one. It points nobody to itself.

    Args:
        home: Whose MLflow it is.
        step: Where the version goes.
        version: The original.
        decision: Of the environment's gate; kept with the copy.

    Raises:
        Fault: MLflow is away.
    """
    from filelock import FileLock

    mlflow = client(home)
    with FileLock(home.locks / f"register-{step.target}.lock"):
        # Looked for at every try: a copy may be there whose answer got lost.
        copy = patiently(
            lambda: version_with(mlflow, step.target, version.identity) or _make(mlflow, step, version, decision),
            home,
        )
        if copy.gate != decision:
            patiently(lambda: mlflow.set_model_version_tag(copy.name, copy.version, "hone.gate", decision), home)
    return patiently(lambda: version_of(mlflow, copy.name, copy.version), home)


def prove(context: Context, copy: Registered, sides: Artifact) -> None:
    """Let a fresh process load the copy by its own name, and answer a row.

    Args:
        context: The run's.
        copy: The version.
        sides: The test rows are among them.

    Raises:
        Fault: It does not answer.
    """
    import polars as pl

    test, columns = context.path(sides) / "test.parquet", list(context.family.asked_columns)
    row = pl.read_parquet(test, columns=columns, n_rows=1, glob=False).to_dicts()
    uri = f"models:/{copy.name}/{copy.version}"
    start_verifier(context.family).predict(context.home.mlflow_uri, uri, row)


def _name(model: str, environment: Environment) -> str:
    return f"{model}-{environment.name}"


def _no_environment(recipe: Recipe, to: str, names: list[str]) -> Problem:
    if not names:
        remedy = f"add registry.environments: [{{name: {to}}}] to it, and name its file"
        return Problem("--to", to, f"recipe {recipe.name} has no environments", remedy)
    near = difflib.get_close_matches(to, names, n=1)
    remedy = f"did you mean {near[0]}?" if near else "name one of them"
    return Problem("--to", to, f"the environments of recipe {recipe.name} are {', '.join(names)}", remedy)


def _traveller(home: Home, step: Step, version: str | None) -> Registered:
    """The version that takes the step.

    Raises:
        Mistake: There is none, or hone did not register it.
    """
    asked = version or CHAMPION
    found = champion(home, step.source) if asked == CHAMPION else wanted(home, step.source, asked)
    if found is None:
        before = step.source.removeprefix(step.model).removeprefix("-")
        remedy = f"promote one first: hone promote {step.model}" + (f" --to {before}" if before else "")
        raise Mistake(Problem("version", version, f"no version of {step.source} serves", remedy))
    if found.identity is None:
        rule = f"hone did not register version {found.version} of {found.name}"
        raise Mistake(Problem("version", found.version, rule, "name a version that it did"))
    return found


def _make(mlflow: MlflowClient, step: Step, version: Registered, decision: Decision) -> Registered:
    """Make the copy, of the same files: nothing is moved."""
    from mlflow.exceptions import MlflowException

    try:
        belongs = {"hone.recipe": version.tags.get("hone.recipe", ""), ENVIRONMENT_OF: step.model}
        mlflow.create_registered_model(step.target, tags=belongs)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    lineage = {k: v for k, v in version.tags.items() if k.startswith("hone.") and k not in OF_ONE_PLACE}
    here = {"hone.gate": decision, COPIED_FROM: f"models:/{version.name}/{version.version}"}
    made = mlflow.create_model_version(
        step.target,
        mlflow.get_model_version_download_uri(version.name, version.version),
        version.run_id,
        tags=lineage | here,
        description=mlflow.get_model_version(version.name, version.version).description,
        model_id=version.model_id or None,
    )
    return version_of(mlflow, step.target, str(made.version))
