"""What a run costs beside learning and evaluating: starting, stages, Prefect, MLflow, and a run that finds all done.

    python -m benchmarks.orchestration                    # about 15 minutes on two cores
    python -m benchmarks.orchestration --repetitions 1 --helps 3
    python -m benchmarks.orchestration --report

A tiny model that really learns, so that what is timed is all the rest. Whole processes, as a user starts them: with
Prefect and MLflow embedded, and beside the servers of `hone up`. Every case is a line of `results/orchestration.jsonl`
as soon as it is done, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.preparation import conditions
from tasks.markdown import table
from tests.e2e.conftest import Hone, make_project
from tests.e2e.desk import desk
from tests.learning import sentences, tiny_encoder

RESULTS = Path(__file__).parent / "results" / "orchestration.jsonl"
ROWS = 800
EMBEDDED, BESIDE = "embedded", "beside servers"
FRESH, KNOWN, DONE = "fresh home", "known home", "all done"
LIBRARIES = ("prefect", "mlflow", "torch", "transformers", "polars")
ELSEWHERE = "beside stages"
"""The command's start, Prefect and MLflow around the stages, and the end of the process."""

Line = dict[str, Any]


def help_case(work: Path, times: int) -> Line:
    """Seconds of `hone --help`, each a whole process."""
    hone, seconds = Hone(work), list[float]()
    for _ in range(times):
        began = time.perf_counter()
        process = hone.start("--help")
        process.communicate()
        seconds.append(time.perf_counter() - began)
        assert process.returncode == 0
    return {"seconds": seconds}


def run_case(work: Path, how: str, number: int) -> Line:
    """A run in a fresh home, one of another seed that computes all anew, and the same again, which finds all done."""
    # A folder for each: MLflow keeps a database open by its name, and would go on reading one that was removed.
    folder = work / f"run-{how.replace(' ', '-')}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    base = work / "base"
    if not base.exists():
        tiny_encoder(base, dropout=0.1)
    hone = make_project(folder, base, folder.name, None, sentences(ROWS))
    if how == EMBEDDED:
        return three_runs(hone, f"sqlite:///{hone.home}/mlflow.db")
    with desk(hone) as up:
        return {"up_seconds": up.seconds, **three_runs(hone, up.said["mlflow_url"])}


def three_runs(hone: Hone, mlflow_url: str) -> Line:
    """The three, by name."""
    seed = ("--set", "train.seed=1")
    return {
        FRESH: timed(hone, mlflow_url),
        KNOWN: timed(hone, mlflow_url, "--refresh", "collect", *seed),
        DONE: timed(hone, None, *seed),
    }


def timed(hone: Hone, mlflow_url: str | None, *arguments: str) -> Line:
    """Seconds of a whole `hone run`, of its stages, and until the first step of its training.

    Args:
        hone: The project.
        mlflow_url: Where the first step is looked up; none where nothing is learnt.
        arguments: Further ones of the command.
    """
    clock, began = time.time(), time.perf_counter()
    done = hone("run", "recipe.yaml", *arguments)
    seconds = time.perf_counter() - began
    if done.code != 0:
        raise RuntimeError(done.errors)
    stages = {stage["name"]: stage["seconds"] for stage in done.result["stages"]}
    found: Line = {"seconds": seconds, "stages": stages, "computed": done.computed, "learning_seconds": 0.0}
    if mlflow_url is None:
        return found
    from mlflow import MlflowClient

    losses = MlflowClient(mlflow_url).get_metric_history(done.result["mlflow_run_id"], "loss")
    return found | {
        "first_step_seconds": min(loss.timestamp for loss in losses) / 1_000 - clock,
        "learning_seconds": done.result["train"]["seconds_here"],
        "steps": done.result["train"]["steps_run_here"],
    }


def overhead(line: Line) -> dict[str, float]:
    """Seconds of a run that are neither learning nor evaluating, by stage; the start of a child is among them."""
    evaluates = "evaluate" in line["computed"]
    stages = {name: seconds for name, seconds in line["stages"].items() if name != "evaluate" or not evaluates}
    stages["train"] -= line["learning_seconds"]
    evaluating = line["stages"].get("evaluate", 0.0) - stages.get("evaluate", 0.0)
    rest = line["seconds"] - line["learning_seconds"] - evaluating - sum(stages.values())
    return {**stages, ELSEWHERE: rest}


def cases(helps: int, repetitions: int) -> Iterator[tuple[str, Callable[[Path], Line]]]:
    """Name and what to do, in order; embedded and beside servers in turns."""
    yield f"help {helps}", lambda work: help_case(work, helps)
    for number in range(repetitions):
        for how in (EMBEDDED, BESIDE):
            yield f"{how} {number}", partial(run_case, how=how, number=number)


