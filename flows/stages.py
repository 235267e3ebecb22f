"""Every stage as a flow of its own: it and those before it, from the store where nothing has changed."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from prefect import Flow, flow

from flows.pipeline import pipeline, stopped, summarize
from flows.steps import run_until
from schemas.recipe import Recipe
from schemas.records import Partial, Summary
from schemas.stages import STAGES, Stage

StageFlow = Flow[[Recipe, Stage | None], Coroutine[Any, Any, Summary | Partial]]

DATA: tuple[Stage, ...] = ("collect", "clean", "split", "tokenize")
"""Stages that make no model, so that MLflow has nothing to keep of them."""


def _flow_until(last: Stage) -> StageFlow:
    async def run(recipe: Recipe, refresh: Stage | None = None) -> Summary | Partial:
        with pipeline(recipe, refresh) as context:
            if last not in DATA:
                context.record(until=last)
            outcomes = run_until(context, last)
            return summarize(context, outcomes) if last == STAGES[-1] else stopped(context, outcomes)

    run.__name__ = run.__qualname__ = f"{last}_flow"
    run.__doc__ = f"""Run the pipeline up to and including {last}.

    Args:
        recipe: The job.
        refresh: Compute this stage and all after it again, whatever the store holds.
    """
    return flow(name=last, validate_parameters=True, persist_result=False)(run)


collect_flow = _flow_until("collect")
clean_flow = _flow_until("clean")
split_flow = _flow_until("split")
tokenize_flow = _flow_until("tokenize")
train_flow = _flow_until("train")
evaluate_flow = _flow_until("evaluate")
gate_flow = _flow_until("gate")
register_flow = _flow_until("register")

STAGE_FLOWS: dict[Stage, StageFlow] = {
    "collect": collect_flow,
    "clean": clean_flow,
    "split": split_flow,
    "tokenize": tokenize_flow,
    "train": train_flow,
    "evaluate": evaluate_flow,
    "gate": gate_flow,
    "register": register_flow,
}
"""Stage → its flow."""
