"""Retraining: the pipeline again, where its rows, its recipe or the champion are not those of an attempt before."""

from __future__ import annotations

from prefect import State, flow

from flows.pipeline import pipeline, skipped, summarize
from flows.steps import steps
from schemas.recipe import Recipe
from schemas.records import Artifact, Skipped, Summary
from schemas.stages import Stage
from tasks.attempts import judged_already


@flow(name="retrain", validate_parameters=True, persist_result=False)
async def retrain(recipe: Recipe, refresh: Stage | None = None) -> Summary | State[Skipped]:
    """Collect, and where something has changed since the last attempt: fine-tune, judge and register one model.

    Args:
        recipe: The job; its section `retrain` says whether the base model or the champion learns.
        refresh: Compute this stage and all after it again, whatever the store holds and whatever was judged.
    """
    with pipeline(recipe, refresh) as context:
        todo = steps(context)
        raw = next(todo)
        assert isinstance(raw, Artifact)
        before = None if refresh else judged_already(context.home, recipe, raw)
        if before is not None:
            return skipped(context, raw, before)
        context.learns_on = recipe.retrain.start_from == "champion"
        context.record()
        return summarize(context, [raw, *todo])
