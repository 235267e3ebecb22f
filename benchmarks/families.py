"""Every shipped recipe, from rows to a model: the metric before the first step, after training, and of trivial models.

    python -m benchmarks.families WORK [RECIPE ...]    # a folder for the home; the same folder goes on
    python -m benchmarks.families --report             # the page alone, from what is on record

The model before the first step is that of a run of one step at a learning rate of 0, through the same evaluation:
thresholds and temperature are fitted for it, too. Lines go to `benchmarks/results/families.jsonl`, the page to
`families.md`. A recipe on record is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.preparation import conditions
from schemas.loading import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "families.jsonl"
RECIPES = ("sentiment", "polarity", "code-names", "arguments", "parameters")
"""One for each family, as they are shipped."""
UNTRAINED = ("train.max_steps=1", "train.learning_rate=1e-12", "train.warmup_ratio=0.5")
"""One step, at the very beginning of the warm-up: a rate of zero."""


def hone(work: Path, recipe: str, *more: str) -> tuple[dict[str, Any], float]:
    """One run's JSON, and the seconds it took."""
    environment = os.environ | {"HONE_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "flows.cli", "run", str(ROOT / "deployments" / f"{recipe}.yaml")]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *more, "--json"], cwd=work, capture_output=True, text=True, env=environment, check=False
    )
    seconds = time.monotonic() - began
    if not done.stdout.strip():
        sys.exit(f"{recipe} printed nothing:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]), seconds


def told(found: dict[str, Any], metric: str) -> dict[str, float]:
    """A metric with its interval."""
    return {name: found[f"{metric}{end}"] for name, end in (("value", ""), ("low", "_low"), ("high", "_high"))}


def measured(work: Path, recipe: str) -> dict[str, Any]:
    """What the record keeps of a recipe: the whole run, and that of the untrained model on the same rows."""
    load = os.getloadavg()[0]
    trained, seconds = hone(work, recipe)
    if "metrics" not in trained:
        sys.exit(f"{recipe}: {trained}")
    untrained, _ = hone(work, recipe, *(word for each in UNTRAINED for word in ("--set", each)), "--until", "evaluate")
    metric = load_recipe(ROOT / "deployments" / f"{recipe}.yaml", []).metric
    rows = trained["rows"]
    return {
        "recipe": recipe,
        "metric": metric,
        "rows": {side: rows[side] for side in ("train", "validation", "test")},
        "untrained": told(untrained["found"]["metrics"], metric),
        "trained": told(trained["metrics"], metric),
        "baselines": {name: told(scores, metric) for name, scores in trained["baselines"].items()},
        "decision": trained["gate"]["decision"],
        "minutes": round(seconds / 60, 1),
        "train_minutes": round(trained["train"]["seconds"] / 60, 1),
        "load": round(load, 1),
        "conditions": conditions(),
    }


def page(lines: list[dict[str, Any]]) -> str:
    """The record as a page."""

    def shown(found: dict[str, float]) -> str:
        return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"

    def minutes(line: dict[str, Any]) -> str:
        whole = line["minutes"] >= line["train_minutes"]
        return (
            f"{line['train_minutes']} of {line['minutes']}" if whole else f"{line['train_minutes']}, by an earlier run"
        )

    rows = [
        f"| {line['recipe']} | {line['rows']['train']:,} / {line['rows']['test']:,} | {line['metric']} | "
        f"{shown(line['untrained'])} | **{shown(line['trained'])}** | "
        f"{'<br>'.join(f'{name} {shown(found)}' for name, found in line['baselines'].items())} | "
        f"{line['decision']} | {minutes(line)} |"
        for line in lines
    ]
    loads = ", ".join(f"{line['recipe']} {line['load']}" for line in lines)
    machines = sorted({f"{line['conditions']['cpu']}, {line['conditions']['cores']} cores" for line in lines})
    head = "| recipe | rows train / test | metric | untrained | trained | trivial | gate | minutes of training of all |"
    parts = [
        "# Task families on real rows",
        f"`python -m benchmarks.families`: every recipe as it is shipped, test rows, 95 % bootstrap intervals. "
        f"{'; '.join(machines)}; load at the start: {loads}.",
        "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def recorded() -> list[dict[str, Any]]:
    """The lines on record."""
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def main() -> None:
    """Run the recipes that are not on record yet, and write the page."""
    if sys.argv[1] != "--report":
        work = Path(sys.argv[1]).resolve()
        work.mkdir(parents=True, exist_ok=True)
        done = {line["recipe"] for line in recorded()}
        for recipe in RECIPES:
            if recipe not in done and recipe in (sys.argv[2:] or RECIPES):
                line = measured(work, recipe)
                with RECORD.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{recipe}: {line['untrained']['value']:.4f} → {line['trained']['value']:.4f}", flush=True)
    (RESULTS / "families.md").write_text(page(recorded()))


if __name__ == "__main__":
    main()
