"""The registry: who serves, who waits, and how that changes.

Aliases: `champion` serves, `challenger` is the newest candidate that does not. MLflow has no compare-and-set, so moves
of `champion` are serialised by a file lock, guarded by the champion that is expected, and journalled before and after
(`tasks.promotion_journal`); what a crash leaves half done, the next command finishes or undoes. A lock file serialises
one home; under a server the caller adds a Prefect limit. Homes that share an MLflow tell each other's moves from a
person's by a tag, after the fact: the later of two moves at once wins, and both homes record it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import posixpath
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import Fault, Mistake, Problem
from tasks.home import Home
from tasks.outbox import first_line, patiently
from tasks.promotion_journal import SETTLED, Line, Move, history, last_settled, now, unfinished
from tasks.tracking import client

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

log = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"
ENVIRONMENT_OF = "hone.environment_of"
"""Tag of a registered model that is an environment of another one: that one's name."""
LAST_MOVE = "hone.last_move"
"""Tag of a registered model: the last move of its champion that any home made or noticed, as JSON."""
CHAMPION_BEFORE = "hone.champion_before"
"""Tag of a version: who served when it became champion; empty when nothing did."""
PROMOTED = "hone.promoted"
"""Tag of a version: when it became champion, by whom and why."""
WAS_CHAMPION = "hone.was_champion"
"""Tag of a version that was champion: until when, and who replaced it why."""
ROLLED_BACK = "hone.rolled_back"
"""Tag of a version that was champion and was taken back, until it is promoted again."""
LOCK_S = 300.0
"""Longest a command waits for another that moves the champion; longer than one call may wait for MLflow."""
SAID_AFTER_S = 2.0
"""How long it waits without a word."""
LONGEST_TAG = 5_000
"""Characters that a tag keeps of a reason."""
MODELS_PER_PAGE = 1_000
"""Registered models asked for at once; MLflow's limit."""
SHOWN_VERSIONS = 5
"""Versions named when one is asked for that is not there."""
OLD_WORDS = {"passed": "promote", "failed": "reject"}
"""What the gate's decisions were called when there were two."""
UNFIT = {
    "reject": "it failed the gate",
    "challenger": "the gate did not find it better than the champion",
    "undecidable": "the gate had too few test rows to decide",
    None: "no gate has judged it",
}
"""Decision of the gate → why a version should not serve."""


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
    def gate(self) -> str | None:
        """The gate's latest decision, one of `schemas.records.Decision`; none when no gate has judged it."""
        said = self.tags.get("hone.gate")
        return OLD_WORDS.get(said, said) if said else None

    @property
    def rolled_back(self) -> bool:
        """Whether it was champion and was taken back."""
        return ROLLED_BACK in self.tags


@dataclass(frozen=True)
class Change:
    """What a command did to who serves.

    Attributes:
        to: Version that the command let serve.
        champion: Version that serves now; none when nothing does. Another one than `to` was moved in by somebody else.
        before: Version that served when the command began.
    """

    name: str
    to: str | None
    champion: str | None
    before: str | None


def champion(home: Home, name: str) -> Registered | None:
    """The version that serves, or none."""
    mlflow = client(home)

    def find() -> Registered | None:
        serving = aliases_of(mlflow, name).get(CHAMPION)
        return find_version(mlflow, name, serving) if serving else None

    return patiently(find, home)


def wanted(home: Home, name: str, version: str) -> Registered:
    """A version that somebody named, by its number or an alias.

    Raises:
        Mistake: There is no such model or version.
        Fault: MLflow is away.
    """
    mlflow = client(home)
    return _existing(home, mlflow, name, _aliases_of_known(home, mlflow, name).get(version, version))


