"""The thin Prefect task around a stage: retries for faults, none for mistakes, and a state that says what was cached.

Prefect is imported when the first task is made, so that stages can be imported, tested and dry-run without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from schemas.errors import Mistake
from schemas.records import Outcome
from tasks.context import Context
from tasks.stopping import Stopped

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

P = ParamSpec("P")
R = TypeVar("R", bound=Outcome)

RETRY_DELAYS = [1, 10, 60]
"""Seconds before each further try of a stage that met a fault."""


def stage_task(function: Callable[Concatenate[Context, P], R]) -> Callable[Concatenate[Context, P], R]:
    """Make a stage a Prefect task of the same name; a plain call where the context is not orchestrated."""

    @cache
    def as_task() -> Task[..., Any]:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        return task(
            name=function.__name__,
            description=function.__doc__,
            retries=len(RETRY_DELAYS),
            retry_delay_seconds=list(RETRY_DELAYS),
            retry_condition_fn=_is_fault,
            cache_policy=NO_CACHE,  # the store alone decides what is cached
            persist_result=False,
        )(with_state)

    def timed(context: Context, *args: P.args, **kwargs: P.kwargs) -> R:
        """The outcome, with the time of all its parts, told to the observer."""
        began = time.monotonic()
        outcome = function(context, *args, **kwargs)
        outcome = outcome.model_copy(update={"seconds": time.monotonic() - began})
        context.observer.finished(outcome)
        return outcome

    def with_state(context: Context, *args: P.args, **kwargs: P.kwargs) -> Any:
        from prefect.states import Completed

        outcome = timed(context, *args, **kwargs)
        if not outcome.cached:
            return outcome
        return Completed(name="Cached", message=f"{outcome.stage} {outcome.key} is in the store", data=outcome)

    @wraps(function)
    def run(context: Context, *args: P.args, **kwargs: P.kwargs) -> R:
        if not context.orchestrated:
            return timed(context, *args, **kwargs)
        outcome: R = unwrapped(as_task()(context, *args, **kwargs))
        return outcome

    return cast("Callable[Concatenate[Context, P], R]", run)


def unwrapped(returned: Any) -> Any:
    """The outcome, out of the state and the result record that Prefect hands back for what named its state itself."""
    from prefect.client.schemas.objects import State

    if not isinstance(returned, State):
        return returned
    return getattr(returned.data, "result", returned.data)


def _is_fault(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try can help: not after a user's mistake, nor when it was asked to stop."""
    del task, run
    return not isinstance(getattr(state.data, "result", state.data), Mistake | Stopped)
