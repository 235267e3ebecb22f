"""The pipeline: from rows to a registered model."""

from __future__ import annotations

from prefect import flow

from flows.pipeline import pipeline_run, summarize
from schemas.recipe import Recipe
from schemas.records import Summary
from schemas.stages import Stage
from tasks.clean import clean
from tasks.collect import collect
from tasks.data_report import data_report
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.register import register
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.train import train


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
        raw = collect(context)
        cleaned = clean(context, raw)
        sides = split(context, cleaned)
        described = data_report(context, raw, cleaned, sides)
        tokens = tokenize(context, cleaned, sides)
        model = train(context, tokens)
        scores = evaluate(context, sides, tokens, model)
        verdict = gate(context, raw=raw, cleaned=cleaned, sides=sides, tokens=tokens, model=model, scores=scores)
        version = register(context, raw=raw, cleaned=cleaned, sides=sides, model=model, scores=scores, verdict=verdict)
        return summarize(context, [raw, cleaned, sides, described, tokens, model, scores, verdict, version])
