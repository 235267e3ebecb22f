"""The registry: who serves, who waits, and how that changes.

Aliases: `champion` serves, `challenger` is the newest candidate that does not. MLflow has no compare-and-set, so moves
of `champion` are serialised by a file lock, guarded by the champion that is expected, and journalled before and after:
`<home>/journal/promotions.jsonl`. A lock file serialises one machine; under a server the caller adds a Prefect limit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import Mistake, Problem
from tasks.home import Home
from tasks.outbox import patiently
from tasks.tracking import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        model_id: The logged model behind it; empty for a version that hone did not register.
        tags: All of its tags.
        aliases: What points to it.
    """

    name: str
    version: str
    run_id: str
    model_id: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def identity(self) -> str | None:
        """Digest of its files; none for a version that hone did not register."""
        return self.tags.get("hone.identity")

    @property
    def rolled_back(self) -> bool:
        """Whether it was champion and was taken back."""
        return "hone.rolled_back" in self.tags


def champion(home: Home, name: str) -> Registered | None:
    """The version that serves, or none."""
    mlflow = client(home)

    def find() -> Registered | None:
        serving = aliases_of(mlflow, name).get(CHAMPION)
        return version_of(mlflow, name, serving) if serving else None

    return patiently(find, home)


def files_of(home: Home, registered: Registered, inside: str = "artifacts/model") -> Path:
    """A local copy of a folder or file of a registered model, or the thing itself where MLflow keeps it here.

    Raises:
        Fault: MLflow is away.
        FileNotFoundError: The version has no such file.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    mlflow = client(home)
    location = patiently(lambda: mlflow.get_model_version_download_uri(registered.name, registered.version), home)
    if location.startswith(("file:", "/")):
        local = Path(local_file_uri_to_path(location)) / inside
    else:
        local = home.materialised / "models" / hashlib.sha256(location.encode()).hexdigest()[:32] / inside
        if not local.exists():
            patiently(lambda: _download(home, location, inside, local), home)
    if not local.exists():
        raise FileNotFoundError(f"{registered.name} version {registered.version} has no {inside}")
    return local


def _download(home: Home, location: str, inside: str, local: Path) -> None:
    """Fetch a part of a logged model, whole or not at all; one that is not there is left out."""
    from mlflow.artifacts import download_artifacts, list_artifacts

    there = list_artifacts(artifact_uri=f"{location}/{posixpath.dirname(inside)}", tracking_uri=home.mlflow_uri)
    if posixpath.basename(inside) not in {posixpath.basename(found.path) for found in there}:
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=local.parent) as draft:
        uri = f"{location}/{inside}"
        fetched = download_artifacts(artifact_uri=uri, dst_path=draft, tracking_uri=home.mlflow_uri)
        if not local.exists():  # another process may have been faster
            Path(fetched).rename(local)


def promote(
    home: Home,
    name: str,
    new_version: str,
    *,
    expected_champion: str | None,
    by: str,
    reason: str,
    even_if_rolled_back: bool = False,
) -> tuple[str, ...]:
    """Make a version champion, provided that the champion is still the one the decision was based on.

    Args:
        home: Whose MLflow it is.
        name: Registered model.
        new_version: Who shall serve.
        expected_champion: Version that serves now; none when nothing does.
        by: Who decided.
        reason: Why.
        even_if_rolled_back: Let a version return that was taken back once.

    Returns:
        The version's aliases.

    Raises:
        Mistake: Another champion serves by now, or the version was rolled back.
    """
    from filelock import FileLock

    with FileLock(home.locks / f"promote-{name}.lock"):
        mlflow = client(home)
        _reconcile(home, mlflow, name)
        serving = patiently(lambda: aliases_of(mlflow, name).get(CHAMPION), home)
        candidate = patiently(lambda: version_of(mlflow, name, new_version), home)
        if serving == new_version:
            return candidate.aliases
        move = Move(name, new_version, expected_champion, by, reason)
        if serving != expected_champion:
            move.note(home, "refused", serving=serving)
            raise Mistake(
                Problem(
                    "champion", serving,
                    f"version {new_version} of {name} was measured against champion {expected_champion}",
                    "run the gate again, against the champion that serves now",
                )
            )  # fmt: skip
        if candidate.rolled_back and not even_if_rolled_back:
            move.note(home, "refused", rolled_back=candidate.tags["hone.rolled_back"])
            raise Mistake(
                Problem(
                    "version", new_version, f"was rolled back: {candidate.tags['hone.rolled_back']}",
                    "promote it by hand, saying that it may return",
                )
            )  # fmt: skip
        _carry_out(home, mlflow, move)
        return patiently(lambda: version_of(mlflow, name, new_version), home).aliases


def rollback(home: Home, name: str, *, by: str, reason: str) -> Registered | None:
    """Let the former champion serve again, and mark the present one so that it never returns by itself.

    Returns:
        Who serves now; none when the champion was the first.

    Raises:
        Mistake: Nothing serves.
    """
    from filelock import FileLock

    with FileLock(home.locks / f"promote-{name}.lock"):
        mlflow = client(home)
        _reconcile(home, mlflow, name)
        present = champion(home, name)
        if present is None:
            raise Mistake(Problem("champion", None, f"no version of {name} serves", "promote one first"))
        former = present.tags.get("hone.champion_before") or None
        _carry_out(home, mlflow, Move(name, former, present.version, by, reason, rolls_back=True))
    return champion(home, name)


def reconcile(home: Home) -> list[dict[str, Any]]:
    """Finish what a crash left half done, and note champions that a person moved in MLflow's own UI.

    A move that was decided but not made is made while the champion it was decided against still serves, else undone.

    Returns:
        The journal lines that were added.
    """
    from filelock import FileLock

    names = sorted({line["name"] for line in history(home)})
    mlflow = client(home) if names else None
    added = []
    for name in names:
        with FileLock(home.locks / f"promote-{name}.lock"):
            added += _reconcile(home, mlflow, name)
    return added


def history(home: Home, name: str | None = None) -> list[dict[str, Any]]:
    """The journal of promotions, oldest first; of one model, or of all."""
    file = _promotions(home)
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the line a crash cut short
            lines.append(json.loads(text))
    return [line for line in lines if name in {None, line["name"]}]


@dataclass(frozen=True)
class Move:
    """One move of the champion alias.

    Attributes:
        to: Version that shall serve; none takes the alias away.
        before: Version that serves until then.
        rolls_back: Whether `before` is taken back.
        id: Joins the lines of the journal.
    """

    name: str
    to: str | None
    before: str | None
    by: str
    reason: str
    rolls_back: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def note(self, home: Home, event: str, **more: Any) -> dict[str, Any]:
        """Append a line to the journal, on the disk before this returns."""
        line = {"event": event, "at": _now(), **self.__dict__, **more}
        file = _promotions(home)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as journal:
            # A line that a crash cut short must not swallow this one.
            if journal.tell() and not file.read_bytes().endswith(b"\n"):
                journal.write(b"\n")
            journal.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        return line


def _carry_out(home: Home, mlflow: MlflowClient, move: Move) -> None:
    move.note(home, "intent")
    _set_champion(home, mlflow, move)
    _finish(home, mlflow, move)


def _set_champion(home: Home, mlflow: MlflowClient, move: Move) -> None:
    if move.to is None:
        patiently(lambda: mlflow.delete_registered_model_alias(move.name, CHAMPION), home)
    else:
        to = move.to
        patiently(lambda: mlflow.set_registered_model_alias(move.name, CHAMPION, to), home)


def _finish(home: Home, mlflow: MlflowClient, move: Move) -> dict[str, Any]:
    """What follows the alias: tags that tell the story in MLflow, and the journal's last word."""
    if move.before is not None:
        word = "hone.rolled_back" if move.rolls_back else "hone.was_champion"
        _tag(home, mlflow, move.name, move.before, {word: f"until {_now()}, by {move.by}: {move.reason}"})
    if move.to is not None and not move.rolls_back:
        _tag(home, mlflow, move.name, move.to, {
            "hone.champion_before": move.before or "",
            "hone.promoted": f"{_now()}, by {move.by}: {move.reason}",
        })  # fmt: skip
    if move.to is not None and patiently(lambda: aliases_of(mlflow, move.name), home).get(CHALLENGER) == move.to:
        patiently(lambda: mlflow.delete_registered_model_alias(move.name, CHALLENGER), home)
    return move.note(home, "confirmed")


