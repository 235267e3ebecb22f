"""The comparison of base models and methods: each learns from the same rows under one budget, and validation decides.

Every model is kept in the store: a comparison that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from prefect import flow

from flows.evaluate import todays_rows
from flows.finetune import finetune
from flows.limits import gpu_slot
from flows.nested import nested
from flows.pipeline import PipelineContext, pipeline
from flows.report import report_candidates, report_found
from schemas.comparison import Candidate, Candidates, Comparison
from schemas.errors import Mistake, Problem
from schemas.recipe import Recipe
from schemas.records import Artifact, Plan
from tasks.comparing import Entry, about_training, comparison, speed, trivial
from tasks.context import Context, Observer
from tasks.course import course, examples_in, prolonged
from tasks.curve import validate
from tasks.gate import Rows
from tasks.recipe_yaml import written
from tasks.space import METHOD, value_of, with_values
from tasks.subset import subset
from tasks.tokenize import tokenize
from tasks.train import plan_artifact, rehearsal, train

ADAPTERS = ("lora", "rslora", "dora", "qlora", "ia3")
EVERYTHING_OWN = Candidates()
"""The recipe's own base model and method, on all rows."""
FEWEST_ROWS_SHARE = 0.01
"""Of the training rows: a shorter time is not kept to, as nothing would be learnt."""


@flow(name="compare", validate_parameters=True, persist_result=False)
async def compare(recipe: Recipe, candidates: Candidates = EVERYTHING_OWN, then_run: bool = False) -> Comparison:
    """Compare base models and methods on the recipe's rows, and recommend one.

    Args:
        recipe: The job.
        candidates: What is compared with what, and what it may cost.
        then_run: Run the whole pipeline with the one that is recommended: train, judge on the test rows, register.
    """
    with pipeline(recipe, None) as context:
        context.record(kind="compare")
        found, chosen = compared(context, candidates)
    if not then_run:
        return found
    ran = await finetune(chosen)
    return found.model_copy(update={"ran": ran.model_dump(mode="json")})


def recipes_of(recipe: Recipe, bases: Sequence[str], methods: Sequence[str]) -> dict[str, Recipe]:
    """Name → recipe of every base model with every method.

    Raises:
        RecipeError: A method does not go with the recipe's other fields.
    """
    own_base, own_method = recipe.model.base, recipe.train.method.kind
    found = {}
    for base in dict.fromkeys(bases or (own_base,)):
        for method in dict.fromkeys(methods or (own_method,)):
            values: dict[str, Any] = {}
            if base != own_base:
                values |= {"model.base": base, "model.revision": None}
            if method != own_method:
                values |= {"train.method": method} | _as_adapters_need(recipe, method)
            name = method if len(set(bases)) < 2 else f"{_short(base)} {method}"
            found[name if name not in found else f"{base} {method}"] = with_values(recipe, values)
    return found


def _as_adapters_need(recipe: Recipe, method: str) -> dict[str, Any]:
    """No layer decay, where the recipe has some: adapters change nothing of the lower layers that it spares."""
    return {"train.layer_decay": 1.0} if method in ADAPTERS and recipe.train.layer_decay < 1 else {}


def _short(base: str) -> str:
    """The last part of a base model's name that says something."""
    parts = PurePath(base.partition("://")[2] or base).parts
    dull = {"model", "models", "base", "snapshot"}
    return next((part for part in reversed(parts) if part not in dull), base)


def compared(context: PipelineContext, asked: Candidates) -> tuple[Comparison, Recipe]:
    """Every candidate trained and measured, and the recipe of the one to have.

    Raises:
        Mistake: None of them can be had.
    """
    recipes = recipes_of(context.recipe, asked.bases, asked.methods)
    rows = todays_rows(context)
    share = _affordable(context, recipes, rows, asked)
    lessons = subset(context, rows.tokens, share) if share < 1 else rows.tokens
    baselines = trivial(context, rows.sides, lessons)
    context.observer.say(_announced(recipes, share, asked, rows.tokens))
    entries, problems = list[Entry](), list[Problem]()
    for name, recipe in recipes.items():
        try:
            entries.append(_entry(context, recipe, Place(name, rows, share, asked.seeds)))
        except Mistake as mistake:  # another one may do all the same
            context.observer.say(f"{name} cannot be had: {mistake}")
            about = {"name": name, "base": recipe.model.base, "method": recipe.train.method.kind}
            entries.append(Entry(Candidate(**about, told=str(mistake)), ()))
            problems += mistake.problems
        report_candidates(context.recipe.name, [entry.about for entry in entries], len(recipes))
    if not any(entry.predictions for entry in entries):
        raise Mistake(problems)
    found = comparison(context, rows.tokens, baselines, entries)
    return _concluded(context, found, recipes, rows.tokens, share), recipes[found.summary["chosen"]]


