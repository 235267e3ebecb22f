"""`hone reproduce`: a registered version made again from its recorded recipe, rows and commit, and compared.

Everything runs in a home of its own, with the code of the version's commit where hone's repository has it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.models import find, open_model
from schemas.errors import Fault, Mistake, Problem
from schemas.recipe import Recipe
from tasks.digests import write_atomically
from tasks.home import Home
from tasks.model_card import CHECKOUT, git_state, lineage_of
from tasks.recorded import recorded_metrics, recorded_recipe
from tasks.registry import Registered
from tasks.store import Store

ENVIRONMENT = ("python", "torch", "transformers", "mlflow", "hone")
"""What of the lineage can make weights differ."""
CLOSE = 1e-9
"""Largest difference between metrics that are called equal."""
EXIT_DIFFERS = 1


def reproduce(model: str, version: str, *, keep: bool, as_json: bool) -> int:
    """Make a version again and compare weights and metrics; 0 when both are equal, 1 when they are not.

    Args:
        model: A registered model, or the recipe file that makes it.
        version: Number or alias.
        keep: Leave the home of the rebuilt model behind.
        as_json: Print one JSON object.
    """
    home, name, _ = open_model(model)
    asked = find(home, name, version)
    recipe = recorded_recipe(home, asked)
    known = _lineage(asked)
    with _folder(home, asked, keep=keep) as root, _code_of(known, home) as code:
        found = _rebuilt(home, recipe, known, root, code)
    compared = compare(asked, known, found, recorded_metrics(home, asked)) | {
        "code": known.get("code_commit", "") if code != CHECKOUT else git_state(CHECKOUT).get("git_commit", ""),
        "home": str(root) if keep else None,
    }
    if as_json:
        print(json.dumps(compared))
    else:
        _print(compared)
    return 0 if compared["equal"] else EXIT_DIFFERS


def compare(
    version: Registered, known: Mapping[str, str], found: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, Any]:
    """What is equal and what is not.

    Args:
        version: The version that was made again.
        known: Its lineage.
        found: What `flows.rebuild.rebuild` gave.
        metrics: Of its test rows, as its run logged them.
    """
    here = lineage_of(CHECKOUT)
    differing = {
        name: {"recorded": value, "rebuilt": found["metrics"].get(name)}
        for name, value in metrics.items()
        if not math.isclose(value, found["metrics"].get(name, math.nan), rel_tol=0, abs_tol=CLOSE)
    }
    weights = known.get("weights_sha256") == found["weights_sha256"]
    environment = {
        name: {"recorded": known[name], "here": here[name]}
        for name in ENVIRONMENT
        if name in known and name in here and known[name] != here[name]
    }
    return {
        "model": version.name,
        "version": version.version,
        "equal": weights and not differing,
        "weights_sha256": {"recorded": known.get("weights_sha256"), "rebuilt": found["weights_sha256"]},
        "metrics_compared": len(metrics),
        "metrics_differing": differing,
        "rows": found["rows"],
        "rows_from": found["rows_from"],
        "environment": environment,
        "seconds": found["seconds"],
    }


def _lineage(version: Registered) -> dict[str, str]:
    """What the version's tags know of where it comes from.

    Raises:
        Mistake: Too little to make it again.
    """
    known = {key.removeprefix("hone."): value for key, value in version.tags.items() if key.startswith("hone.")}
    lacking = [name for name in ("weights_sha256", "collect_key") if name not in known]
    if lacking:
        rule = f"was registered without {' and '.join(lacking)}"
        raise Mistake(Problem("version", version.version, rule, "name a version that this hone registered"))
    return known


@contextmanager
def _folder(home: Home, version: Registered, *, keep: bool) -> Iterator[Path]:
    """An empty home for the rebuilt model."""
    root = home.work / f"reproduce-{version.name}-{version.version}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        yield root
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _code_of(known: Mapping[str, str], home: Home) -> Iterator[Path]:
    """A checkout of hone at the version's commit; the present one where that is it, or where there is no other."""
    commit, here = known.get("code_commit"), git_state(CHECKOUT)
    told = f"the version was made by code at commit {(commit or 'unknown')[:12]}"
    if known.get("code_dirty") == "true":
        _say(f"{told} with changes that were not committed: they cannot be brought back")
    if commit is None or (commit == here.get("git_commit") and here.get("git_dirty") != "true"):
        yield CHECKOUT
        return
    folder = home.work / f"code-{commit[:12]}"
    if not _git("worktree", "add", "--force", "--detach", str(folder), commit):
        _say(f"{told}, which {CHECKOUT} does not have: rebuilding with the present code")
        yield CHECKOUT
        return
    try:
        _say(f"{told}: rebuilding with it")
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> bool:
    done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def _rebuilt(home: Home, recipe: Recipe, known: Mapping[str, str], root: Path, code: Path) -> dict[str, Any]:
    """Have it made in a process of its own, which runs the code below `code`.

    Raises:
        Fault: That process failed; what it said is on the terminal.
    """
    job, out = root / "job.json", root / "found.json"
    spec = {
        "recipe": recipe.model_dump(mode="json"),
        "home": str(root / "home"),
        "collect_key": known["collect_key"],
        "kept": _kept(home, known["collect_key"]),
        "out": str(out),
    }
    write_atomically(job, json.dumps(spec))
    environment = {name: value for name, value in os.environ.items() if name != "HONE_STORE"}
    environment |= {"HONE_HOME": str(root / "home"), "PYTHONPATH": str(code)}
    command = [sys.executable, "-P", "-m", "flows.rebuild", str(job)]
    done = subprocess.run(command, cwd=home.project, env=environment, check=False)
    if done.returncode != 0 or not out.exists():
        raise Fault(f"{' '.join(command[2:])} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _kept(home: Home, collect_key: str) -> dict[str, Any] | None:
    """The rows of then, where the store still has them."""
    store = Store(home.store, home.materialised)
    manifest = store.find("collect", collect_key)
    if manifest is None:
        return None
    return {"folder": str(store.open("collect", collect_key)), "summary": manifest.summary}


def _say(text: str) -> None:
    print(f"hone: {text}", file=sys.stderr)


def _print(compared: Mapping[str, Any]) -> None:
    weights, differing = compared["weights_sha256"], compared["metrics_differing"]
    equal_weights = weights["recorded"] == weights["rebuilt"]
    print(f"{compared['model']} version {compared['version']}, made again in {compared['seconds']:.0f} s")
    print(f"  rows     {compared['rows']:,}, from the {compared['rows_from']}")
    print(
        f"  weights  {weights['recorded'][:16]}… recorded, {weights['rebuilt'][:16]}… rebuilt: {_word(equal_weights)}"
    )
    print(f"  metrics  {compared['metrics_compared'] - len(differing)} of {compared['metrics_compared']} equal")
    for name, values in differing.items():
        print(f"      {name}: {values['recorded']} recorded, {values['rebuilt']} rebuilt")
    for name, values in compared["environment"].items():
        print(f"  {name}  {values['recorded']} then, {values['here']} here")


def _word(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"
