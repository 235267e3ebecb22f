"""`hone check --power`: what differences between two models the test rows can show, before anything is trained."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from schemas.records import Artifact
from tasks.context import Context, last_key
from tasks.evaluate import meta_of
from tasks.registry import champion
from tasks.split_checks import DIFFERING, rows_to_see, smallest_visible_difference

SHARES = (0.02, 0.05, 0.10, 0.20)
"""Disagreements of two models: two seeds, two recipes, two base models."""
GAINS = (0.005, 0.01, 0.02, 0.05)
"""Gains in the mean score of a row that a user may want to see."""


def power_of(context: Context, sides: Artifact) -> dict[str, Any]:
    """What the test rows can show; with the disagreement as last measured, where it was."""
    rows = sides.summary["test"]
    measured = last_disagreement(context, sides)
    shares = sorted({*SHARES, *([measured] if measured else [])})
    return {
        "recipe": context.recipe.name,
        "test_rows": rows,
        "row_score": context.family.row_score,
        "measured_disagreement": measured,
        "smallest_visible": {f"{share:.4g}": smallest_visible_difference(rows, share) for share in shares},
        "rows_needed": {f"{gain:g}": rows_to_see(gain, measured or DIFFERING) for gain in GAINS},
        "labels": sides.summary["labels"]["test"],
    }


def last_disagreement(context: Context, sides: Artifact) -> float | None:
    """Share of the test rows that only one of the model trained last and the version asked last gets right.

    Where rows score between 0 and 1, the mean square of the differences. None where there were no two models yet, or
    where the two were one and the same.
    """
    import polars as pl

    found = []
    for stage, file in (("evaluate", "predictions.parquet"), ("served", "test.parquet")):
        key = last_key(context.home, context.recipe.name, stage)
        if key is None or context.store.find(stage, key) is None:
            return None
        found.append(pl.read_parquet(context.store.open(stage, key) / file, glob=False))
    ours = found[0].join(found[1], on="id", how="semi")
    if ours.is_empty():
        return None
    theirs = ours.select("id").join(found[1], on="id", how="left", maintain_order="left")
    meta = meta_of(context.recipe.task, context.path(sides))
    scores, others = (context.family.row_scores(rows, meta).to_numpy() for rows in (ours, theirs))
    return float(((scores - others) ** 2).mean()) or None


def show_power(context: Context, sides: Artifact, *, as_json: bool) -> None:
    """Print what `power_of` found."""
    found = power_of(context, sides)
    if as_json:
        print(json.dumps(found))
        return
    console = Console(highlight=False)
    console.print(
        f"  {found['test_rows']:,} test rows, at 95 % confidence and 80 % power, both models on the same rows;\n"
        f"  gains are of {found['row_score']}, disagreement is the share of rows that only one of both gets right",
        soft_wrap=True,
    )
    seen = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    seen.add_column("disagreement", justify="right")
    seen.add_column("smallest gain seen", justify="right")
    for share, gain in found["smallest_visible"].items():
        measured = found["measured_disagreement"] and f"{found['measured_disagreement']:.4g}" == share
        told = f"{100 * gain:.2f} points" if gain <= float(share) else "none"
        seen.add_row(f"{float(share):.1%}" + (" (as last measured)" if measured else ""), told)
    console.print(Padding(seen, (1, 2)))
    needed = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    needed.add_column("to see a gain of", justify="right")
    needed.add_column("test rows needed", justify="right")
    for gain, rows in found["rows_needed"].items():
        needed.add_row(f"{100 * float(gain):g} points", f"{rows:,}" if rows else "too little disagreement")
    console.print(Padding(needed, (0, 2)))
    serving = champion(context.home, context.recipe.model_name)
    share = f"{found['measured_disagreement'] or DIFFERING:.1%}"
    known = "as last measured" if found["measured_disagreement"] else "assumed: no two models were compared yet"
    against = f"version {serving.version} serves" if serving else "nothing serves yet"
    console.print(f"\n  disagreement {share} ({known}); {against}", soft_wrap=True)
