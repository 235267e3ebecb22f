"""The pipeline as every flow of it runs it: its stages in order, as far as one asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from flows.limits import gpu_slot
from flows.pipeline import PipelineContext, begin
from schemas.records import Outcome
from schemas.stages import Stage
from tasks.clean import clean
from tasks.collect import collect
from tasks.data_report import data_report
from tasks.evaluate import evaluate
from tasks.gate import gate
from tasks.register import register
from tasks.replay import replay
from tasks.split import split
from tasks.start import starting_point
from tasks.tokenize import tokenize
from tasks.train import train


def steps(context: PipelineContext) -> Iterator[Outcome]:
    """From rows to a registered model: each stage is run when its outcome is asked for."""
    yield (raw := collect(context))
    yield (cleaned := clean(context, raw))
    yield (sides := split(context, cleaned))
    yield data_report(context, raw, cleaned, sides)
    learnt = begin(context, starting_point(context, sides)) if context.learns_on else None
    yield (tokens := tokenize(context, cleaned, sides))
    lessons = tokens
    if learnt is not None:
        yield (lessons := replay(context, sides, tokens, learnt))
    with gpu_slot():
        model = train(context, lessons)
    yield model
    yield (scores := evaluate(context, sides, tokens, model))
    yield (verdict := gate(context, raw=raw, cleaned=cleaned, sides=sides, tokens=tokens, model=model, scores=scores))
    yield register(context, raw=raw, cleaned=cleaned, sides=sides, model=model, scores=scores, verdict=verdict)


def run_until(context: PipelineContext, last: Stage) -> list[Outcome]:
    """What the stages up to and including `last` ended with."""
    outcomes = []
    for outcome in steps(context):
        outcomes.append(outcome)
        if outcome.stage == last:
            break
    return outcomes
