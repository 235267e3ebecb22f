"""Prefect events about models and rows: what automations and people wait for, beside the flow runs' own.

`hone.model.registered`, `promoted`, `rolled_back`, `moved_by_hand` and `gate_failed` of the resource
`hone.model.<name>`, and `hone.data.changed` of `hone.recipe.<name>`. Those of a champion follow from the journal of
promotions: what a crash left untold is told by the next command, and an event has the same id whoever sends it, so that
the server takes it once. Prefect's own `emit_event` hands events to a thread and never hears whether they arrived; a
request does. Without a Prefect server nothing is sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from flows.engine import has_server
from schemas.errors import Fault
from schemas.records import Artifact, ModelVersion, Outcome, Verdict
from tasks.context import Context
from tasks.digests import write_atomically
from tasks.home import Home
from tasks.outbox import first_line
from tasks.promotion_journal import SETTLED, Line, lines_after, now, size

log = logging.getLogger(__name__)

REGISTERED = "hone.model.registered"
PROMOTED = "hone.model.promoted"
ROLLED_BACK = "hone.model.rolled_back"
MOVED_BY_HAND = "hone.model.moved_by_hand"
GATE_FAILED = "hone.model.gate_failed"
DATA_CHANGED = "hone.data.changed"

FOUND_BY = "hone.found-by"
"""Label of a recipe's event: name of the flow that found the rows changed."""
LATE = timedelta(days=1)
"""A move of a champion that is older than this when it is found in the journal is history, not news."""
SEND_S = 5.0
"""Longest the server may take for a request."""
LOCK_S = 20.0
"""Longest to wait for another process that sends."""
LABEL_LENGTH = 1_000
"""Characters that a label keeps of a reason."""

Event = dict[str, Any]


def publish(home: Home) -> list[Line]:
    """Send an event for each move of a champion that the journal holds and that no event has told of.

    Cheap when there is none, and does nothing without a Prefect server.

    Returns:
        The lines of the journal that were told.

    Raises:
        Fault: The server did not take them; the next call sends them.
    """
    if not has_server() or _told(home).get("promotions") == size(home):
        return []
    with _telling(home) as told:
        lines, end = lines_after(home, told.get("promotions", 0))
        since = datetime.now(UTC) - LATE
        news = [line for line in lines if line["event"] in SETTLED and datetime.fromisoformat(line["at"]) >= since]
        _send([_of_move(line) for line in news])
        told["promotions"] = end
    return news


def publish_if_possible(home: Home) -> None:
    """Send what `publish` sends; a server that is away ends no command, for the next one sends it."""
    try:
        publish(home)
    except Fault as fault:
        log.warning("%s; the next command tells it", fault)


def announce(context: Context, outcomes: Sequence[Outcome]) -> None:
    """Tell of what a run has found: rows that changed, a new version, a model that the gate rejected.

    A server that is away misses them, but for changed rows: the next run that collects tells of these.
    """
    try:
        for outcome in outcomes:
            if isinstance(outcome, Artifact) and outcome.stage == "collect":
                _announce_rows(context, outcome)
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        versions = [outcome for outcome in outcomes if isinstance(outcome, ModelVersion)]
        if has_server():
            _send(list(_of_model(context, verdicts, versions)))
    except Fault as fault:
        log.warning("%s", fault)


def _announce_rows(context: Context, raw: Artifact) -> None:
    """Tell of rows that are not those that were told of last; a change of code or of names is none."""
    manifest = context.store.find("collect", raw.key)
    settings = manifest.ingredients["settings"] if manifest else {"key": raw.key}
    content = {name: value for name, value in settings.items() if name != "names"}
    recipe, digest = context.recipe.name, str(uuid5(NAMESPACE_URL, json.dumps(content, sort_keys=True)))
    if _told(context.home).get("rows", {}).get(recipe) == digest:
        return
    with _telling(context.home) as told:
        if has_server():
            labels = {FOUND_BY: _flow_name(), "hone.why": raw.why, "hone.rows": str(raw.summary["rows"])}
            payload = {"recipe": recipe, "key": raw.key, "why": raw.why, "rows": raw.summary["rows"]}
            event = _event(
                DATA_CHANGED, f"hone.recipe.{recipe}", recipe,
                labels=labels, payload=payload, flow_run_id=context.flow_run_id,
            )  # fmt: skip
            _send([event])
        told["rows"] = told.get("rows", {}) | {recipe: digest}


