"""What each fine-tuning method is worth, and what it costs: the same rows, model and steps, one method after another.

    python -m benchmarks.methods                                        # the demo's recipe
    python -m benchmarks.methods --recipes deployments/*.yaml --steps 63
    python -m benchmarks.methods --report

Every case, a recipe with a method at a learning rate, runs in a process of its own through the stages that the recipe
runs, up to evaluation; what comes before training is computed once. The rates are the method's own default and a third
and the threefold of it; which of them counts is decided on validation. What was measured is a line of
`results/methods.jsonl` as soon as a case is done; a case that has a line is not run again. Needs the demo extra.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.preparation import conditions
from schemas.loading import load_recipe
from schemas.recipe import LEARNING_RATES
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.evaluate import evaluate
from tasks.home import Home
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.train import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
RECIPES = (ROOT / "deployments" / "sentiment.yaml",)
"""One for each family that is compared."""
METHODS = ("full", "lora", "rslora", "dora", "ia3", "bitfit", "freeze", "qlora")
FULL_RATE = 1e-4
"""Of full fine-tuning, as the demo has it."""
FACTORS = (1, 3, 1 / 3)
"""Learning rates tried, as shares of the method's own."""
STEPS = 63
"""Of 64 rows each: about 4,000."""
FROM_TRAINING = (
    "trainable_parameters", "parameters", "tokens_per_second", "model_tflops", "peak_memory_bytes", "checkpoint_bytes",
    "seconds", "steps", "merge_difference",
)  # fmt: skip

