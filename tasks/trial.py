"""One trial of a search: a recipe that learns from a part of the rows, looked at on validation while it learns.

What is left of it is what it was worth; no model is kept. A trial that is worse than others were at the same point is
given up. The test rows are prepared with the others and never read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import Mistake
from schemas.records import Artifact
from schemas.tune import Trial
from tasks.context import Context, Observer
from tasks.course import course, examples_in
from tasks.stage import stage_task
from tasks.stopping import GivenUp
from tasks.study import LOOKS, Asked
from tasks.subset import subset
from tasks.tokenize import tokenize
from tasks.train import learnt, try_model

Look = Callable[[int, float], bool]
"""Told how many of `LOOKS` a trial has reached and what it is worth there; says whether to give it up."""


@dataclass(frozen=True)
class Rows:
    """What all trials share.

    Attributes:
        cleaned, sides: The artifacts.
        share: Of the training rows that trials learn from.
    """

    cleaned: Artifact
    sides: Artifact
    share: float


class Watched(Observer):
    """Passes events on, and looks at a trial whenever it was measured.

    Args:
        beside: Told all that is not this trial's alone.
        metric: What is looked at.
        look: Decides.

    Attributes:
        course: Share of the training → metric.
        tokens: Learnt from so far, as far as events tell.
    """

    def __init__(self, beside: Observer, metric: str, look: Look) -> None:
        self.course: dict[float, float] = {}
        self.steps = 0
        self.tokens = 0
        self._beside, self._name, self._look = beside, f"validation/{metric}", look

    def event(self, event: dict[str, Any]) -> None:
        """Training got on.

        Raises:
            GivenUp: It is not worth going on.
        """
        self.steps = event.get("steps", self.steps)
        self.tokens = event.get("tokens", self.tokens)
        self._beside.event(event)
        values = event.get("values", {})
        if self._name in values:
            share = event["step"] / self.steps
            self.course[share] = values[self._name]
            if self._look(max(1, min(LOOKS, round(LOOKS * share))), values[self._name]):
                raise GivenUp


@stage_task
def trial(context: Context, asked: Asked, rows: Rows, look: Look) -> Trial:
    """Try a recipe on a part of the rows.

    Args:
        context: Its recipe is the one that is tried.
        asked: Number and values.
        rows: What all trials share.
        look: Decides while it learns.
    """
    watched = Watched(context.observer, context.recipe.learns_by, look)
    inner = Context(
        context.recipe, context.home, run_id=context.run_id, flow_run_id=context.flow_run_id, observer=watched
    )
    try:
        model = _tried(inner, rows)
    except GivenUp:
        return _ended(asked, watched, "pruned", context.run_id)
    except Mistake as mistake:
        if not asked.values:  # the recipe as it is: no other one will fare better
            raise
        return _ended(asked, watched, "failed", context.run_id, told=str(mistake))
    course = _course_of(inner, model)
    for share, value in course.items():
        if share not in watched.course:  # it was in the store, or the first part is another command's
            look(max(1, min(LOOKS, round(LOOKS * share))), value)
    return Trial(
        stage="trial",
        key=model.key,
        cached=model.cached,
        why=model.why,
        seconds=0.0,
        run_id=context.run_id,
        number=asked.number,
        state="complete",
        values=dict(asked.values),
        value=model.summary["validation"][context.recipe.learns_by],
        reached=1.0,
        course=course,
        steps=model.summary["steps"],
        tokens=model.summary["tokens"],
        learning_seconds=model.summary["seconds"] - model.summary["evaluation_seconds"],
        evaluation_seconds=model.summary["evaluation_seconds"],
    )


def _tried(context: Context, rows: Rows) -> Artifact:
    tokens = tokenize(context, rows.cleaned, rows.sides)
    examples = examples_in(tokens)
    lessons = subset(context, tokens, rows.share) if rows.share < 1 else tokens
    steps = course(context.recipe.train, max(1, round(rows.share * examples))).steps
    looks = context.recipe.train.model_copy(update={"eval_steps": max(1, -(-steps // LOOKS))})
    context.recipe = context.recipe.model_copy(update={"train": looks})
    return learnt(context, lessons, "trial", try_model)


def _ended(asked: Asked, watched: Watched, state: Any, run_id: str, told: str = "") -> Trial:
    """A trial that was not brought to an end."""
    return Trial(
        stage="trial",
        key="",
        cached=False,
        why="",
        seconds=0.0,
        run_id=run_id,
        number=asked.number,
        state=state,
        values=dict(asked.values),
        value=max(watched.course.values(), default=None),
        reached=max(watched.course, default=0.0),
        course=watched.course,
        steps=watched.steps,
        tokens=watched.tokens,
        told=told,
    )


def _course_of(context: Context, model: Artifact) -> dict[float, float]:
    """Share of the training → the metric on validation then."""
    history: list[Mapping[str, Any]] = json.loads((context.path(model) / "history.json").read_text())
    name = f"validation/{context.recipe.learns_by}"
    return {line["step"] / model.summary["plan"]["steps"]: line[name] for line in history if name in line}
