"""`hone reproduce`: a registered version made again from its recorded recipe, rows, plan and commit, and compared.

Everything runs in a home of its own, with the code of the version's commit where hone's repository has it. Same
weights are promised on the same processor, with the same libraries; what differs is told.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.models import find, open_model
from flows.run import heed_signals
from schemas.base import REGISTERED
from schemas.errors import DamagedArtifact, Fault, Mistake, Problem
from tasks.digests import write_atomically
from tasks.forgotten import hand_on
from tasks.home import Home
from tasks.model_card import CHECKOUT, ROOMS, git_state, lineage_of
from tasks.recorded import recorded_metrics, recorded_plan, recorded_values
from tasks.register import hashes_file
from tasks.registry import Registered, files_of
from tasks.store import Store

ENVIRONMENT = ("python", "torch", "transformers", "mlflow", "hone")
"""What of the lineage can make weights differ."""
REBUILD = "flows.rebuild"
"""Module of the rebuilding process."""
COMMIT = re.compile(r"[0-9a-f]{40,64}")
"""What a commit is called; git must not take anything else that a tag may hold for an option."""
CLOSE = 1e-9
"""Largest difference between metrics that are called equal."""
EXIT_DIFFERS = 1
END_S = 30.0
"""Longest the rebuilding process may take to end once it is told to."""


@dataclass(frozen=True)
class Code:
    """The code that a version is rebuilt with.

    Attributes:
        root: Folder with hone's rooms.
        commit: Its commit; none where nobody knows.
        changed: Whether it is not quite that commit's.
        note: What is to be said of it: why it is not, or perhaps not, that of then. Empty where it is.
    """

    root: Path
    commit: str | None
    changed: bool = False
    note: str = ""


def reproduce(model: str, version: str, *, keep: bool, as_json: bool) -> int:
    """Make a version again and compare weights and metrics; 0 when both are equal, 1 when they are not.

    Args:
        model: A registered model, or the recipe file that makes it.
        version: Number or alias.
        keep: Leave the home of the rebuilt model behind, until the version is reproduced again.
        as_json: Print one JSON object.
    """
    home, name, _ = open_model(model)
    asked = find(home, name, version)
    known, metrics, plan = _lineage(asked), recorded_metrics(home, asked), recorded_plan(home, asked)
    heed_signals()
    try:
        with _folder(home, asked, keep=keep) as root:
            job, code = _job(home, asked, root), _code_of(known, root)
            _say(f"{asked.name} version {asked.version} is made again in a home of its own")
            if code.note:
                _say(code.note)
            found = _rebuilt(root, job, code.root)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command starts over") from None
    compared = compare(asked, known, found, metrics, plan)
    rebuilt = {"rebuilt": code.commit, "changed": code.changed, "note": code.note}
    compared["code"] = {"recorded": known.get("code_commit"), **rebuilt}
    compared["home"] = str(root / "home") if keep else None
    if as_json:
        print(json.dumps(compared))
    else:
        _print(compared)
    return 0 if compared["equal"] else EXIT_DIFFERS


def compare(
    version: Registered,
    known: Mapping[str, str],
    found: Mapping[str, Any],
    metrics: Mapping[str, float],
    plan: Mapping[str, str],
) -> dict[str, Any]:
    """What is equal and what is not.

    Args:
        version: The version that was made again.
        known: Its lineage.
        found: What `flows.rebuild.rebuild` gave.
        metrics: Of its test rows, as its run logged them.
        plan: By which it was trained, as its run logged it.
    """
    here = lineage_of(CHECKOUT)
    differing = {
        name: {"recorded": value, "rebuilt": found["metrics"].get(name)}
        for name, value in metrics.items()
        if not math.isclose(value, found["metrics"].get(name, math.nan), rel_tol=0, abs_tol=CLOSE)
    }
    weights = known.get("weights_sha256") == found["weights_sha256"]
    planned = {name: str(value) for name, value in found["plan"].items() if name != "reasons"}
    return {
        "model": version.name,
        "version": version.version,
        "equal": weights and not differing,
        "weights_sha256": {"recorded": known.get("weights_sha256"), "rebuilt": found["weights_sha256"]},
        "metrics_compared": len(metrics),
        "metrics_differing": differing,
        "rows": found["rows"],
        "rows_from": found["rows_from"],
        "plan": _changed(plan, planned),
        "environment": _changed({name: known[name] for name in ENVIRONMENT if name in known}, here),
        "seconds": found["seconds"],
    }


def _changed(recorded: Mapping[str, str], now: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What both know and is not the same."""
    return {
        name: {"recorded": recorded[name], "rebuilt": value}
        for name, value in now.items()
        if name in recorded and recorded[name] != value
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
    """An empty folder for the rebuilt model, gone afterwards unless it is kept and was not left by an error.

    Raises:
        Mistake: Another process is at the same version.
    """
    from filelock import FileLock, Timeout

    name = f"reproduce-{version.name}-{version.version}"
    root, lock = home.work / name, FileLock(home.locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rule = "another process is making it again at this moment"
        raise Mistake(Problem("version", version.version, rule, "wait for that one")) from None
    kept = False
    try:
        shutil.rmtree(root, ignore_errors=True)  # what a killed process left, or what was kept until now
        root.mkdir(parents=True)
        yield root
        kept = keep
    finally:
        if not kept:
            shutil.rmtree(root, ignore_errors=True)
        lock.release()


def _code_of(known: Mapping[str, str], root: Path) -> Code:
    """The code of the version's commit, below `root`; the present one where that is it, or the best there is.

    Args:
        known: The version's lineage.
        root: Folder to write into.
    """
    commit, dirty = known.get("code_commit"), known.get("code_dirty") == "true"
    here = git_state(CHECKOUT, *ROOMS)
    present, changed = here.get("git_commit"), here.get("git_dirty") == "true"
    if commit is None:
        return Code(CHECKOUT, present, changed, "nobody knows the code that made it: rebuilding with the present one")
    told = f"it was made by code at commit {commit[:12]}"
    if commit == present and changed == dirty:
        doubt = f"{told} with changes that were not committed; the present ones may be others"
        return Code(CHECKOUT, present, changed, doubt if dirty else "")
    folder = root / "code"
    if not _extracted(commit, folder):
        missing = f"{told}, which {CHECKOUT} does not have: rebuilding with the present one"
        return Code(CHECKOUT, present, changed, missing)
    if not folder.joinpath(*REBUILD.split(".")).with_suffix(".py").exists():
        unable = f"{told}, which cannot rebuild a model: rebuilding with the present one"
        return Code(CHECKOUT, present, changed, unable)
    lost = f"{told} with changes that were not committed and cannot be brought back"
    return Code(folder, commit, changed=False, note=lost if dirty else "")


def _extracted(commit: str, folder: Path) -> bool:
    """Write hone's rooms at a commit into a folder; false where the repository has no such commit."""
    if not COMMIT.fullmatch(commit):
        return False
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, "--", *ROOMS]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as rooms:
        rooms.extractall(folder, filter="data")
    return True


def _rebuilt(root: Path, job: Mapping[str, Any], code: Path) -> dict[str, Any]:
    """Have it made in a process of its own, which runs the code below `code`.

    Raises:
        Mistake: It cannot be made again.
        Fault: The process failed; what it said is on the terminal.
    """
    file, out = root / "job.json", root / "answer.json"
    write_atomically(file, json.dumps({**job, "out": str(out)}))
    ended = _run([sys.executable, "-P", "-m", REBUILD, str(file)], _environment(Path(job["home"]), code))
    if ended != 0 or not out.exists():
        raise Fault(f"the process that makes it again ended with exit code {ended}")
    answer = json.loads(out.read_text(encoding="utf-8"))
    if "mistake" in answer:
        raise Mistake.from_dict(answer["mistake"])
    if "fault" in answer:
        raise Fault(answer["fault"])
    found: dict[str, Any] = answer.get("found", answer)  # the first code that could rebuild answered with it alone
    return found


def _job(home: Home, version: Registered, root: Path) -> dict[str, Any]:
    """What the rebuilding process is told, and the home for it, which keeps out the rows that this one has forgotten.

    Raises:
        Mistake: Too little is known of the version.
    """
    known, values = _lineage(version), recorded_values(home, version)
    collect_key = known["collect_key"]
    anew = Home(root / "home")
    anew.journal.mkdir(parents=True)
    hand_on(home, anew)
    beginning = _beginning(home, version, known.get("started_from") or values["model"]["base"])
    if beginning is not None:
        # The rebuilding process asks no registry.
        values["model"] |= {"base": str(beginning.folder), "revision": None}
    return {
        "told": f"{version.name} version {version.version}",
        "recipe": values,
        "learnt": str(beginning.learnt) if beginning and "started_from" in known else None,
        "home": str(anew.root),
        "collect_key": collect_key,
        "kept": _kept(home, collect_key),
        "plan": {name: _value(text) for name, text in recorded_plan(home, version).items()} or None,
    }


@dataclass(frozen=True)
class Beginning:
    """The registered version that another one started from.

    Attributes:
        folder: Its model's files.
        learnt: What the rows are known by that it had learnt.
    """

    folder: Path
    learnt: Path


def _beginning(home: Home, version: Registered, base: str) -> Beginning | None:
    """What a version started from, where that is a registered version, too.

    Raises:
        Mistake: That one is gone.
    """
    named = REGISTERED.fullmatch(base)
    if named is None:
        return None
    try:
        before = find(home, named["name"], named["version"])
        return Beginning(files_of(home, before), hashes_file(home, before))
    except (Mistake, FileNotFoundError) as error:
        rule = f"it started from {base}, of which not all is there any more"
        raise Mistake(
            Problem("version", version.version, rule, "name a version that started from a base model")
        ) from error


def _value(text: str) -> Any:
    """A value of the plan, out of MLflow's words for it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _environment(home: Path, code: Path) -> dict[str, str]:
    """This process's environment, with another home and, before all else that Python finds, another code."""
    environment = {name: value for name, value in os.environ.items() if name != "HONE_STORE"}
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"HONE_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit code of a process that never outlives this one: it ends when its standard input closes."""
    # Ctrl-C is for this process; the pipe ends that one. Its standard output is not this command's answer.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sys.stderr, env=dict(environment), start_new_session=True
    )
    assert process.stdin is not None
    try:
        return process.wait()
    finally:
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kept(home: Home, collect_key: str) -> dict[str, Any] | None:
    """The rows of then, where the store still has them."""
    store = Store(home.store, home.materialised)
    try:
        manifest = store.find("collect", collect_key)
        if manifest is None:
            return None
        return {"folder": str(store.open("collect", collect_key)), "summary": manifest.summary}
    except DamagedArtifact as damage:
        _say(f"the rows of then are damaged in the store: {damage}")
        return None


