"""`hone run`: the whole pipeline, here and now."""

from __future__ import annotations

import asyncio
import importlib
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from flows.engine import configure
from schemas.errors import Problem, RecipeError
from schemas.loading import load_recipe
from schemas.recipe import Recipe
from schemas.records import Summary
from schemas.stages import STAGES, Stage
from tasks.home import Home


def run(path: Path, overrides: Sequence[str], *, refresh: str | None, as_json: bool) -> int:
    """Run a recipe, show it, and end with its summary: one JSON object on the last line, or a page for people."""
    recipe = load_recipe(path, overrides)
    stage = _stage(refresh)
    home = Home.open(path)
    configure(home)
    from flows.terminal import Display, display, print_summary

    shown = Display()
    display.set(shown)
    shown.say(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    try:
        summary = run_here(recipe, stage)
    finally:
        shown.stop()
    if as_json:
        print(summary.model_dump_json())
    else:
        print_summary(summary)
    return 0


def run_here(recipe: Recipe, refresh: Stage | None) -> Summary:
    """The finetune flow in this process."""
    from flows.finetune import finetune

    # MLflow takes over a second to import; Prefect's embedded server takes longer to start, in a process of its own.
    threading.Thread(target=_import_mlflow, daemon=True).start()
    heed_signals()
    return asyncio.run(finetune(recipe, refresh))


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


def _stage(name: str | None) -> Stage | None:
    if name is None:
        return None
    for stage in STAGES:
        if stage == name:
            return stage
    raise RecipeError(Problem("--refresh", name, "is not a stage", f"choose among {', '.join(STAGES)}"))
