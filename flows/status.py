"""`hone status`: what runs and serves now, and how the champions followed each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.engine import configure
from tasks.home import Home
from tasks.outbox import patiently, without_password
from tasks.registry import CHALLENGER, CHAMPION, history, reconcile
from tasks.store import Store
from tasks.tracking import Entry, client, live_runs, prepare, sweep

RECENT = 5
"""Moves of the champion that are shown for each model."""


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
    found: dict[str, Any] = {"home": str(root), "mlflow": None, "running": [], "swept": [], "models": [], "store": {}}
    print(json.dumps(found) if as_json else f"{root}: no home yet; hone run RECIPE makes one")
    return 0


def _run(entry: Entry) -> dict[str, Any]:
    names = ("run_id", "flow_run_id", "recipe", "started", "pid", "host")
    return {name: getattr(entry, name) for name in names}


def _models(home: Home) -> list[dict[str, Any]]:
    mlflow = client(home)
    registered = patiently(mlflow.search_registered_models, home)
    return [
        {
            "name": model.name,
            "champion": _version(model.aliases.get(CHAMPION)),
            "challenger": _version(model.aliases.get(CHALLENGER)),
            "history": [_move(line) for line in history(home, model.name) if line["event"] != "intent"][-RECENT:],
        }
        for model in registered
    ]


def _store(home: Home) -> dict[str, dict[str, int]]:
    usage = Store(home.store, home.materialised).usage()
    return {stage: {"artifacts": artifacts, "bytes": size} for stage, (artifacts, size) in usage.items()}


def _version(number: object) -> str | None:
    return None if number is None else str(number)


def _move(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("at", "event", "to", "before", "by", "reason")}


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    say = Console(highlight=False).print
    say(f"[bold]{found['home']}[/]  [dim]MLflow {found['mlflow']}[/]")
    for title, runs in (("running", found["running"]), ("closed now: its process had died", found["swept"])):
        for run in runs:
            say(f"  {title}: {run['recipe']}, since {run['started']}, process {run['pid']} [dim]({run['run_id']})[/]")
    if not found["running"]:
        say("  nothing is running")
    for model in found["models"]:
        serving = f"version {model['champion']} serves" if model["champion"] else "nothing serves"
        waiting = f", version {model['challenger']} waits as challenger" if model["challenger"] else ""
        say(f"  [bold]{model['name']}[/]: {serving}{waiting}")
        _print_history(say, model["history"])
    kept = found["store"].values()
    say(f"  store: {sum(s['artifacts'] for s in kept):,} artifacts, {sum(s['bytes'] for s in kept) / 2**30:.2f} GiB")


def _print_history(say: Any, moves: Sequence[dict[str, Any]]) -> None:
    for move in moves:
        change = f"{move['before'] or 'none'} → {move['to'] or 'none'}"
        say(f"      [dim]{move['at']}  {change}  {move['event']}, by {move['by']}: {move['reason']}[/]")
