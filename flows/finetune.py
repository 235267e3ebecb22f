"""The pipeline: from rows to a registered model."""

from __future__ import annotations

from prefect import flow

from flows.pipeline import pipeline_run, summarize
from flows.steps import run_until
from schemas.recipe import Recipe
from schemas.records import Summary
from schemas.stages import Stage


# Async although it awaits nothing: at the end of a synchronous flow Prefect joins a heartbeat thread that sleeps for a
# second. The heartbeat itself runs in a thread either way.
@flow(name="finetune", validate_parameters=True, persist_result=False)
async def finetune(recipe: Recipe, refresh: Stage | None = None) -> Summary:
    """Fine-tune, judge and register one model.

    Args:
        recipe: The job.
        refresh: Compute this stage and all after it again, whatever the store holds.
    """
    with pipeline_run(recipe, refresh) as context:
        return summarize(context, run_until(context, "register"))