def recorded(results: Path) -> list[Line]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def run_cases(wanted: Iterator[tuple[str, Callable[[Path], Line]]], work: Path, results: Path) -> None:
    """Measure the cases that have no line yet."""
    done = {line["case"] for line in recorded(results)}
    work.mkdir(parents=True, exist_ok=True)
    for name, measure in wanted:
        if name in done:
            print(f"{name}: done before", file=sys.stderr)
            continue
        line = {"case": name, **measure(work), "conditions": conditions(LIBRARIES)}
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: done", file=sys.stderr)


def report(lines: Sequence[Line]) -> str:
    """The record as a page."""
    parts = [
        "# What a run costs beside learning",
        "`python -m benchmarks.orchestration`: whole processes of `hone`, from command to exit, with a tiny encoder "
        f"and {ROWS} rows, so that little but the machinery is timed. Seconds, medians over repetitions. In a fresh "
        "home both databases are made first; a known home has them, and every stage is computed all the same.",
    ]
    helps = [line for line in lines if line["case"].startswith("help")]
    if helps:
        parts += [
            "## Help",
            "\n".join(
                f"`hone --help`: {_spread(line['seconds'], '.2f')}, {len(line['seconds'])} times." for line in helps
            ),
        ]
    runs = {how: [line for line in lines if line["case"].startswith(how)] for how in (EMBEDDED, BESIDE)}
    runs = {how: measured for how, measured in runs.items() if measured}
    if runs:
        parts += ["## Runs", _runs(runs), "## Outside learning and evaluating, by stage", _by_stage(runs)]
    under = sorted({_machine(line["conditions"]) for line in lines})
    return "\n\n".join([*parts, "\n".join(under)]) + "\n"


def _runs(runs: dict[str, list[Line]]) -> str:
    head = ("", "times", "to the first step", "whole run", "of it learning", "outside learning and evaluating")
    body = []
    for how, which in _kinds(runs):
        measured = [line[which] for line in runs[how]]
        learns = which != DONE
        body.append(
            (
                f"{how}, {which}",
                str(len(measured)),
                _spread([run["first_step_seconds"] for run in measured]) if learns else "",
                _spread([run["seconds"] for run in measured]),
                _spread([run["learning_seconds"] for run in measured]) if learns else "",
                _spread([sum(overhead(run).values()) for run in measured]),
            )
        )
    return table(head, body)


def _kinds(runs: dict[str, list[Line]]) -> list[tuple[str, str]]:
    return [(how, which) for how in runs for which in (FRESH, KNOWN, DONE)]


def _by_stage(runs: dict[str, list[Line]]) -> str:
    kinds = _kinds(runs)
    found = {kind: [overhead(line[kind[1]]) for line in runs[kind[0]]] for kind in kinds}
    stages = list(dict.fromkeys(stage for runs_of in found.values() for one in runs_of for stage in one))
    stages.append(stages.pop(stages.index(ELSEWHERE)))
    head = ("", *(f"{how}, {which}" for how, which in kinds))
    body = [
        (stage, *(_middle([one[stage] for one in found[kind] if stage in one]) for kind in kinds)) for stage in stages
    ]
    body.append(("all", *(_middle([sum(one.values()) for one in found[kind]]) for kind in kinds)))
    note = (
        f"train: without its learning, so the start of the child process, the plan and what is saved; {ELSEWHERE}: "
        "the command's start, Prefect and MLflow around the stages, and the end."
    )
    return f"{table(head, body)}\n\n{note}"


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else ""


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    told = f"{median(values):{form}} s"
    return told if len(values) == 1 else f"{told} ({min(values):{form}} to {max(values):{form}})"


def _machine(under: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in under["libraries"].items())
    return (
        f"{under['cpu']}, {under['cores']} cores, Python {under['python']}, {libraries}, commit {under['commit']}, "
        f"{under['date'][:10]}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are not on record yet, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.split("\n")[0])
    parser.add_argument("--helps", type=int, default=10, help="how often help is asked for")
    parser.add_argument("--repetitions", type=int, default=3, help="how often everything else is done")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hone-orchestration")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the page from what was measured, and no more")
    asked = parser.parse_args(arguments)
    if not asked.report:
        run_cases(cases(asked.helps, asked.repetitions), asked.work.resolve(), asked.results)
    asked.results.with_suffix(".md").write_text(report(recorded(asked.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
