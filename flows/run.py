"""`hone run` and `hone retrain`: the pipeline, whole or in part, here and now."""

from __future__ import annotations

import asyncio
import importlib
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from flows.engine import configure
from schemas.errors import Problem, RecipeError
from schemas.loading import load_recipe
from schemas.recipe import Recipe
from schemas.records import Partial, Skipped, Summary
from schemas.stages import STAGES, Stage
from tasks.home import Home

Ended = Summary | Partial | Skipped
Runs = Callable[..., Coroutine[Any, Any, Any]]


def run(path: Path, overrides: Sequence[str], *, refresh: str | None, until: str | None, as_json: bool) -> int:
    """Run a recipe, show it, and end with its summary: one JSON object on the last line, or a page for people.

    Args:
        path: The recipe.
        overrides: Of its fields.
        refresh: Stage to compute again, with all after it.
        until: The last stage to run; default: all.
        as_json: Print one JSON object.
    """
    last = _stage("--until", until)

    def chosen() -> Runs:
        if last is None:
            from flows.finetune import finetune

            return finetune
        from flows.stages import STAGE_FLOWS

        return STAGE_FLOWS[last]

    return _command(path, overrides, chosen, refresh=refresh, as_json=as_json)


def retrain(path: Path, overrides: Sequence[str], *, refresh: str | None, as_json: bool) -> int:
    """Run a recipe again, if its rows, its fields or the champion are not those of an attempt before; see `run`."""

    def chosen() -> Runs:
        from flows.retrain import retrain as flow

        return flow

    return _command(path, overrides, chosen, refresh=refresh, as_json=as_json)


def _command(
    path: Path, overrides: Sequence[str], chosen: Callable[[], Runs], *, refresh: str | None, as_json: bool
) -> int:
    recipe, stage = load_recipe(path, overrides), _stage("--refresh", refresh)
    ended: Ended = watched(path, recipe, chosen, stage)
    from flows.terminal import print_partial, print_summary

    if as_json:
        print(ended.model_dump_json())
    elif isinstance(ended, Summary):
        print_summary(ended)
    elif isinstance(ended, Partial):
        print_partial(ended)
    else:
        print(ended.skipped)
    return 0


def watched(path: Path, recipe: Recipe, chosen: Callable[[], Runs], *asked: Any) -> Any:
    """Run a flow of a recipe in this process, shown as it goes; returns its result.

    Args:
        path: The recipe's file.
        recipe: What it says.
        chosen: Imports the flow: Prefect must not be imported before it is configured.
        asked: The flow's further parameters.
    """
    configure(Home.open(path))
    from flows.terminal import Display, display

    shown = Display()
    display.set(shown)
    shown.say(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    try:
        return run_here(chosen(), recipe, *asked)
    finally:
        shown.stop()


def run_here(flow: Runs, *asked: Any) -> Any:
    """Run a flow in this process, with these parameters."""
    from tasks.stage import unwrapped

    # MLflow takes over a second to import; Prefect's embedded server takes longer to start, in a process of its own.
    threading.Thread(target=_import_mlflow, daemon=True).start()
    heed_signals()
    return unwrapped(asyncio.run(flow(*asked)))


def heed_signals() -> None:
    """Let Ctrl-C and a polite kill interrupt what runs, so that it ends what it has begun."""
    # asyncio would turn the first Ctrl-C into a cancellation that nobody awaits.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def _import_mlflow() -> None:
    importlib.import_module("mlflow")


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _stage(option: str, name: str | None) -> Stage | None:
    if name is None:
        return None
    for stage in STAGES:
        if stage == name:
            return stage
    raise RecipeError(Problem(option, name, "is not a stage", f"choose among {', '.join(STAGES)}"))
