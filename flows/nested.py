"""Runs below a run: each model of a curve, a search or a comparison has an MLflow run nested in that of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flows.pipeline import PipelineContext
from schemas.recipe import Recipe
from tasks.context import Context
from tasks.tracking import Run, Status


@contextmanager
def nested(
    context: PipelineContext, recipe: Recipe, *, name: str, kind: str, alone: bool = True, **tags: str
) -> Iterator[tuple[Context, Run]]:
    """The context of one model, and its MLflow run; it ends as the block ends.

    Args:
        context: Of the whole.
        recipe: Of this model.
        name: For people.
        kind: Tag `hone.kind`.
        alone: No other one goes on at the same time, so that what the whole observes is this one's.
        tags: Further ones, without their prefix.
    """
    assert context.run is not None
    known = {"mlflow.parentRunId": context.run_id, "hone.kind": kind, **{f"hone.{n}": v for n, v in tags.items()}}
    run = Run.start(context.home, recipe, name=name, tags=known)
    inner = Context(
        recipe,
        context.home,
        run_id=run.run_id,
        flow_run_id=context.flow_run_id,
        observer=context.observer,
        orchestrated=context.orchestrated,
    )
    if alone:
        context.observer.record_in(run)
    status: Status = "FAILED"
    try:
        yield inner, run
        status = "FINISHED"
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        if alone:
            context.observer.record_in(context.run)
        run.end(status)