def _say(text: str) -> None:
    print(f"hone: {text}", file=sys.stderr)


def _print(compared: Mapping[str, Any]) -> None:
    """The same as a person enjoys reading it."""
    weights, differing = compared["weights_sha256"], compared["metrics_differing"]
    count = compared["metrics_compared"]
    word = "EQUAL" if compared["equal"] else "DIFFERENT"
    print(f"{compared['model']} version {compared['version']}, made again in {compared['seconds']:.0f} s: {word}")
    if weights["recorded"] == weights["rebuilt"]:
        print(f"  weights      equal, SHA-256 {weights['recorded'][:16]}…")
    else:
        print(f"  weights      DIFFERENT: {weights['recorded'][:16]}… recorded, {weights['rebuilt'][:16]}… rebuilt")
    print(f"  metrics      {count - len(differing)} of {count} equal")
    for name, values in differing.items():
        print(f"      {name}: {values['recorded']} recorded, {values['rebuilt']} rebuilt")
    print(f"  rows         {compared['rows']:,}, from the {compared['rows_from']}")
    print(f"  code         {_code_told(compared['code'])}")
    for what in ("plan", "environment"):
        told = ", ".join(f"{name} {v['recorded']} then, {v['rebuilt']} now" for name, v in compared[what].items())
        print(f"  {what:<11}  {told or 'the same'}")
    if compared["home"]:
        print(f"  home         {compared['home']}")


def _code_told(code: Mapping[str, Any]) -> str:
    if code["rebuilt"] is None:
        return "the present one"
    return f"commit {code['rebuilt'][:12]}" + (" and what is not committed" if code["changed"] else "")
