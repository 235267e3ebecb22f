"""`hone up`: a working desk by one command. Prefect and MLflow to look at, and a worker for what is due.

Starts what is missing, deploys the recipes, says where everything is, and looks after it until Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flows.access import password_for
from flows.desk import Desk, choose_addresses
from flows.engine import configure
from flows.run import heed_signals
from schemas.errors import EnvironmentMistake, Mistake, Problem
from schemas.loading import find_recipes, load_recipe
from schemas.recipe import Recipe
from tasks import process
from tasks.desk_note import DeskNote, running_desk
from tasks.home import Home

LOCK_S = 1.0
"""How long to wait for another desk of this home that is about to end."""


def up(paths: Sequence[Path], *, prefect_port: int | None, mlflow_port: int | None, host: str, as_json: bool) -> int:
    """Bring the desk up, and stay until interrupted.

    Args:
        paths: Recipes whose deployments are served; default: all in the project's `deployments/`.
        prefect_port: Of the Prefect server; default: 4200, or another one that is free.
        mlflow_port: Of the MLflow server; default: 5000, or another one that is free.
        host: Network address to listen on; beyond this machine with a password, see `flows.access`.
        as_json: Print the addresses as one JSON object on one line once everything is healthy.
    """
    from filelock import FileLock, Timeout

    password = password_for(host)
    recipes = _Recipes(paths, strict=bool(paths))
    home = Home.open(paths[0] if paths else Path.cwd())
    lock = FileLock(home.locks / "desk.lock")
    try:
        lock.acquire(timeout=LOCK_S)
    except Timeout as timeout:
        desk = running_desk(home.root)
        where = f"at {desk.prefect_api_url.removesuffix('/api')} and {desk.mlflow_url}" if desk else "starting"
        problem = Problem("HONE_HOME", str(home.root), f"its desk is up already, {where}", "use it, or end it first")
        raise EnvironmentMistake(problem) from timeout
    with lock:
        addresses = choose_addresses(home, prefect_port=prefect_port, mlflow_port=mlflow_port, host=host)
        return _serve(Desk(home, addresses, password), home, recipes, as_json=as_json)


def _serve(desk: Desk, home: Home, recipes: _Recipes, *, as_json: bool) -> int:
    addresses = desk.addresses
    note = DeskNote(
        prefect_api_url=addresses.prefect_api_url,
        mlflow_url=addresses.mlflow_url,
        prefect_port=addresses.prefect_port,
        mlflow_port=addresses.mlflow_port,
        mlflow_store=home.mlflow_uri,
    )
    heed_signals()
    try:
        _start(desk, home, note)
        from flows.caretaker import Caretaker
        from flows.deploy import apply

        apply(recipes.load(), home)
        desk.start_worker()
        desk.wait_healthy("mlflow")
        note.write(home.root)  # from here on every command uses the desk
        with Caretaker(home, desk, recipes, say=_say) as caretaker:
            caretaker.begin()
            _announce(note, home, recipes, as_json=as_json)
            caretaker.watch()
    except KeyboardInterrupt:
        _say("stopping: runs save their state first; Ctrl-C again ends them at once")
    finally:
        _stop(desk)
    return 0


def _start(desk: Desk, home: Home, note: DeskNote) -> None:
    """Both servers at once, up to where Prefect answers; what takes long to import is imported meanwhile."""
    desk.start_prefect()
    from flows.webhook import webhook_environment
    from tasks.tracking import prepare

    prepare(home)
    desk.start_mlflow(webhook_environment(home))
    configure(home, note)  # from here on this process uses them, too
    process.import_meanwhile("prefect", "mlflow")
    desk.wait_healthy("prefect")


def _stop(desk: Desk) -> None:
    try:
        desk.stop()
    except KeyboardInterrupt:
        desk.stop(at_once=True)


class _Recipes:
    """The recipes served, read again when their files change.

    Args:
        paths: Files; none: all in the project's `deployments/`.
        strict: A recipe that cannot be read is a mistake; else it is left out, and said so.
    """

    def __init__(self, paths: Sequence[Path], *, strict: bool) -> None:
        self._paths = tuple(paths)
        self._seen: dict[Path, int] = {}
        if strict:
            for path in paths:
                load_recipe(path)

    def load(self) -> list[Recipe]:
        """All that can be read; what is wrong with the others goes to standard error."""
        files = self._paths or tuple(find_recipes(Path.cwd()))
        self._seen = {file: _changed_at(file) for file in files}
        recipes: dict[str, Recipe] = {}
        for file in files:
            try:
                recipe = load_recipe(file)
            except Mistake as mistake:
                for problem in mistake.problems:
                    _say(f"{file.name} is not served: {problem}")
                continue
            if recipe.name in recipes:
                _say(f"{file.name} is not served: another recipe is named {recipe.name}; rename one of them")
                continue
            recipes[recipe.name] = recipe
        return list(recipes.values())

    def changed(self) -> bool:
        """Whether files have come, gone or changed since they were read."""
        return {file: _changed_at(file) for file in self._paths or find_recipes(Path.cwd())} != self._seen


def _changed_at(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_mtime_ns
    return 0


def _announce(note: DeskNote, home: Home, recipes: _Recipes, *, as_json: bool) -> None:
    prefect = note.prefect_api_url.removesuffix("/api")
    served = [recipe.name for recipe in recipes.load()]
    if as_json:
        found = {"prefect_api_url": note.prefect_api_url, "prefect_ui_url": prefect, "mlflow_url": note.mlflow_url}
        print(json.dumps({**found, "home": str(home.root), "recipes": served, "pid": os.getpid()}), flush=True)
        return
    print(
        f"""
  Prefect   {prefect}   forms, runs, schedules
  MLflow    {note.mlflow_url}   metrics, models, who serves
  recipes   {", ".join(served) or "none in deployments/"}
  home      {home.root}

  Ctrl-C stops everything.
""",
        flush=True,
    )


def _say(line: str) -> None:
    print(f"hone: {line}", file=sys.stderr, flush=True)