def _reconcile(home: Home, mlflow: MlflowClient | None, name: str) -> list[dict[str, Any]]:
    """See `reconcile`; the caller holds the lock."""
    lines = history(home, name)
    if not lines or mlflow is None:
        return []
    added = []
    serving = patiently(lambda: aliases_of(mlflow, name).get(CHAMPION), home)
    closed = {line["id"] for line in lines if line["event"] != "intent"}
    for line in lines:
        if line["event"] != "intent" or line["id"] in closed:
            continue
        move = Move(**{key: line[key] for key in Move.__dataclass_fields__})
        if serving not in {move.to, move.before}:
            added.append(move.note(home, "undone", serving=serving))
            continue
        if serving != move.to:
            _set_champion(home, mlflow, move)
            serving = move.to
        added.append(_finish(home, mlflow, move))
        log.warning("%s: finished the move to version %s that a crash had left", name, move.to)
    settled = [line for line in [*lines, *added] if line["event"] in {"confirmed", "by hand"}]
    if settled and settled[-1]["to"] != serving:
        added.append(_note_hand_move(home, mlflow, name, settled[-1]["to"], serving))
    return added


def _note_hand_move(
    home: Home, mlflow: MlflowClient, name: str, before: str | None, serving: str | None
) -> dict[str, Any]:
    """A person may move the alias in MLflow's UI; that is noted, so that a rollback knows where to go."""
    move = Move(name, serving, before, "a person", "moved outside hone")
    if serving is not None:
        tags = patiently(lambda: version_of(mlflow, name, serving), home).tags
        if tags.get("hone.gate") == "failed":
            log.warning("%s version %s was made champion by hand although it failed the gate", name, serving)
        _tag(home, mlflow, name, serving, {"hone.champion_before": before or ""})
    return move.note(home, "by hand")


def _tag(home: Home, mlflow: MlflowClient, name: str, number: str, tags: Mapping[str, str]) -> None:
    """Tag a version; one that somebody deleted meanwhile needs no tags."""
    from mlflow.exceptions import MlflowException

    for key, value in tags.items():
        try:
            patiently(partial(mlflow.set_model_version_tag, name, number, key, value), home)
        except MlflowException as error:
            log.warning("version %s of %s cannot be tagged: %s", number, name, error)


def version_of(mlflow: MlflowClient, name: str, number: str) -> Registered:
    """One version, with its tags and aliases."""
    found = mlflow.get_model_version(name, number)
    return Registered(
        name=name,
        version=str(found.version),
        run_id=found.run_id or "",
        model_id=found.model_id or found.tags.get("hone.model_id", ""),
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, to in aliases_of(mlflow, name).items() if to == str(found.version))),
    )


def aliases_of(mlflow: MlflowClient, name: str) -> dict[str, str]:
    """Alias → version; none where nothing of that name is registered."""
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(number) for alias, number in found.items()}


def _promotions(home: Home) -> Path:
    return home.journal / "promotions.jsonl"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