def latest(home: Home, name: str) -> Registered:
    """The newest version of a model.

    Raises:
        Mistake: There is no such model, or it has no version.
        Fault: MLflow is away.
    """
    mlflow = client(home)
    _aliases_of_known(home, mlflow, name)
    newest = partial(mlflow.search_model_versions, f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
    found = patiently(newest, home)
    return _existing(home, mlflow, name, str(found[0].version) if found else "1")


def refuse_environment(home: Home, name: str) -> None:
    """Refuse to register models where only copies of another model's versions go.

    Raises:
        Mistake: The registered model is an environment of another one.
    """
    mlflow = client(home)
    found = patiently(lambda: _model_of(mlflow, name), home)
    if found is not None and ENVIRONMENT_OF in found.tags:
        rule = f"is an environment of {found.tags[ENVIRONMENT_OF]}"
        raise Mistake(Problem("registry.name", name, rule, "name another model"))


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
        Mistake: There is no such version, another champion serves by now, or the version was rolled back.
        Fault: MLflow is away, or another process has held the lock all the time.
    """
    with _alone(home, name):
        mlflow = client(home)
        _reconcile(home, mlflow, name)
        state = patiently(lambda: _state(mlflow, name), home)
        candidate = _existing(home, mlflow, name, new_version)
        if state.champion == candidate.version:
            return candidate.aliases
        move = Move(name, candidate.version, expected_champion, by, reason, decision=candidate.gate)
        if state.champion != expected_champion:
            move.note(home, "refused", serving=state.champion)
            raise Mistake(
                Problem(
                    "champion", state.champion,
                    f"version {move.to} of {name} was measured against champion {expected_champion}",
                    "run the gate again, against the champion that serves now",
                )
            )  # fmt: skip
        if candidate.rolled_back and not even_if_rolled_back:
            move.note(home, "refused", rolled_back=candidate.tags[ROLLED_BACK])
            raise Mistake(
                Problem(
                    "version", move.to, f"was rolled back: {candidate.tags[ROLLED_BACK]}",
                    "to let it return, promote it with --override and --reason",
                )
            )  # fmt: skip
        _carry_out(home, mlflow, move, after=state.last_move.get("id"))
        return patiently(lambda: version_of(mlflow, name, candidate.version), home).aliases


def promote_by_hand(
    home: Home, name: str, version: str | None = None, *, by: str, reason: str, override: bool = False
) -> Change:
    """Make a version champion because a person says so; without `override` only one that the gate let through.

    Args:
        home: Whose MLflow it is.
        name: Registered model.
        version: Who shall serve, by number or alias; default: the challenger.
        by: Who decided.
        reason: Why.
        override: Also a version that the gate did not let through or that was rolled back.

    Raises:
        Mistake: There is no such model or version, it is not fit to serve, or another champion serves by now.
        Fault: MLflow is away, or another process has held the lock all the time.
    """
    mlflow = client(home)
    aliases = _aliases_of_known(home, mlflow, name)
    serving = aliases.get(CHAMPION)
    number = aliases.get(version, version) if version else _challenger(name, aliases)
    candidate = _existing(home, mlflow, name, number)
    if candidate.version != serving and not override:
        _refuse_unfit(candidate)
    given = promote(
        home, name, candidate.version,
        expected_champion=serving, by=by, reason=reason, even_if_rolled_back=override,
    )  # fmt: skip
    serves = candidate.version if CHAMPION in given else _serving(home, mlflow, name)
    return Change(name, candidate.version, serves, serving)


def rollback(home: Home, name: str, *, by: str, reason: str, expected_champion: str | None = None) -> Registered | None:
    """Let the former champion serve again, and mark the present one so that it never returns by itself.

    Former champions that were rolled back themselves or deleted are passed over. A rollback that a crash had cut short
    is finished and nothing more is taken back, so that the command may be given again.

    Args:
        home: Whose MLflow it is.
        name: Registered model.
        by: Who decided.
        reason: Why.
        expected_champion: Version to take back; default: whichever serves.

    Returns:
        Who serves now; none when the champion was the first.

    Raises:
        Mistake: Nothing serves, another champion serves by now, or nobody knows who served before.
        Fault: MLflow is away, or another process has held the lock all the time.
    """
    with _alone(home, name):
        mlflow = client(home)
        mended = _reconcile(home, mlflow, name)
        present = champion(home, name)
        if any(line["event"] == "confirmed" and line["rolls_back"] for line in mended):
            return present
        if present is None:
            raise Mistake(Problem("champion", None, f"no version of {name} serves", "promote one first"))
        if expected_champion not in {None, present.version}:
            raise Mistake(
                Problem(
                    "champion", present.version, f"version {expected_champion} of {name} was to be rolled back",
                    "roll back again if this one shall be taken back",
                )
            )  # fmt: skip
        former = _former(home, mlflow, present)
        to, decision = (former.version, former.gate) if former else (None, None)
        move = Move(name, to, present.version, by, reason, rolls_back=True, decision=decision)
        _carry_out(home, mlflow, move, after=patiently(lambda: _state(mlflow, name), home).last_move.get("id"))
    return champion(home, name)


def rollback_by_hand(home: Home, name: str, *, by: str, reason: str) -> Change:
    """Roll back the champion that serves when this begins; see `rollback`."""
    serving = _aliases_of_known(home, client(home), name).get(CHAMPION)
    present = rollback(home, name, by=by, reason=reason, expected_champion=serving)
    version = present.version if present else None
    return Change(name, version, version, serving)


def reconcile(home: Home, name: str | None = None) -> list[Line]:
    """Finish what a crash left half done, and note champions that were moved by a person or by another home.

    A move that was decided but not made is made while the champion it was decided against still serves, else undone.
    A model whose champion another process moves at this moment is left to that process.

    Args:
        home: Whose journal it is.
        name: Registered model; default: all that the journal knows or that hone registered.

    Returns:
        The journal lines that were added.
    """
    from filelock import Timeout

    mlflow, lines = client(home), history(home, name)
    states = {model.name: _state_of(model) for model in patiently(partial(_some, mlflow, name), home)}
    added: list[Line] = []
    for model in sorted({*states, *(line["name"] for line in lines)}):
        if not _needs_a_look(states.get(model, NOTHING), [line for line in lines if line["name"] == model]):
            continue
        with suppress(Timeout), _lock(home, model).acquire(blocking=False):
            added += _reconcile(home, mlflow, model)
    return added


def registered_models(mlflow: MlflowClient) -> Iterator[RegisteredModel]:
    """All registered models; a request for every thousand."""
    page = mlflow.search_registered_models(max_results=MODELS_PER_PAGE)
    yield from page
    while page.token:
        page = mlflow.search_registered_models(max_results=MODELS_PER_PAGE, page_token=page.token)
        yield from page


def _some(mlflow: MlflowClient, name: str | None) -> list[RegisteredModel]:
    """The model of that name, if there is one; all where none is named."""
    if name is None:
        return list(registered_models(mlflow))
    found = _model_of(mlflow, name)
    return [found] if found else []


def _needs_a_look(state: _State, lines: Sequence[Line]) -> bool:
    """Whether the journal of a model is not what MLflow says; decided without a request."""
    return bool(unfinished(lines)) or _catches_up(state, lines) != (None, None)


@contextmanager
def _alone(home: Home, name: str) -> Iterator[None]:
    """Hold the lock on a model's champion.

    Raises:
        Fault: Another process held it all the time.
    """
    from filelock import Timeout

    lock = _lock(home, name)
    try:
        lock.acquire(timeout=SAID_AFTER_S)
    except Timeout:
        log.warning("another process is moving the champion of %s; waiting for it", name)
        try:
            lock.acquire(timeout=LOCK_S)
        except Timeout:
            raise Fault(f"another process has been moving the champion of {name} for {LOCK_S:.0f} s") from None
    try:
        yield
    finally:
        lock.release()


def _lock(home: Home, name: str) -> BaseFileLock:
    """The kernel frees it when its process dies."""
    from filelock import FileLock

    return FileLock(home.locks / f"promote-{name}.lock")


def _aliases_of_known(home: Home, mlflow: MlflowClient, name: str) -> dict[str, str]:
    """The aliases of a model.

    Raises:
        Mistake: Nothing of that name is registered.
    """
    found = patiently(lambda: _model_of(mlflow, name), home)
    if found is not None:
        return _aliases(found)
    known = [model.name for model in patiently(mlflow.search_registered_models, home)]
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "run a recipe first, which registers its model"
    raise Mistake(Problem("model", name, "nothing of that name is registered", remedy))


def _serving(home: Home, mlflow: MlflowClient, name: str) -> str | None:
    return patiently(lambda: aliases_of(mlflow, name), home).get(CHAMPION)


def _challenger(name: str, aliases: Mapping[str, str]) -> str:
    if CHALLENGER in aliases:
        return aliases[CHALLENGER]
    serving = f"version {aliases[CHAMPION]} serves" if CHAMPION in aliases else "none serves"
    raise Mistake(
        Problem("version", None, f"no version of {name} waits as challenger, and {serving}", "name a version")
    )


def _existing(home: Home, mlflow: MlflowClient, name: str, number: str) -> Registered:
    """A version that somebody named.

    Raises:
        Mistake: There is no such version.
    """
    found = patiently(lambda: find_version(mlflow, name, number), home)
    if found is not None:
        return found
    there = patiently(lambda: mlflow.search_model_versions(f"name = '{name}'", max_results=SHOWN_VERSIONS), home)
    known = ", ".join(str(version.version) for version in there)
    remedy = f"name a version; the latest are {known}" if known else "run the recipe first"
    raise Mistake(Problem("version", number, f"{name} has no such version", remedy))


def _refuse_unfit(candidate: Registered) -> None:
    if candidate.gate != "promote":
        rule = UNFIT.get(candidate.gate, f"the gate says {candidate.gate}")
        remedy = "to let it serve all the same, promote it with --override and --reason"
        raise Mistake(Problem("version", candidate.version, rule, remedy))


def _former(home: Home, mlflow: MlflowClient, present: Registered) -> Registered | None:
    """The last champion before `present` that may serve again; none when there was none.

    Raises:
        Mistake: Nobody knows, for `present` was made champion outside hone before hone knew the model.
    """
    lines = history(home, present.name)
    journalled = {line["to"]: line["before"] for line in lines if line["event"] in SETTLED and not line["rolls_back"]}
    passed = {present.version}
    at, before = present.version, present.tags.get(CHAMPION_BEFORE)
    while True:
        if before is None and at not in journalled:
            rule = f"nobody knows which version of {present.name} served before"
            raise Mistake(Problem("champion", present.version, rule, "promote the version that shall serve"))
        at = before if before is not None else journalled[at]
        if not at or at in passed:
            return None
        passed.add(at)
        found = patiently(partial(find_version, mlflow, present.name, at), home)
        if found is not None and not found.rolled_back:
            return found
        before = found.tags.get(CHAMPION_BEFORE) if found else None


def _carry_out(home: Home, mlflow: MlflowClient, move: Move, *, after: str | None) -> None:
    """Make a move that nothing stands against; `after` is the last move before it, see `LAST_MOVE`."""
    from mlflow.exceptions import MlflowException

    move.note(home, "intent", after=after)
    try:
        _set_champion(home, mlflow, move)
    except MlflowException as error:
        move.note(home, "undone", why=first_line(error))
        rule = f"MLflow does not let it serve: {first_line(error)}"
        raise Mistake(Problem("version", move.to, rule, "see whether it is still there")) from error
    _finish(home, mlflow, move)


def _set_champion(home: Home, mlflow: MlflowClient, move: Move) -> None:
    if move.to is None:
        patiently(lambda: mlflow.delete_registered_model_alias(move.name, CHAMPION), home)
    else:
        to = move.to
        patiently(lambda: mlflow.set_registered_model_alias(move.name, CHAMPION, to), home)


def _finish(home: Home, mlflow: MlflowClient, move: Move) -> Line:
    """What follows the alias: tags that tell the story in MLflow, and the journal's last word."""
    _mark(home, mlflow, move)  # first: from here on a crash leaves no doubt that the alias was moved
    _tell(home, mlflow, move)
    return move.note(home, "confirmed")


def _mark(home: Home, mlflow: MlflowClient, move: Move) -> None:
    """Tag the model with its last move."""
    note: Line = {"id": move.id, "at": now(), "to": move.to, "by": move.by, "reason": move.reason[:LONGEST_TAG]}
    note |= {"rolls_back": move.rolls_back, "host": socket.gethostname()}
    _try(home, partial(mlflow.set_registered_model_tag, move.name, LAST_MOVE, json.dumps(note)))


def _tell(home: Home, mlflow: MlflowClient, move: Move) -> None:
    """Tag both versions, and take the new champion from the challengers. May be repeated."""
    why = f"by {move.by}: {move.reason[:LONGEST_TAG]}"
    if move.before is not None:
        word = ROLLED_BACK if move.rolls_back else WAS_CHAMPION
        _try(home, partial(mlflow.set_model_version_tag, move.name, move.before, word, f"until {now()}, {why}"))
    if move.to is None:
        return
    if not move.rolls_back:
        tags = {CHAMPION_BEFORE: move.before or "", PROMOTED: f"{now()}, {why}"}
        for key, value in tags.items():
            _try(home, partial(mlflow.set_model_version_tag, move.name, move.to, key, value))
        _try(home, partial(mlflow.delete_model_version_tag, move.name, move.to, ROLLED_BACK))
    if patiently(lambda: aliases_of(mlflow, move.name), home).get(CHALLENGER) == move.to:
        _try(home, partial(mlflow.delete_registered_model_alias, move.name, CHALLENGER))


def _try(home: Home, call: Callable[[], object]) -> None:
    """Tell MLflow something about a version that somebody may have deleted meanwhile."""
    from mlflow.exceptions import MlflowException

    try:
        patiently(call, home)
    except MlflowException as error:
        log.warning("MLflow does not take a note about the champion: %s", first_line(error))


def _reconcile(home: Home, mlflow: MlflowClient, name: str) -> list[Line]:
    """See `reconcile`; the caller holds the lock."""
    lines = history(home, name)
    closed = [_close(home, mlflow, intent) for intent in unfinished(lines)]
    return [*closed, *_catch_up(home, mlflow, name, [*lines, *closed])]


def _close(home: Home, mlflow: MlflowClient, intent: Line) -> Line:
    """Finish or undo a move that a crash cut short."""
    from mlflow.exceptions import MlflowException

    move = Move.of(intent)
    state = patiently(lambda: _state(mlflow, move.name), home)
    last = state.last_move.get("id")
    if state.champion != move.to and last != move.id:
        # The same champion as before may be another's return; then another move came between.
        if state.champion != move.before or last != intent.get("after"):
            return move.note(home, "undone", serving=state.champion, why="another move came between")
        try:
            _set_champion(home, mlflow, move)
        except MlflowException as error:
            return move.note(home, "undone", serving=state.champion, why=first_line(error))
    line = _finish(home, mlflow, move)
    log.warning("%s: finished the move to version %s that a crash had left", move.name, move.to)
    return line


def _catch_up(home: Home, mlflow: MlflowClient, name: str, lines: Sequence[Line]) -> list[Line]:
    """Note moves that were made elsewhere, so that a rollback knows where to go."""
    theirs, by_hand = _catches_up(patiently(lambda: _state(mlflow, name), home), lines)
    added = []
    if theirs is not None:
        before, last = theirs
        move = Move(name, last["to"], before, last["by"], last["reason"], last["rolls_back"], last["id"])
        added.append(move.note(home, "elsewhere", host=last["host"]))
    if by_hand is not None:
        before, to = by_hand
        added.append(_note_hand_move(home, mlflow, Move(name, to, before, "a person", "moved outside hone")))
    return added


def _catches_up(
    state: _State, lines: Sequence[Line]
) -> tuple[tuple[str | None, Line] | None, tuple[str | None, str | None] | None]:
    """What the journal of a model does not know yet.

    Returns:
        Who served before another home's last move, and that move; and who served before and after a move by hand. None
        for what did not happen.
    """
    settled, last = last_settled(lines), state.last_move
    if settled is None:
        # What other homes did with a model that this one never promoted is theirs to tell.
        before = last.get("to")
        moved = (state.ours or bool(lines)) and state.champion not in {None, before}
        return None, (before, state.champion) if moved else None
    serves = settled["to"]
    theirs = None
    if last and last["to"] != serves and last["id"] not in {line["id"] for line in lines}:
        theirs, serves = (serves, last), last["to"]
    return theirs, (serves, state.champion) if state.champion != serves else None


def _note_hand_move(home: Home, mlflow: MlflowClient, move: Move) -> Line:
    """A person may move the alias in MLflow's UI."""
    to = move.to
    found = patiently(lambda: find_version(mlflow, move.name, to), home) if to else None
    if found and found.gate not in {None, "promote"}:
        why = UNFIT.get(found.gate, f"the gate says {found.gate}")
        log.warning("%s version %s was made champion by hand although %s", move.name, to, why)
    move = replace(move, decision=found.gate if found else None)
    _tell(home, mlflow, move)
    line = move.note(home, "by hand")
    _mark(home, mlflow, move)  # last: a mark that the journal does not know is another home's
    return line


@dataclass(frozen=True)
class _State:
    """What MLflow says of a model's champion, in one request.

    Attributes:
        champion: Version that serves.
        last_move: See the function of that name.
        ours: Whether hone registered it.
    """

    champion: str | None
    last_move: Line
    ours: bool


NOTHING = _State(None, {}, ours=False)
"""Of a model that is not there."""


def _state(mlflow: MlflowClient, name: str) -> _State:
    found = _model_of(mlflow, name)
    return _state_of(found) if found else NOTHING


def _state_of(model: RegisteredModel) -> _State:
    ours = ENVIRONMENT_OF in model.tags or any("hone.identity" in version.tags for version in model.latest_versions)
    return _State(_aliases(model).get(CHAMPION), last_move(model), ours)


def last_move(model: RegisteredModel) -> Line:
    """The last move of a model's champion that any home made or noticed; empty before the first.

    Returns:
        `id`, `at`, `to`, `by`, `reason`, `rolls_back` and the `host` that made it.
    """
    try:
        found = json.loads(model.tags.get(LAST_MOVE, ""))
    except ValueError:  # a person wrote something else there
        return {}
    needed = {"id", "at", "to", "by", "reason", "rolls_back", "host"}
    return found if isinstance(found, dict) and needed <= set(found) else {}


def _model_of(mlflow: MlflowClient, name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_version(mlflow: MlflowClient, name: str, number: str) -> Registered | None:
    """One version; none where there is no such one."""
    from mlflow.exceptions import MlflowException

    try:
        return version_of(mlflow, name, number)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def version_with(mlflow: MlflowClient, name: str, identity: str | None) -> Registered | None:
    """The version whose files have this digest; none where nothing of that name has."""
    found = mlflow.search_model_versions(f"name = '{name}' and tags.`hone.identity` = '{identity}'")
    return version_of(mlflow, name, str(found[0].version)) if found else None


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
    found = _model_of(mlflow, name)
    return _aliases(found) if found else {}


def _aliases(model: RegisteredModel) -> dict[str, str]:
    return {alias: str(number) for alias, number in model.aliases.items()}
