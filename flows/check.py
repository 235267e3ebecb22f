"""`hone check`: what a run would do, without registering anything: the data, what cleaning drops, time and memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.engine import configure
from flows.power import show_power
from flows.terminal import Display, StageLines
from schemas.loading import load_recipe
from schemas.records import Artifact, Plan
from tasks.base_model import base_model
from tasks.child import children
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.evaluate import read_meta
from tasks.home import Home
from tasks.onnx_job import require
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.tokenizer import Base
from tasks.tracking import prepare
from tasks.train import plan_artifact, rehearsal

EXAMPLES = 2
"""Quarantined rows shown for each reason."""
EXAMPLE_CHARS = 2_000
"""Of a row as the model reads it."""


def check(path: Path, overrides: Sequence[str], *, power: bool, as_json: bool) -> int:
    """Validate a recipe, prepare its data, time a few optimiser steps and forecast the run.

    With `power`, only say what differences the test rows can show.
    """
    recipe = load_recipe(path, overrides)
    require(recipe.registry)
    home = Home.open(path)
    configure(home)
    shown = Display()
    shown.say(f"{recipe.name}: the recipe is valid")
    context = Context(recipe, home, run_id="", observer=StageLines(home, shown, warm=not power))
    if not power:
        children.warm(home.logs)
    cleaned = clean(context, collect(context))
    sides = split(context, cleaned)
    if power:
        prepare(home)
        show_power(context, sides, as_json=as_json)
        return 0
    tokens = tokenize(context, cleaned, sides)
    plan = Plan.model_validate(plan_artifact(context, tokens).summary)
    forecast = rehearsal(context, tokens, plan)
    evaluate_seconds = tokens.summary["tokens"]["test"] / forecast["predict_tokens_per_second"]
    found = {
        "recipe": recipe.name,
        "rows": {side: sides.summary[side] for side in ("train", "validation", "test")},
        "quarantined": cleaned.summary["quarantined"],
        "lengths": tokens.summary["lengths"],
        "truncated_rows": tokens.summary["truncated_rows"],
        "dropped": tokens.summary["dropped"],
        "leaked": sides.summary["leaked_by_reason"],
        "smallest_visible_difference": sides.summary["smallest_visible_difference"],
        "row_score": context.family.row_score,
        "plan": plan.model_dump(mode="json"),
        "forecast": forecast | {"evaluate_seconds": evaluate_seconds},
    }
    if as_json:
        print(json.dumps(found))
    else:
        _print(shown, found, _examples(context, cleaned))
        _print_example(shown, context, sides)
    return 0


def _print_example(display: Display, context: Context, sides: Artifact) -> None:
    """The first training row as the model reads it, where that is more than its text."""
    import polars as pl

    folder = context.path(sides)
    row = pl.read_parquet(folder / "train.parquet", n_rows=1, glob=False).row(0, named=True)
    model = context.recipe.model
    base = Base(base_model(model, context.home)[0], trust_remote_code=model.trust_remote_code)
    meta = {**read_meta(folder), **context.family.of_base(context.recipe.task, base)}
    example = context.family.example(row, meta, base.tokenizer)
    if example is None:
        return
    display.say("  the first training row as the model reads it; what it learns to write between « and »")
    for line in example[:EXAMPLE_CHARS].splitlines():
        display.say(f"      {line}")


def _examples(context: Context, cleaned: Artifact) -> dict[str, list[str]]:
    """A few quarantined texts for each reason."""
    import polars as pl

    rows = pl.read_parquet(context.path(cleaned) / "quarantine.parquet")
    column = context.family.text_columns[0]
    shown: dict[str, list[str]] = {}
    for (reason,), group in rows.group_by("reason", maintain_order=True):
        texts = group.head(EXAMPLES)
        shown[str(reason)] = [
            f"row {row}: {(text or '')[:90]!r}" for row, text in zip(texts["row"], texts[column], strict=True)
        ]
    return shown


def _print(display: Display, found: dict[str, Any], examples: dict[str, list[str]]) -> None:
    say = display.say
    for reason, count in found["quarantined"].items():
        say(f"  {count:,} rows would be quarantined: {reason}")
        for example in examples.get(reason, []):
            say(f"      {example}")
    for reason, count in found["leaked"].items():
        say(f"  {count:,} rows would be taken out by the split: {reason}")
    points = 100 * found["smallest_visible_difference"]
    say(f"  {found['rows']['test']:,} test rows show differences in {found['row_score']} from {points:.1f} points on")
    plan, forecast = found["plan"], found["forecast"]
    say("  plan")
    for name in ("device", "precision", "attention", "threads", "micro_batch_tokens", "class_weights", "steps"):
        reason = plan["reasons"].get(name)
        say(f"      {name} {plan[name]}" + (f" ({reason})" if reason else ""))
    say("  forecast")
    say(f"      training    {_minutes(forecast['train_seconds'])}, evaluations on validation included")
    say(f"      test        {_minutes(forecast['evaluate_seconds'])}")
    say(f"      peak memory {forecast['peak_memory_bytes'] / 2**30:.1f} GiB in the training process")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
