"""`hone run` and `hone retrain`: the pipeline, whole or in part, here and now."""

from __future__ import annotations

import asyncio
import importlib
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from flows.embedded import embed_server
from flows.engine import configure
from schemas.errors import Problem, RecipeError
from schemas.loading import load_recipe
from schemas.recipe import Recipe
from schemas.records import Partial, Skipped, Summary
from schemas.stages import STAGES, Stage
from tasks import process
from tasks.home import Home
from tasks.stage import unwrapped
from tasks.tracking import prepare

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
    home = Home.open(path)
    configure(home)
    server = embed_server(home)
    from flows.terminal import Display, display

    shown = Display()
    display.set(shown)
    shown.say(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    try:
        heed_signals()
        if server is not None:
            _prepare_meanwhile(home)
        flow = chosen()
        if server is not None:
            server.wait()
        process.import_meanwhile("mlflow", "schemas.frames")  # while the flow waits for Prefect's answers
        return unwrapped(asyncio.run(flow(recipe, *asked)))
    finally:
        shown.stop()


def _prepare_meanwhile(home: Home) -> None:
    """Do while Prefect's server starts what every run needs: MLflow takes a second to import, a database four."""
    importlib.import_module("mlflow")
    prepare(home)


def heed_signals() -> None:
    """Let Ctrl-C and a polite kill interrupt what runs, so that it ends what it has begun."""
    # asyncio would turn the first Ctrl-C into a cancellation that nobody awaits.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


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
