"""What a person sees in the terminal: a line per stage, a bar while training, and the summary at the end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.records import Artifact, Check, CheckOutcome, Decision, ModelVersion, Outcome, Partial, Summary, Verdict
from schemas.tune import Trial
from tasks.child import children
from tasks.context import Observer
from tasks.home import Home
from tasks.space import said

Metrics = Mapping[str, float]
"""Name → value; `<name>_low` and `<name>_high` are the ends of its interval."""
ROOMS = ("flows", "tasks")
MARGIN = 2
"""Empty columns on either side of what ends a run."""
PLAIN_EVERY = 0.1
"""Share of the training between two lines where the output is not a terminal."""


class _Warnings(logging.Handler):
    """Warnings of ours, as lines between the others."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.console.print(Text(f"  ! {record.getMessage()}", style="yellow"))


class Display:
    """Shows a run on standard error as it goes."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._warnings = _Warnings(self)
        for room in ROOMS:
            logging.getLogger(room).addHandler(self._warnings)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._plain_from = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def computing(self, stage: str) -> None:
        """A stage has begun."""
        if self.console.is_terminal and self._bar is None:
            self.console.print(Text(f"  … {stage}", style="dim"), end="\r")

    def event(self, event: dict[str, Any]) -> None:
        """Training got on."""
        if "steps" not in event:
            return
        if not self.console.is_terminal:
            self._say_share(event)
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  [bold]train[/]"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("train", total=event["steps"], rate="")
            self._bar.start()
        assert self._task is not None
        rate = event.get("tokens_per_second")
        self._bar.update(self._task, completed=event["step"], rate=f"{rate:,.0f} tokens/s" if rate else "")

    def finished(self, outcome: Outcome) -> None:
        """A stage ended well."""
        if outcome.stage in {"train", "trial"} and self._bar is not None:
            self._bar.stop()
            self._bar = None
        mark = Text("  · ", style="dim") if outcome.cached else Text("  ✓ ", style="green")
        seconds = "cached" if outcome.cached else f"{outcome.seconds:.1f} s"
        line = Text.assemble(mark, f"{outcome.stage:<11}", (f"{seconds:>8}  ", "dim"), gist(outcome))
        if outcome.why and outcome.why != "first run":
            line.append(f"  ({outcome.why})", style="dim")
        self.console.print(line, soft_wrap=True)

    def stop(self) -> None:
        """Leave the terminal as it was, however the run ended."""
        if self._bar is not None:
            self._bar.stop()
        for room in ROOMS:
            logging.getLogger(room).removeHandler(self._warnings)

    def _say_share(self, event: dict[str, Any]) -> None:
        share = event["step"] / event["steps"]
        if share >= self._plain_from:
            self._plain_from = share + PLAIN_EVERY
            rate = event.get("tokens_per_second")
            speed = f", {rate:,.0f} tokens/s" if rate else ""
            self.say(f"    train: step {event['step']} of {event['steps']}{speed}")


class StageLines(Observer):
    """Shows the stages of what is not a pipeline run: a dry run, an evaluation.

    Args:
        home: Where the child process logs.
        display: Where to show them.
        warm: Start the child as soon as something is computed: it will have work.
    """

    def __init__(self, home: Home, display: Display, *, warm: bool = True) -> None:
        self._home = home
        self._display = display
        self._warm = warm

    def computing(self, stage: str) -> None:
        """Start the child early."""
        if self._warm:
            children.warm(self._home.logs)
        self._display.computing(stage)

    def finished(self, outcome: Outcome) -> None:
        """A stage ended well."""
        self._display.finished(outcome)


display: ContextVar[Display | None] = ContextVar("display", default=None)
"""Set by a command that has a terminal."""


GISTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "data-report": lambda s: (
        ", ".join(f"{what} drift {verdict}" for what, verdict in s["drift"].items()) or "first snapshot"
    ),
    "collect": lambda s: f"{s['rows']:,} rows",
    "clean": lambda s: (
        f"{s['rows']:,} kept, {sum(s['quarantined'].values()):,} quarantined, {s['repaired']:,} repaired"
    ),
    "split": lambda s: f"train {s['train']:,}, validation {s['validation']:,}, test {s['test']:,}",
    "tokenize": lambda s: (
        f"{sum(s['tokens'].values()):,} tokens, longest {s['longest']}, {s['truncated_rows']:,} rows cut"
    ),
    "replay": lambda s: f"{s['new']:,} new rows, {s['replayed']:,} of {s['known']:,} known ones again",
    "train": lambda s: f"{s['steps']:,} steps, {s['tokens_per_second']:,.0f} tokens/s, best at step {s['best_step']:,}",
    "subset": lambda s: f"{s['rows']:,} rows, {s['tokens']:,} tokens",
    "validate": lambda s: f"{s['metric']} {s['value']:.4f} on {s['rows']:,} validation rows",
    "curve": lambda s: f"{len(s['points'])} points, {s['verdict']}",
    "tune": lambda s: s["told"],
    "trivial": lambda s: ", ".join(s["chosen"]),
    "pace": lambda s: (
        f"{s['latency_ms_p50']:.1f} ms a request, {s['rows_per_second']:,.0f} rows/s, {s['size_mb']:,.1f} MB"
    ),
    "compare": lambda s: s["told"],
    "evaluate": lambda s: f"{s['metric']} {s['metrics'][s['metric']]:.4f} on {s['rows']:,} test rows",
}
"""Stage → its summary in a few words."""


VERDICTS: dict[Decision, tuple[str, str]] = {
    "promote": ("gate passed", "bold green"),
    "challenger": ("waits as challenger: not shown to be better", "bold yellow"),
    "undecidable": ("undecidable: too few test rows", "bold yellow"),
    "reject": ("gate failed", "bold red"),
}
"""Verdict → a few words, and their style."""
MARKS: dict[CheckOutcome, tuple[str, str]] = {
    "passed": ("✓ ", "green"),
    "failed": ("✗ ", "red"),
    "undecidable": ("? ", "yellow"),
    "not better": ("~ ", "yellow"),
}


def gist(outcome: Outcome) -> str:
    """What a stage ended with, in a few words."""
    match outcome:
        case Artifact() if outcome.stage in GISTS:
            return GISTS[outcome.stage](outcome.summary)
        case Verdict():
            others = [check.name for check in outcome.checks if not check.passed]
            return f"{outcome.decision}: {', '.join(others)}" if others else outcome.decision
        case Trial():
            return _gist_of_trial(outcome)
        case ModelVersion():
            return f"{outcome.name} version {outcome.version} {' '.join(outcome.aliases)}"
    return ""


def _gist_of_trial(trial: Trial) -> str:
    value = "" if trial.value is None else f"  {trial.value:.4f}"
    values = ", ".join(f"{field.rpartition('.')[2]} {said(each)}" for field, each in trial.values.items())
    ended = {"complete": "", "pruned": f", given up at {trial.reached:.0%}", "failed": f", failed: {trial.told}"}
    return f"{trial.number}{value}{ended[trial.state]}  {values or 'the recipe as it is'}"


def print_summary(summary: Summary) -> None:
    """The end of a run, as a person enjoys reading it."""
    console = Console(highlight=False)
    console.print()
    console.print(Padding(Group(*_headline(summary)), (0, MARGIN)))
    console.print(Padding(_metrics_table(summary.metrics, summary.baselines, summary.metric), (1, MARGIN, 0, MARGIN)))
    console.print(Padding(_gate_table(summary.gate.checks, console), (1, MARGIN, 0, MARGIN)))
    console.print(Padding(Group(*_footer(summary)), (1, MARGIN)))


def print_partial(partial: Partial) -> None:
    """The end of a run that stopped after a stage; what the stages found is above it already."""
    run = f"; MLflow run {partial.mlflow_url or partial.mlflow_run_id}" if partial.mlflow_run_id else ""
    line = f"stopped after {partial.until}, {partial.seconds:.1f} s in all{run}"
    Console(highlight=False).print(Padding(Text(line, style="dim"), (1, MARGIN)))


def print_verdict(what: str, decision: Decision, rows_needed: int | None) -> None:
    """What was put before a gate, and the gate's word."""
    word, style = VERDICTS[decision]
    needed = f"; about {rows_needed:,} would decide" if rows_needed else ""
    line = Text.assemble((what, "bold"), (f"  {word}{needed}", style))
    Console(highlight=False).print(Padding(line, (1, MARGIN, 0, MARGIN)))


