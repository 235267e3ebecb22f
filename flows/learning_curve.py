"""The learning curve: the recipe's metric against the number of training rows, and what more of them would add.

Data are prepared once for all points. Each model is trained as a run trains it, only on fewer rows, and kept in the
store: a curve that was killed goes on where it was, and the point of all rows is the very model of `hone run`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow

from flows.evaluate import todays_rows
from flows.limits import gpu_slot
from flows.nested import nested
from flows.pipeline import PipelineContext, pipeline
from flows.report import report_curve
from schemas.curve import SHARES, Curve, PartOfRows, Seeds
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks.course import course, examples_in, prolonged
from tasks.curve import Trained, validate
from tasks.curve import curve as drawn
from tasks.subset import subset
from tasks.train import train


@flow(name="curve", validate_parameters=True, persist_result=False)
async def curve(recipe: Recipe, shares: tuple[PartOfRows, ...] = SHARES, seeds: Seeds = 1) -> Curve:
    """Measure models that learnt growing shares of the training rows, on validation, and foretell what more would add.

    Args:
        recipe: The job.
        shares: Of the training rows; four or more foretell.
        seeds: Trainings of each share, each with a seed and rows of its own.
    """
    with pipeline(recipe, None) as context:
        context.record(kind="curve")
        tokens = todays_rows(context).tokens
        return learn(context, tokens, points_of(recipe, tokens, shares, seeds))


@dataclass(frozen=True)
class Point:
    """A model to be trained.

    Attributes:
        share: Of the training rows.
        recipe: The curve's, with the point's seed and course.
        examples: Rows of tokens it learns, before they are drawn.
        steps: Optimiser steps it will take.
    """

    share: float
    recipe: Recipe
    examples: int
    steps: int

    @property
    def name(self) -> str:
        """For people."""
        return f"share {self.share:g}, seed {self.recipe.train.seed}"


def points_of(recipe: Recipe, tokens: Artifact, shares: Sequence[float], seeds: int) -> list[Point]:
    """The points, the smallest of the last seed first.

    The last one is the model of a run, where all rows are asked for: what the next run compares itself with.
    """
    rows = examples_in(tokens)
    most = course(recipe.train, rows).steps
    points = []
    for seed in reversed(range(recipe.train.seed, recipe.train.seed + seeds)):
        for share in sorted(set(shares)):
            section = recipe.train.model_copy(update={"seed": seed})
            part = max(1, round(share * rows))
            if share < 1:
                section = prolonged(section, part, most)
            asked = recipe.model_copy(update={"train": section})
            points.append(Point(share, asked, part, course(section, part).steps))
    return points


def learn(context: PipelineContext, tokens: Artifact, points: Sequence[Point]) -> Curve:
    """Train and measure every point, and draw the curve through them."""
    context.observer.say(budget(points, tokens))
    trained = [_trained(context, tokens, point, points[place + 1 :]) for place, point in enumerate(points)]
    return _concluded(context, tokens, trained)


def budget(points: Sequence[Point], tokens: Artifact) -> str:
    """What the curve will cost, in a line."""
    parts = [point.examples for point in points]
    steps = sum(point.steps for point in points)
    trainings = f"{len(points)} trainings on {min(parts):,} to {max(parts):,} rows, {steps:,} optimiser steps in all"
    return f"{trainings}; measured on {tokens.summary['rows']['validation']:,} validation rows, never on the test"


def _trained(context: PipelineContext, tokens: Artifact, point: Point, left: Sequence[Point]) -> Trained:
    """Train and validate one point, in an MLflow run below the curve's."""
    context.observer.say(point.name)
    began = time.monotonic()
    share = f"{point.share:g}"
    with nested(context, point.recipe, name=point.name, kind="curve-point", share=share) as (inner, run):
        lessons = subset(inner, tokens, point.share) if point.share < 1 else tokens
        with gpu_slot():
            model = train(inner, lessons)
        predictions = validate(inner, tokens, model)
        rows = lessons.summary["rows"] if point.share < 1 else tokens.summary["rows"]["train"]
        found = Trained(point.share, rows, model, predictions)
        run.log_params({f"plan.{name}": value for name, value in model.summary["plan"].items()})
        run.log_metrics([(rows, {f"curve/{point.recipe.metric}": predictions.summary["value"], "curve/rows": rows})])
        run.set_tags({"hone.weights_sha256": model.summary["weights_sha256"]})
    if left and not model.cached:
        seconds = (time.monotonic() - began) / max(1, point.steps) * sum(other.steps for other in left)
        context.observer.say(f"{len(left)} to go, about {seconds / 60:.1f} min where none is in the store")
    return found


def _concluded(context: PipelineContext, tokens: Artifact, trained: Sequence[Trained]) -> Curve:
    """Draw the curve, and record it in MLflow and Prefect."""
    assert context.run is not None
    found = drawn(context, tokens, trained)
    result = Curve(
        recipe=context.recipe.name,
        flow_run_id=context.flow_run_id,
        mlflow_run_id=context.run_id,
        mlflow_url=context.run.url,
        metric=context.recipe.metric,
        validation_rows=tokens.summary["rows"]["validation"],
        trained=sum(not one.model.cached for one in trained),
        seconds=time.monotonic() - context.began,
        **{name: found.summary[name] for name in ("points", "forecasts", "verdict", "told")},
    )
    folder = context.path(found)
    context.run.log_metrics(_metrics(result))
    context.run.log_artifact(folder, "curve")
    context.run.set_tags({"hone.curve": result.verdict, "mlflow.note.content": result.told})
    report_curve(result, folder, context.run)
    return result


def _metrics(found: Curve) -> list[tuple[int, dict[str, Any]]]:
    """The curve as MLflow charts it: the metric over its rows in place of steps."""
    name = f"curve/{found.metric}"
    return [
        (point.rows, {name: point.value.value, f"{name}_low": point.value.low, f"{name}_high": point.value.high})
        for point in found.points
    ]