INTRODUCTION = (
    "`benchmarks/methods.py`: the same rows and steps under every method, at the learning rates named below "
    "each table; the one that validation liked best is shown. Metrics with their 95 % intervals. Processor "
    "time is that of the whole stage, loading and merging included; the checkpoint is that of half-way, "
    "optimiser and all; merging is the largest difference of an output of the merged model, reloaded, from the "
    "unmerged one's."
)


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        recipe: File name of the recipe.
        learning_rate: Its peak.
        steps: Optimiser steps.
    """

    recipe: str
    method: str
    learning_rate: float
    steps: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", type=Path, nargs="+", default=RECIPES, help="one recipe for each family")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:-1], help="qlora needs a GPU")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=FACTORS, help="learning rates, as shares of the method's own"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of every case")
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "hone-methods")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write what was measured beside it, as Markdown")
    parser.add_argument("--here", metavar="CASE", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.here:
        (file,) = asked.recipes
        print(json.dumps(measure(Case(**json.loads(asked.here)), file, asked.home)))
        return 0
    if not asked.report:
        for file in asked.recipes:
            run_cases(
                file, list(cases(file.name, asked.methods, asked.factors, asked.steps)), asked.home, asked.results
            )
    asked.results.with_suffix(".md").write_text(report(recorded(asked.results)), encoding="utf-8")
    return 0


def cases(recipe: str, methods: Sequence[str], factors: Sequence[float], steps: int) -> Iterator[Case]:
    """Every method at every learning rate."""
    for factor in factors:
        for method in methods:
            rate = float(f"{LEARNING_RATES.get(method, FULL_RATE) * factor:.2g}")
            yield Case(recipe, method, rate, steps)


def run_cases(file: Path, wanted: Sequence[Case], home: Path, results: Path) -> None:
    """Measure the cases that have no line yet, each in a process of its own."""
    done = [line["case"] for line in recorded(results)]
    for case in wanted:
        if asdict(case) in done:
            print(f"{case}: done before", file=sys.stderr)
            continue
        command = [sys.executable, "-P", "-m", "benchmarks.methods", "--recipes", str(file), "--home", str(home)]
        child = subprocess.run(
            [*command, "--here", json.dumps(asdict(case))], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        line = {"case": asdict(case), **json.loads(child.stdout.splitlines()[-1]), "conditions": conditions()}
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as record:
            record.write(json.dumps(line) + "\n")
        print(f"{case}: {line['metric']} {line['value']:.4f} in {line['seconds']:.0f} s", file=sys.stderr)


def recorded(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def measure(case: Case, file: Path, home: Path) -> dict[str, Any]:
    """Train and evaluate in this process; a checkpoint is saved half-way, for its size."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HONE_HOME"] = str(home)
    changes = {
        "train.method": case.method,
        "train.learning_rate": case.learning_rate,
        "train.max_steps": case.steps,
        "train.save_steps": max(1, case.steps // 2),
        "evaluate.slices": "{weak: false}",
    }
    recipe = load_recipe(file, [f"{name}={value}" for name, value in changes.items()])
    context = Context(recipe, Home.open(file), run_id="")
    cleaned = clean(context, collect(context))
    sides = split(context, cleaned)
    tokens = tokenize(context, cleaned, sides)
    before = cpu_seconds()
    model = train(context, tokens)
    spent = cpu_seconds() - before
    found = evaluate(context, sides, tokens, model).summary
    metric = recipe.metric
    return {
        "family": recipe.task.family,
        "metric": metric,
        "validation": model.summary["validation"][metric],
        "value": found["metrics"][metric],
        "low": found["metrics"][f"{metric}_low"],
        "high": found["metrics"][f"{metric}_high"],
        "test_rows": sides.summary["test"],
        **{name: model.summary[name] for name in FROM_TRAINING},
        "cpu_seconds": round(spent, 1),
        "precision": model.summary["plan"]["precision"],
        "device": model.summary["plan"]["device"],
    }


def cpu_seconds() -> float:
    """Processor time of this process's children: another program beside them changes it less than what a clock says."""
    import psutil

    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A page with a table for each recipe: every method at the learning rate that validation chose."""

    def by_recipe(line: dict[str, Any]) -> tuple[str, int]:
        return line["case"]["recipe"], line["case"]["steps"]

    parts = ["# Fine-tuning methods, side by side", INTRODUCTION]
    for (recipe, steps), group in groupby(sorted(lines, key=by_recipe), key=by_recipe):
        measured = list(group)
        parts += [
            f"## {recipe}: {measured[0]['family']}, {steps} steps",
            _table(measured),
            _rates(measured),
            "\n".join(sorted({_machine(line) for line in measured})),
        ]
    return "\n\n".join(parts) + "\n"


def _table(measured: Sequence[dict[str, Any]]) -> str:
    metric = measured[0]["metric"]
    head = [
        "method", "learning rate", f"test {metric}", "learns", "tokens/s", "processor time", "peak memory",
        "checkpoint", "merging",
    ]  # fmt: skip
    table = [head, ["---", *["---:"] * (len(head) - 1)]]
    for method in METHODS:
        tried = [line for line in measured if line["case"]["method"] == method]
        if not tried:
            continue
        best = max(tried, key=lambda line: line["validation"])
        share = best["trainable_parameters"] / best["parameters"]
        merging = "" if best["merge_difference"] is None else f"{best['merge_difference']:.0e}"
        table.append(
            [
                method,
                f"{best['case']['learning_rate']:g}",
                f"{best['value']:.4f} ({best['low']:.4f} to {best['high']:.4f})",
                f"{best['trainable_parameters']:,} ({share:.2%})",
                f"{best['tokens_per_second']:,.0f}",
                f"{best['cpu_seconds']:.0f} s",
                f"{best['peak_memory_bytes'] / 2**20:,.0f} MiB",
                f"{best['checkpoint_bytes'] / 2**20:,.1f} MiB",
                merging,
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _rates(measured: Sequence[dict[str, Any]]) -> str:
    """What validation said of every learning rate."""
    told = []
    for method in METHODS:
        tried = sorted(
            (line["case"]["learning_rate"], line["validation"]) for line in measured if line["case"]["method"] == method
        )
        if tried:
            told.append(f"{method} " + ", ".join(f"{rate:g}: {value:.3f}" for rate, value in tried))
    return f"Validation {measured[0]['metric']} by learning rate: " + "; ".join(told) + "."


def _machine(line: dict[str, Any]) -> str:
    under = line["conditions"]
    return (
        f"{under['cpu']}, {under['cores']} cores, {line['device']} {line['precision']}, Python {under['python']}, "
        f"commit {under['commit']}, {under['date'][:10]}, {line['test_rows']:,} test rows."
    )


if __name__ == "__main__":
    sys.exit(main())