def print_metrics(metrics: Metrics, baselines: Mapping[str, Metrics], decides: str) -> None:
    """The metrics with their intervals, beside the baselines'."""
    Console(highlight=False).print(Padding(_metrics_table(metrics, baselines, decides), (1, MARGIN, 0, MARGIN)))


def print_checks(checks: Sequence[Check]) -> None:
    """What a gate asked, and what it found."""
    console = Console(highlight=False)
    console.print(Padding(_gate_table(checks, console), (1, MARGIN)))


def _headline(summary: Summary) -> list[Text]:
    model = summary.model
    word, style = VERDICTS[summary.gate.decision]
    aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
    known = ", registered by an earlier run" if model.cached else ""
    return [
        Text.assemble(
            (f"{model.name} version {model.version}{aliases}", "bold"),
            (f"  {word}", style),
            (known, "dim"),
        )
    ]


def _metrics_table(metrics: Metrics, baselines: Mapping[str, Metrics], decides: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("test metric")
    table.add_column("model", justify="right")
    for name in baselines:
        table.add_column(name, justify="right", style="dim")
    names = [n for n in metrics if f"{n}_low" in metrics]
    for name in sorted(names, key=lambda n: n != decides):
        point, low, high = (metrics[key] for key in (name, f"{name}_low", f"{name}_high"))
        value = f"{point:.3f}  [{low:.3f}, {high:.3f}]"
        others = [f"{scores[name]:.3f}" if name in scores else "" for scores in baselines.values()]
        table.add_row(name, Text(value, style="bold" if name == decides else ""), *others)
    return table


def _gate_table(checks: Sequence[Check], console: Console) -> Table:
    """A line for each check; where the terminal is too narrow for that, what was found below what was asked."""
    marked = [Text.assemble(Text(*MARKS[check.outcome]), check.name) for check in checks]
    wide = _table_of("gate", "rule", "found")
    for name, check in zip(marked, checks, strict=True):
        wide.add_row(name, check.rule, check.found)
    if Measurement.get(console, console.options, wide).maximum + 2 * MARGIN <= console.width:
        return wide
    narrow = _table_of("gate", "rule, and what was found")
    for name, check in zip(marked, checks, strict=True):
        narrow.add_row(name, Text.assemble(check.rule, "\n", (check.found, "dim")))
    return narrow


def _table_of(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _footer(summary: Summary) -> list[Text]:
    spent = sorted((s for s in summary.stages if not s.cached), key=lambda s: -s.seconds)
    where = ", ".join(f"{s.name} {s.seconds:.1f}" for s in spent[:4] if s.seconds >= 0.1) or "everything was cached"
    lines = [Text(f"{summary.seconds:.1f} s in all: {where}", style="dim")]
    if summary.started_from:
        rows = summary.rows
        learnt = f"{summary.started_from} learnt {rows['new']:,} new rows, and {rows['replayed']:,} again"
        lines.append(Text(learnt, style="dim"))
    quarantined = summary.rows["quarantined"]
    if quarantined:
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(quarantined.items(), key=lambda i: -i[1])[:4]
        )
        lines.append(Text(f"{sum(quarantined.values()):,} rows quarantined: {reasons}", style="dim"))
    run = summary.mlflow_url or f"{summary.mlflow_run_id}; to see it in a browser: {_command()} up"
    lines.append(Text(f"MLflow run {run}", style="dim"))
    lines.append(Text(f'Use it: mlflow.pyfunc.load_model("models:/{summary.model.name}/{summary.model.version}")'))
    return lines


def _command() -> str:
    """How this program is called here: by its path, as it was, where no shell finds its name."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "hone" and which("hone") is None else "hone"
