"""Few rows, real tweets, a real encoder: two passes over them against what `train.epochs` does when it is left out.

    python benchmarks/few_shot.py WORK        # a folder for the home; the same folder goes on

Trains the demo's encoder with the defaults of `train`, but 16 rows a step, on about 64, 260 and 520 rows, three seeds
each (other rows, another head), and measures it on 539 validation rows. With 64 rows a step, as is the default, two
passes are a quarter of the steps. What was found goes to `benchmarks/results/few-shot.jsonl` and `few-shot.md`. Models
that are in the store are not trained again, so it may be stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from schemas.loading import load_recipe
from schemas.recipe import Recipe
from tasks.child import children
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.curve import validate
from tasks.home import Home
from tasks.markdown import table
from tasks.split import split
from tasks.subset import subset
from tasks.tokenize import tokenize
from tasks.train import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARES = (0.002, 0.008, 0.016)
SEEDS = (0, 1, 2)
ARMS = {"two passes": {"epochs": 2.0}, "left out": {"epochs": None}}
SIDES = ["split.validation=0.015", "split.test=0.015"]
"""Fewer rows than the demo's: evaluating is most of the work here."""
DEFAULTS = ["train={global_batch_size: 16}", "evaluate.abstain_precision=null", "gate.thresholds=[]"]


def measured(home: Home, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Every model of the benchmark."""
    context = Context(recipe, home, run_id="")
    cleaned = clean(context, collect(context))
    tokens = tokenize(context, cleaned, split(context, cleaned))
    for share in SHARES:
        for arm, changes in ARMS.items():
            for seed in SEEDS:
                section = recipe.train.model_copy(update={**changes, "seed": seed})
                inner = Context(recipe.model_copy(update={"train": section}), home, run_id="")
                lessons = subset(inner, tokens, share)
                model = train(inner, lessons)
                found = validate(inner, tokens, model)
                yield {
                    "share": share, "arm": arm, "seed": seed, "rows": lessons.summary["rows"],
                    "steps": model.summary["steps"], "best_step": model.summary["best_step"],
                    "macro_f1": round(found.summary["value"], 4), "validation_rows": found.summary["rows"],
                    "planned": model.summary["plan"]["steps"],
                }  # fmt: skip


def page(lines: list[dict[str, Any]]) -> str:
    """The record as a page."""
    rows = []
    for share in SHARES:
        for arm in ARMS:
            of = [line for line in lines if (line["share"], line["arm"]) == (share, arm)]
            found = [line["macro_f1"] for line in of]
            spread = f"{mean(found):.3f} ± {stdev(found):.3f}"
            many, steps = (round(mean(line[name] for line in of)) for name in ("rows", "steps"))
            rows.append((f"{many:,}", arm, f"{steps}", spread, f"{min(found):.3f}"))
    parts = [
        "# Few rows: two passes, and `train.epochs` left out",
        "`benchmarks/few_shot.py`: the demo's tweets and encoder, the defaults of `train` with 16 rows a step, macro "
        f"F1 on {lines[0]['validation_rows']:,} validation rows, mean and standard deviation of {len(SEEDS)} seeds.",
        table(("rows", "train.epochs", "steps", "macro F1", "worst seed"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Train what is not in the store yet, and write the record."""
    os.environ["HONE_HOME"] = str(Path(sys.argv[1]).resolve())
    recipe = load_recipe(ROOT / "deployments" / "sentiment.yaml", [*SIDES, *DEFAULTS])
    lines = []
    for line in measured(Home.open(ROOT), recipe):
        print(line, flush=True)
        lines.append(line)
    children.stop()
    record = RESULTS / "few-shot.jsonl"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (RESULTS / "few-shot.md").write_text(page(lines))


if __name__ == "__main__":
    main()
