"""`hone status`: what runs and serves now, and how the champions followed each other."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.engine import configure
from tasks.desk_note import running_desk
from tasks.home import Home
from tasks.outbox import patiently, without_password
from tasks.promotion_journal import Line, history
from tasks.registry import CHALLENGER, CHAMPION, find_version, last_move, reconcile, registered_models
from tasks.store import Store
from tasks.tracking import Entry, client, live_runs, prepare, sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel
    from rich.console import Console

RECENT = 5
"""Moves of the champion that are shown for each model."""
GATE = {
    "promote": "the gate let it through",
    "challenger": "the gate found it good, but not better than the champion",
    "undecidable": "the gate had too few test rows to decide",
    "reject": "the gate rejected it",
    None: "no gate has judged it",
}
"""Decision of the gate, in words."""


def status(*, as_json: bool) -> int:
    """Show the home's runs and models; close what dead processes left behind on the way."""
    root = Home.locate(Path.cwd())
    if not root.exists():
        return _nothing_yet(root, as_json=as_json)
    home = Home.open(Path.cwd())
    configure(home)
    prepare(home)
    swept = sweep(home)
    reconcile(home)
    found = {
        "home": str(home.root),
        "mlflow": without_password(home.mlflow_uri),
        "desk": _desk(home),
        "running": [_run(entry) for entry in live_runs(home)],
        "swept": [_run(entry) for entry in swept],
        "models": _models(home),
        "store": _store(home),
    }
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)
    return 0


def _nothing_yet(root: Path, *, as_json: bool) -> int:
    found: dict[str, Any] = {
        "home": str(root),
        "mlflow": None,
        "desk": None,
        "running": [],
        "swept": [],
        "models": [],
        "store": {},
    }
    print(json.dumps(found) if as_json else f"{root}: no home yet; hone run RECIPE makes one")
    return 0


def _desk(home: Home) -> dict[str, str] | None:
    """Where the desk is, when it is up."""
    desk = running_desk(home.root)
    return {"prefect": desk.prefect_api_url.removesuffix("/api"), "mlflow": desk.mlflow_url} if desk else None


def _run(entry: Entry) -> dict[str, Any]:
    names = ("run_id", "flow_run_id", "recipe", "started", "pid", "host")
    return {name: getattr(entry, name) for name in names}


def _models(home: Home) -> list[dict[str, Any]]:
    mlflow = client(home)
    return [_model(home, mlflow, model) for model in patiently(lambda: list(registered_models(mlflow)), home)]


def _model(home: Home, mlflow: MlflowClient, model: RegisteredModel) -> dict[str, Any]:
    """A model's champion, challenger and latest moves, without intents: those that a crash left are closed by now."""
    moves = [line for line in history(home, model.name) if line["event"] != "intent"]
    champion = _version(home, mlflow, model, CHAMPION)
    last = last_move(model)
    if champion and last and last["to"] == champion["version"]:
        champion |= {"since": last["at"], "by": last["by"], "reason": last["reason"]}
    return {
        "name": model.name,
        "champion": champion,
        "challenger": _version(home, mlflow, model, CHALLENGER),
        "history": [_move(line) for line in moves[-RECENT:]],
    }


def _version(home: Home, mlflow: MlflowClient, model: RegisteredModel, alias: str) -> dict[str, Any] | None:
    """The version an alias points to, with what the gate said of it."""
    number = str(model.aliases.get(alias, ""))
    found = patiently(lambda: find_version(mlflow, model.name, number), home) if number else None
    return {"version": found.version, "gate": found.gate} if found else None


def _store(home: Home) -> dict[str, dict[str, int]]:
    usage = Store(home.store, home.materialised).usage()
    return {stage: {"artifacts": artifacts, "bytes": size} for stage, (artifacts, size) in usage.items()}


def _move(line: Line) -> dict[str, Any]:
    names = ("at", "event", "to", "before", "by", "reason", "rolls_back")
    return {name: line.get(name) for name in names} | {"what": _what(line)}


def _what(line: Line) -> str:
    """A line's event, in words for people."""
    match line["event"]:
        case "confirmed":
            return "rolled back" if line.get("rolls_back") else "promoted"
        case "by hand":
            return "moved in MLflow"
        case "elsewhere":
            return "rolled back in another home" if line.get("rolls_back") else "promoted in another home"
        case "undone":
            return "cut short, not made"
        case event:
            return str(event)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    say = console.print
    say(f"[bold]{escape(found['home'])}[/]  [dim]MLflow {escape(found['mlflow'])}[/]")
    if found["desk"]:
        say(f"  the desk is up: Prefect {found['desk']['prefect']}, MLflow {found['desk']['mlflow']}")
    for title, runs in (("running", found["running"]), ("closed now: its process had died", found["swept"])):
        for run in runs:
            say(f"  {title}: {run['recipe']}, since {run['started']}, process {run['pid']} [dim]({run['run_id']})[/]")
    if not found["running"]:
        say("  nothing is running")
    kept = found["store"].values()
    say(f"  store: {sum(s['artifacts'] for s in kept):,} artifacts, {sum(s['bytes'] for s in kept) / 2**30:.2f} GiB")
    for model in found["models"]:
        _print_model(console, model)


def _print_model(console: Console, model: dict[str, Any]) -> None:
    """Who serves and who waits, then the latest moves; names and reasons are shown as they are."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(model["name"], style="bold"))
    console.print(Text(f"  champion    {_champion(model['champion'])}"))
    if model["challenger"]:
        waiting = f"version {model['challenger']['version']} waits; {_gate(model['challenger']['gate'])}"
        console.print(Text(f"  challenger  {waiting}"))
    moves = Table.grid(padding=(0, 2))
    for move in model["history"]:
        change = f"{move['before'] or 'none'} → {move['to'] or 'none'}"
        why = f"by {move['by']}: {move['reason']}"
        moves.add_row(*(Text(cell) for cell in (_minute(move["at"]), change, move["what"], why)), style="dim")
    if model["history"]:
        console.print(Padding(moves, (0, 0, 0, 2)))


def _champion(champion: dict[str, Any] | None) -> str:
    if champion is None:
        return "nothing serves"
    since = f", since {_minute(champion['since'])}" if "since" in champion else ""
    warning = "" if champion["gate"] == "promote" else f"; {_gate(champion['gate'])}"
    return f"version {champion['version']} serves{since}{warning}"


def _gate(decision: str | None) -> str:
    return GATE.get(decision, f"the gate says {decision}")


def _minute(at: str) -> str:
    """A time of the journal in the local zone, to the minute."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M")