def _announced(recipes: dict[str, Recipe], share: float, asked: Candidates, tokens: Artifact) -> str:
    """What the comparison will do, in a line."""
    many = f"{len(recipes)} candidates" + (f" with {asked.seeds} seeds each" if asked.seeds > 1 else "")
    rows = f"{share:.0%} of the training rows" if share < 1 else "all training rows"
    measured = f"measured on {tokens.summary['rows']['validation']:,} validation rows, never on the test"
    return f"{many} on {rows}: {', '.join(recipes)}; {measured}"


def _affordable(context: PipelineContext, recipes: dict[str, Recipe], rows: Rows, asked: Candidates) -> float:
    """Share of the training rows that all candidates can learn from in the time there is, by a rehearsal of each."""
    if asked.minutes is None:
        return asked.share
    seconds = 0.0
    for name, recipe in recipes.items():
        context.observer.say(f"rehearsing {name}")
        with nested(context, recipe, name=f"{name}, rehearsal", kind="rehearsal") as (inner, _):
            inner.observer = Observer()  # its steps are not the candidate's
            with suppress(Mistake):  # told when it is its turn
                tokens = tokenize(inner, rows.cleaned, rows.sides)
                plan = Plan.model_validate(plan_artifact(inner, tokens).summary)
                seconds += asked.seeds * rehearsal(inner, tokens, plan)["train_seconds"]
    affordable = min(asked.share, asked.minutes * 60 / max(seconds, 1.0))
    return max(FEWEST_ROWS_SHARE, round(affordable, 3))


@dataclass(frozen=True)
class Place:
    """Where a candidate stands: its name, and what all candidates share."""

    name: str
    rows: Rows
    share: float
    seeds: int


def _entry(context: PipelineContext, recipe: Recipe, place: Place) -> Entry:
    """A candidate, trained and measured."""
    models, predictions, rows = list[Artifact](), list[Artifact](), place.rows
    for seed in range(recipe.train.seed, recipe.train.seed + place.seeds):
        one = _seeded(recipe, seed)
        name = f"{place.name}, seed {seed}" if place.seeds > 1 else place.name
        context.observer.say(name)
        with nested(context, one, name=name, kind="candidate") as (inner, run):
            tokens = tokenize(inner, rows.cleaned, rows.sides)
            models.append(_model(inner, tokens, place.share))
            predictions.append(validate(inner, tokens, models[-1]))
            pace = speed(inner, rows.sides, models[-1])
            measured = {n: pace.summary[n] for n in ("latency_ms_p50", "rows_per_second", "size_mb")}
            value = predictions[-1].summary["value"]
            run.log_metrics([(0, {f"validation/{recipe.metric}": value, **measured})])
    about = {"name": place.name, "base": recipe.model.base, "method": recipe.train.method.kind}
    return Entry(Candidate(**about, **about_training(models, pace)), tuple(predictions))


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def _model(inner: Context, tokens: Artifact, share: float) -> Artifact:
    """The candidate's model, of a share of the rows, which are learnt in as many steps as few rows need."""
    if share < 1:
        rows = examples_in(tokens)
        section = prolonged(inner.recipe.train, max(1, round(share * rows)), course(inner.recipe.train, rows).steps)
        inner.recipe = inner.recipe.model_copy(update={"train": section})
        tokens = subset(inner, tokens, share)
    with gpu_slot():
        return train(inner, tokens)


def _briefly(recipe: Recipe, field: str) -> Any:
    """What a recipe says of a field; a method that is as it comes by its name alone."""
    value, method = value_of(recipe, field), recipe.train.method
    return method.kind if field == METHOD and method == type(method)() else value


def _concluded(
    context: PipelineContext, found: Artifact, recipes: dict[str, Recipe], tokens: Artifact, share: float
) -> Comparison:  # fmt: skip
    """Record what the comparison comes to in MLflow and Prefect."""
    assert context.run is not None
    recipe, chosen = context.recipe, recipes[found.summary["chosen"]]
    fields = ("model.base", "model.revision", "train.method", "train.learning_rate", "train.layer_decay")
    both = {field: (_briefly(recipe, field), _briefly(chosen, field)) for field in fields}
    changes = {field: pair for field, pair in both.items() if pair[0] != pair[1]}
    head = f"Chosen by `hone compare`, {datetime.now(UTC):%Y-%m-%d}: {found.summary['told']}."
    result = Comparison(
        recipe=recipe.name,
        flow_run_id=context.flow_run_id,
        mlflow_run_id=context.run_id,
        mlflow_url=context.run.url,
        metric=recipe.metric,
        validation_rows=tokens.summary["rows"]["validation"],
        share=share,
        changes=changes,
        recipe_yaml=written(chosen, changes, head),
        seconds=time.monotonic() - context.began,
        **found.summary,
    )
    folder = context.path(found)
    context.run.log_artifact(folder, "compare")
    context.run.log_text(result.recipe_yaml, "compare/recipe.yaml")
    context.run.set_tags({"hone.compare": result.chosen, "mlflow.note.content": result.told})
    report_found(result, "compare", folder, context.run)
    return result
