"""`hone evaluate`: what a registered version is worth on today's test rows, and whether it would pass the gate now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flows.models import find, open_model
from flows.run import heed_signals
from flows.terminal import Display, StageLines, print_checks, print_metrics, print_verdict
from schemas.recipe import Gate, Recipe
from schemas.records import Check, Decision
from tasks.candidates import Candidate, registered_candidate, told
from tasks.checks import decide
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.gate import Rows, assess
from tasks.home import Home
from tasks.recorded import recorded_recipe
from tasks.registry import Registered, champion
from tasks.rollout import gate_of
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.tracking import Run, replay_unsent, sweep


def evaluate(model: str, version: str | None, overrides: Sequence[str], *, as_json: bool) -> int:
    """Measure a version, by default the champion, and put it before the gate; nothing in the registry changes.

    Args:
        model: A registered model, evaluated by the recipe it was made by, or a recipe file.
        version: Number or alias.
        overrides: Of the recipe.
        as_json: Print one JSON object.
    """
    heed_signals()
    recipe, asked, found = evaluate_version(model, version, overrides)
    if as_json:
        print(json.dumps(_result(recipe, asked, found)))
    else:
        _print(recipe, asked, found)
    return 0


def evaluate_version(
    model: str, version: str | None, overrides: Sequence[str] = ()
) -> tuple[Recipe, Registered, Judged]:  # fmt: skip
    """What `hone evaluate` finds: by which recipe, of which version, and what."""
    home, name, recipe = open_model(model, overrides)
    asked = find(home, name, version or "champion")
    recipe = recipe or recorded_recipe(home, asked)
    shown = Display()
    shown.say(f"{asked.name} version {asked.version}, on today's rows of {recipe.name}")
    with evaluation(recipe, home, asked, shown, f"evaluate {asked.name} {asked.version}", kind="evaluate") as opened:
        found = judged(*opened, asked, gate_of(recipe, asked.name), champion(home, asked.name))
    return recipe, asked, found


@dataclass(frozen=True)
class Judged:
    """A registered version, measured on today's rows and put before a gate.

    Attributes:
        run_id: MLflow run that the measures were logged to.
        run_url: Its page, where MLflow is a server.
        rows: Today's.
        candidate: The version, measured.
        serving: Whom it was compared with; none where nobody serves.
        checks: What the gate asked and found.
        decision: What follows from them.
        rows_needed: Test rows that would decide an undecidable one.
    """

    run_id: str
    run_url: str | None
    rows: Rows
    candidate: Candidate
    serving: Registered | None
    checks: tuple[Check, ...]
    decision: Decision
    rows_needed: int | None

    @property
    def gate(self) -> dict[str, Any]:
        """The gate's word, as JSON values."""
        return {
            "decision": self.decision,
            "rows_needed": self.rows_needed,
            "champion": self.serving.version if self.serving else None,
            "checks": [check.model_dump() for check in self.checks],
        }


@contextmanager
def evaluation(
    recipe: Recipe, home: Home, version: Registered, shown: Display, name: str, **tags: str
) -> Iterator[tuple[Context, Run]]:
    """An MLflow run of its own for the measures of a version; it ends as what is done in it ends."""
    sweep(home)
    replay_unsent(home)
    known = {f"hone.{tag}": value for tag, value in tags.items()}
    known["hone.model"] = f"models:/{version.name}/{version.version}"
    run = Run.start(home, recipe, name=name, tags=known)
    try:
        yield Context(recipe, home, run_id=run.run_id, observer=StageLines(home, shown)), run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finally:
        shown.stop()
    run.end("FINISHED")


def judged(context: Context, run: Run, version: Registered, gate: Gate, serving: Registered | None) -> Judged:
    """Measure a version and put it before a gate, against who serves; both go to the run.

    Args:
        context: Its recipe says where today's rows are, and how to measure.
        run: Where the measures are logged.
        version: Who wants to serve.
        gate: What is asked.
        serving: Who serves now.
    """
    rows = todays_rows(context)
    candidate = registered_candidate(context, rows.raw, rows.sides, rows.tokens, version)
    checks, _ = assess(context, gate, candidate, serving, rows)
    decision, rows_needed = decide(checks)
    found = Judged(run.run_id, run.url, rows, candidate, serving, checks, decision, rows_needed)
    record(run, candidate, found.gate)
    return found


def todays_rows(context: Context) -> Rows:
    """The rows as the source has them now, from the store where nothing has changed."""
    raw = collect(context)
    cleaned = clean(context, raw)
    sides = split(context, cleaned)
    return Rows(raw, cleaned, sides, tokenize(context, cleaned, sides))


def record(run: Run, candidate: Candidate, gate: Mapping[str, Any]) -> None:
    """Log what was found, and what the gate says to it."""
    summary = candidate.summary
    run.log_metrics([(0, {f"test/{name}": value for name, value in summary["metrics"].items()})])
    for baseline, metrics in summary["baselines"].items():
        run.log_metrics([(0, {f"baseline/{baseline}/{name}": value for name, value in metrics.items()})])
    run.log_text(candidate.report, "report.md")
    run.log_text(json.dumps(gate, indent=1), "gate.json")
    run.set_tags({"hone.gate": gate["decision"]})


def _print(recipe: Recipe, version: Registered, found: Judged) -> None:
    """The same as a person enjoys reading it."""
    summary, serving = found.candidate.summary, found.serving
    print_verdict(f"{version.name} version {version.version}", found.decision, found.rows_needed)
    print_metrics(summary["metrics"], summary["baselines"], recipe.metric)
    print_checks(found.checks)
    against = "nothing serves yet" if serving is None else f"version {serving.version} of {serving.name} serves"
    for line in (f"{summary['rows']:,} test rows; {against}", *told(found.candidate.left_out)):
        print(f"  {line}")
    print(f"  MLflow run {found.run_url or found.run_id}")


def _result(recipe: Recipe, version: Registered, found: Judged) -> dict[str, Any]:
    """What `hone evaluate --json` prints."""
    summary = found.candidate.summary
    return {
        "model": version.name,
        "version": version.version,
        "mlflow_run_id": found.run_id,
        "mlflow_url": found.run_url,
        "rows": summary["rows"],
        "left_out": found.candidate.left_out,
        "metric": recipe.metric,
        "metrics": summary["metrics"],
        "baselines": summary["baselines"],
        "slices": summary["slices"],
        "gate": found.gate,
    }