def _of_model(context: Context, verdicts: Sequence[Verdict], versions: Sequence[ModelVersion]) -> Iterator[Event]:
    name, recipe, flow_run_id = context.recipe.model_name, context.recipe.name, context.flow_run_id
    resource = f"hone.model.{name}"
    for verdict in verdicts:
        number = versions[0].version if versions else None
        about = {"version": number, "decision": verdict.decision, "before": verdict.champion, "recipe": recipe}
        failed = [check for check in verdict.checks if check.outcome == "failed"]
        reason = ", ".join(check.name for check in failed)
        payload = {**about, "mlflow_run_id": context.run_id, "failed": [check.model_dump() for check in failed]}
        if versions and not versions[0].cached:
            labels = _labels(about)
            yield _event(REGISTERED, resource, name, labels=labels, payload=payload, flow_run_id=flow_run_id)
        if verdict.decision == "reject":
            labels = _labels({**about, "reason": reason})
            yield _event(GATE_FAILED, resource, name, labels=labels, payload=payload, flow_run_id=flow_run_id)


def _of_move(line: Line) -> Event:
    """The event of a settled line of the journal."""
    name, decision = line["name"], line.get("decision")
    kind = ROLLED_BACK if line.get("rolls_back") else PROMOTED
    if line["event"] == "by hand":
        kind = MOVED_BY_HAND
    about = {"version": line["to"], "before": line["before"], "decision": decision}
    about |= {"by": line["by"], "reason": line["reason"]}
    payload = {**about, "gate_failed": decision not in {None, "promote"}, "move": line["id"]}
    flow_run_id = line.get("flow_run_id", "")
    event = _event(kind, f"hone.model.{name}", name, labels=_labels(about), payload=payload, flow_run_id=flow_run_id)
    # Homes that share an MLflow tell of the same move; it has one id.
    return event | {"id": str(uuid5(NAMESPACE_URL, f"{kind} {name} {line['id']}")), "occurred": line["at"]}


def _event(
    kind: str, resource: str, name: str, *, labels: Mapping[str, str], payload: Mapping[str, Any], flow_run_id: str
) -> Event:
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}
    return {
        "id": str(uuid4()),
        "event": kind,
        "occurred": now(),
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": name, **labels},
        "related": [run] if flow_run_id else [],
        "payload": dict(payload),
    }


def _labels(values: Mapping[str, str | None]) -> dict[str, str]:
    """Labels of a resource: text, and none empty."""
    return {f"hone.{name}": value[:LABEL_LENGTH] for name, value in values.items() if value}


def _send(events: Iterable[Event]) -> None:
    """Have the server take events; when this returns it has them.

    Raises:
        Fault: It is away.
    """
    if not (sent := list(events)):
        return
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    at_once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})  # the next round or command tries again
    try:
        with at_once, get_client(sync_client=True, httpx_settings={"timeout": SEND_S}) as client:
            client.request("POST", "/events", json=sent)
    except HTTPError as error:
        raise Fault(f"Prefect does not take events: {first_line(error)}") from error


def _flow_name() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.flow_name or "")


def _told(home: Home) -> dict[str, Any]:
    """What was told already, `<home>/journal/events.json`: a place in the journal of promotions, and rows by recipe."""
    try:
        found = json.loads((home.journal / "events.json").read_text())
    except (OSError, ValueError):  # before the first time, and where somebody wrote something else there
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _telling(home: Home) -> Iterator[dict[str, Any]]:
    """What was told, to be changed by one process at a time; kept as it was when the body fails.

    Raises:
        Fault: Another process held the lock all the time.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(home.locks / "events.lock")
    try:
        lock.acquire(timeout=LOCK_S)
    except Timeout:
        raise Fault(f"another process has been sending events for {LOCK_S:.0f} s") from None
    try:
        told = _told(home)
        yield told
        write_atomically(home.journal / "events.json", json.dumps(told))
    finally:
        lock.release()
