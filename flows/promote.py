"""`hone promote` and `hone rollback`: a person decides who serves; what that takes is `tasks.registry`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.events import publish_if_possible
from flows.models import open_model
from schemas.errors import Mistake, Problem
from tasks.tracking import user

if TYPE_CHECKING:
    from tasks.registry import Change


def promote(
    model: str, version: str | None, *, reason: str | None, by: str | None, override: bool, as_json: bool
) -> int:
    """Make a version champion: the one named, or the challenger of a model or of a recipe's model."""
    change = promote_version(model, version, reason=reason, by=by, override=override)
    tell(change, f"hone rollback {model}", as_json=as_json)
    return 0


def promote_version(model: str, version: str | None, *, reason: str | None, by: str | None, override: bool) -> Change:
    """What `hone promote` does, without a word."""
    who, why = decided(by, reason, override=override)
    home, name, _ = open_model(model)
    from tasks.registry import promote_by_hand

    change = promote_by_hand(home, name, version, by=who, reason=why or "promoted by hand", override=override)
    publish_if_possible(home)
    return change


def rollback(model: str, *, reason: str | None, by: str | None, as_json: bool) -> int:
    """Let the former champion serve again."""
    change = rollback_champion(model, reason=reason, by=by)
    _say(change, "rolled back", f"hone promote {model} {change.before} --override --reason WHY", as_json=as_json)
    return 0


def rollback_champion(model: str, *, reason: str | None, by: str | None) -> Change:
    """What `hone rollback` does, without a word."""
    home, name, _ = open_model(model)
    from tasks.registry import rollback_by_hand

    who, why = _one_line(by or "") or user(), _one_line(reason or "") or "no reason given"
    change = rollback_by_hand(home, name, by=who, reason=why)
    publish_if_possible(home)
    return change


def decided(by: str | None, reason: str | None, *, override: bool) -> tuple[str, str]:
    """Who decided and why, as journal and tags keep it; the reason may be empty.

    Raises:
        Mistake: Something is overridden without a reason.
    """
    why = _one_line(reason or "")
    if override and not why:
        raise Mistake(Problem("--reason", reason, "is required with --override", "say why the version shall serve"))
    return _one_line(by or "") or user(), f"{why} (with --override)" if override else why


def tell(change: Change, undo: str, *, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Say what became of a promotion.

    Args:
        change: Who serves.
        undo: The command that takes it back.
        as_json: Print one JSON object.
        more: What else it holds.
    """
    if change.to == change.before:
        what, back = f"version {change.to} serves already; nothing was done", None
    elif change.to != change.champion:
        what, back = f"version {change.to} was promoted, and somebody else moved on at once", None
    else:
        what, back = "promoted", undo
    _say(change, what, back, as_json=as_json, more=more)


def _one_line(text: str) -> str:
    """Text as it goes into the journal and into tags; a terminal may pass bytes that are no text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _say(
    change: Change, what: str, undo: str | None, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    changed, more = change.champion != change.before, more or {}
    if as_json:
        found = {"model": change.name, "champion": change.champion, "before": change.before, "changed": changed}
        print(json.dumps({**found, "undo": undo, **more}))
        return
    print(f"{change.name}: {what}")
    if changed:
        print(f"  serves now     {_version(change.champion)}")
        print(f"  served before  {_version(change.before)}")
    if "copied_from" in more:
        print(f"  copied from    {more['copied_from']}")
    if undo:
        print(f"  to undo        {undo}")


def _version(number: str | None) -> str:
    return f"version {number}" if number else "nothing"
