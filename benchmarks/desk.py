"""How the desk starts, how its runs end, and what happens while much goes on: real servers, worker and signals.

    python -m benchmarks.desk WORK          # a folder for projects and homes; the same folder goes on
    python -m benchmarks.desk --report

A tiny model that really learns, so that what is timed is the desk. Every case is a line of `results/desk.jsonl` as soon
as it is done, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psutil

from tests.e2e.conftest import RECIPE, Hone, make_project
from tests.e2e.desk import Up, bring_up, command_line, until
from tests.learning import sentences, tiny_encoder

RESULTS = Path(__file__).parent / "results" / "desk.jsonl"
REPETITIONS = 3
LONG = {"epochs": 1000, "early_stopping_patience": None, "save_steps": 25}
ENDS = ("cancelled in the UI", "worker SIGTERM", "worker SIGKILL", "run SIGKILL", "desk Ctrl-C", "desk SIGKILL")
SCHEDULED = "schedule: {stages: [{stage: collect, every_minutes: 1}]}\n"

Case = Callable[[], dict[str, Any]]


@dataclass
class Bench:
    """Projects below a folder."""

    work: Path

    @cached_property
    def base(self) -> Path:
        folder = self.work / "base"
        return folder if folder.exists() else tiny_encoder(folder, dropout=0.1)

    def project(self, name: str, recipe: str = RECIPE) -> Hone:
        root = self.work / name
        if root.exists():
            return Hone(root)
        return make_project(root, self.base, name, None, sentences(800), recipe)


def start(bench: Bench, number: int) -> dict[str, Any]:
    """From the command to healthy, and from Ctrl-C to all gone; the first time in a fresh home."""
    up = bring_up(bench.project("start"))
    processes = up.processes()
    stopped = up.stop()
    left = [command_line(p) for p in psutil.wait_procs(processes, timeout=1)[1]]
    return {"home": "fresh" if number == 0 else "known", "up_s": up.seconds, "down_s": stopped, "left": left}


def end(bench: Bench, how: str, number: int) -> dict[str, Any]:
    """A run in the midst of its training, ended in one way; what both systems say, and after how many seconds."""
    hone = bench.project(f"end-{how.replace(' ', '-').lower()}-{number}")
    up = bring_up(hone)
    name = hone.project.name
    with up.prefect() as client:
        recipe = client.read_deployment_by_name(f"finetune/{name}").parameters["recipe"]
    epochs = {"epochs": 15} if how == "worker SIGKILL" else {}
    run = up.trigger(f"finetune/{name}", recipe=recipe | {"train": recipe["train"] | LONG | epochs})
    until(lambda: last_step(up, run, name) >= 50, 180, f"the training: {up.log('worker')}")
    everything = up.processes()
    child = next(p for p in everything if "-m tasks.worker" in command_line(p))
    engine = next(p for p in everything if "flows.under_worker engine" in command_line(p))
    began = time.monotonic()
    match how:
        case "cancelled in the UI":
            from prefect.states import Cancelling

            with up.prefect() as client:
                client.set_flow_run_state(run, Cancelling())
        case "worker SIGTERM":
            up.part("-m prefect worker start").terminate()
        case "worker SIGKILL":
            up.part("-m prefect worker start").kill()
        case "run SIGKILL":
            engine.kill()
        case "desk Ctrl-C":
            up.process.send_signal(signal.SIGINT)
        case "desk SIGKILL":
            up.process.kill()
    found = observed(up, run, name, child, began) if not how.startswith("desk") else {}
    if how.startswith("desk"):
        up.process.wait(60)
        found["desk_gone_s"] = time.monotonic() - began
        psutil.wait_procs(everything, timeout=60)
        found["all_gone_s"] = time.monotonic() - began
        found["left"] = [command_line(p) for p in everything if p.is_running() and command_line(p)]
        up = bring_up(hone)
        found |= {"prefect": up.state(run).name, "mlflow": up.mlflow_run(run, name).info.status}
    found["checkpoints"] = len(list((hone.home / "work").glob("train-*/checkpoint-*/whole.json")))
    if how in {"worker SIGTERM", "run SIGKILL"}:
        found |= retried(up, run, name)
    up.stop()
    return found


def observed(up: Up, run: UUID, name: str, child: psutil.Process, began: float) -> dict[str, Any]:
    """When the child was gone and both systems had their last word."""
    found: dict[str, Any] = {}
    deadline = began + 150
    while time.monotonic() < deadline and len(found) < 5:
        now = round(time.monotonic() - began, 1)
        if "child_gone_s" not in found and not command_line(child):
            found["child_gone_s"] = now
        state = up.state(run)
        if "prefect" not in found and state.is_final():
            found |= {"prefect": state.name, "prefect_s": now}
        status = up.mlflow_run(run, name).info.status
        if "mlflow" not in found and status != "RUNNING":
            found |= {"mlflow": status, "mlflow_s": now}
        time.sleep(0.1)
    return found


def retried(up: Up, run: UUID, name: str) -> dict[str, Any]:
    """Retry as the UI does; whether it goes on where it was, in the same MLflow run."""
    from prefect.states import AwaitingRetry

    before, at = up.mlflow_run(run, name), last_step(up, run, name)
    with up.prefect() as client:
        client.set_flow_run_state(run, AwaitingRetry())
    until(lambda: last_step(up, run, name) > at, 120, "the retry to learn on")
    after = up.mlflow_run(run, name)
    steps = [metric.step for metric in up.mlflow.get_metric_history(after.info.run_id, "loss")]
    fresh = steps.count(min(steps)) > 1  # the first step was learnt, and logged, twice
    return {"retry_same_run": before.info.run_id == after.info.run_id, "retry_from": at, "fresh": fresh}


def four_at_once(bench: Bench) -> dict[str, Any]:
    """Four recipes triggered at the same moment, everything on SQLite."""
    hone = bench.project("four")
    names = [f"four-{number}" for number in range(4)]
    for number, name in enumerate(names):
        text = RECIPE.replace("NAME", name) + ""
        (hone.project / f"{name}.yaml").write_text(text.replace("epochs: 3", f"epochs: 3, seed: {number}"))
    up = bring_up(hone, *(f"{name}.yaml" for name in names))
    began = time.monotonic()
    runs = {name: up.trigger(f"finetune/{name}") for name in names}
    states = {name: up.wait(run, limit_s=560).name for name, run in runs.items()}
    seconds = time.monotonic() - began
    counts = {}
    for name, run in runs.items():
        found = up.mlflow_run(run, name)
        logged = len(up.mlflow.get_metric_history(found.info.run_id, "loss"))
        counts[name] = {"status": found.info.status, "losses": logged, "steps": int(found.data.metrics["train/steps"])}
    up.stop()
    logs = {file.name: file.read_text(errors="replace") for file in (hone.home / "logs").glob("*.log")}
    locked = {name: text.count("locked") for name, text in logs.items() if "locked" in text}
    return {"states": states, "seconds": round(seconds), "mlflow": counts, "locked": locked}


def schedule(bench: Bench) -> dict[str, Any]:
    """A stage due every minute: seen firing; then the desk is away for three minutes, and one run makes up for them."""
    hone = bench.project("scheduled", RECIPE + SCHEDULED)
    up = bring_up(hone)
    fired = until(lambda: len(done := ended(up)) >= 2 and done, 240, "the schedule to fire twice")
    up.stop()
    time.sleep(190)
    up = bring_up(hone)
    came_back = time.time()
    time.sleep(55)
    late = [run for run in runs_of(up) if run.expected_start_time.timestamp() < came_back and run.id not in fired]
    states = sorted(f"{run.state_name}: {(run.state.message or '')[:60]}" for run in late)
    up.stop()
    return {"fired": len(fired), "due_while_away": len(late), "states": states}


def runs_of(up: Up) -> list[Any]:
    with up.prefect() as client:
        return list(client.read_flow_runs(limit=200))


def ended(up: Up) -> list[UUID]:
    return [run.id for run in runs_of(up) if run.state.is_completed()]


def last_step(up: Up, run: UUID, name: str) -> int:
    found = up.mlflow_run(run, name)
    return max((m.step for m in up.mlflow.get_metric_history(found.info.run_id, "loss")), default=0) if found else 0


def cases(bench: Bench) -> Iterator[tuple[str, Case]]:
    """Name and what to do, in order."""
    for number in range(REPETITIONS):
        yield f"start {number}", lambda number=number: start(bench, number)
    for how in ENDS:
        for number in range(REPETITIONS):
            yield f"{how} {number}", lambda how=how, number=number: end(bench, how, number)
    yield "four at once", lambda: four_at_once(bench)
    yield "schedule", lambda: schedule(bench)


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def report(lines: list[dict[str, Any]]) -> str:
    """The record as a page."""
    by_case = {line["case"]: line for line in lines}
    starts = [line for name, line in by_case.items() if name.startswith("start")]
    parts = [
        "# The desk: how it starts, how its runs end",
        f"`python -m benchmarks.desk WORK` on {os.cpu_count()} cores ({platform.machine()}); a tiny model, real "
        "Prefect and MLflow servers on SQLite, a real worker, real signals. Seconds.",
        "## Starting and stopping",
        "| home | healthy after | all gone after Ctrl-C |\n| --- | ---: | ---: |\n"
        + "\n".join(f"| {s['home']} | {s['up_s']:.1f} | {s['down_s']:.1f} |" for s in starts),
        "## A run in the midst of its training",
        "| how it ended | Prefect | after | MLflow | after | child gone after | checkpoints |\n"
        "| --- | --- | ---: | --- | ---: | ---: | ---: |\n" + "\n".join(_end_row(how, by_case) for how in ENDS),
        "Each three times; seconds are medians. A desk that is gone cannot be asked: what both systems say is from its "
        "next start. " + _retries(by_case),
    ]
    for name in ("four at once", "schedule"):
        if name in by_case:
            told = {key: value for key, value in by_case[name].items() if key != "case"}
            parts += [f"## {name[:1].upper()}{name[1:]}", "```json\n" + json.dumps(told, indent=1) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _retries(by_case: dict[str, dict[str, Any]]) -> str:
    """What retries did, in words."""
    lines = [line for line in by_case.values() if "retry_same_run" in line]
    same = sum(line["retry_same_run"] for line in lines)
    fresh = sum(line["fresh"] for line in lines)
    return f"Of {len(lines)} retries {same} went on in the same MLflow run, {fresh} began anew instead of going on."


def _end_row(how: str, by_case: dict[str, dict[str, Any]]) -> str:
    lines = [by_case[name] for n in range(REPETITIONS) if (name := f"{how} {n}") in by_case]

    def words(key: str) -> str:
        return ", ".join(sorted({str(line.get(key, "")) for line in lines}))

    def seconds(key: str) -> str:
        found = [line[key] for line in lines if key in line]
        return f"{median(found):.1f}" if found else ""

    gone = seconds("child_gone_s") or seconds("all_gone_s")
    return (
        f"| {how} | {words('prefect')} | {seconds('prefect_s')} | {words('mlflow')} | {seconds('mlflow_s')} | {gone} | "
        f"{words('checkpoints')} |"
    )


def main() -> None:
    """Run the cases that are not on record yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        if options.work is None:
            sys.exit("name a folder to work in")
        options.work.mkdir(parents=True, exist_ok=True)
        done = {line["case"] for line in recorded()}
        for name, case in cases(Bench(options.work.resolve())):
            if name in done:
                continue
            line = {"case": name, **case()}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line, default=str) + "\n")
            print(json.dumps(line, default=str), flush=True)
    RESULTS.with_suffix(".md").write_text(report(recorded()))


if __name__ == "__main__":
    main()
