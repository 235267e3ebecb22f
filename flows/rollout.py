"""`hone promote NAME --to ENVIRONMENT`: a version goes on to the next environment, if the gate of that one lets it."""

from __future__ import annotations

from typing import Any

from flows.evaluate import Judged, evaluation, judged
from flows.models import open_model
from flows.promote import decided, tell
from flows.run import heed_signals
from flows.terminal import Display, print_checks, print_verdict
from schemas.errors import Mistake, Problem
from schemas.records import Check
from tasks.home import Home
from tasks.registry import Change, Registered, champion, promote, reconcile
from tasks.rollout import Step, copied, copy_in, find_way, prove, refuse_rolled_back

OVERRIDE = "to let it serve all the same, add --override and --reason"


def roll_out(
    model: str, version: str | None, to: str, *, reason: str | None, by: str | None, override: bool, as_json: bool
) -> int:
    """Put a version of the environment before in front of the gate of this one, and let a copy of it serve here.

    Args:
        model: A registered model, or a recipe file, which then says what is asked.
        version: Number or alias in the environment before; default: who serves there.
        to: Name of the environment.
        reason: Why.
        by: Who decided; default: the login name.
        override: Even if the gate does not let it through, or it was rolled back.
        as_json: Print one JSON object.
    """
    who, why = decided(by, reason, override=override)
    home, name, recipe = open_model(model)
    step, asked, recipe = find_way(home, name, version, to, recipe)
    reconcile(home, step.target)  # what a crash left half done, before it is asked who serves
    copy, serving = copy_in(home, step, asked), champion(home, step.target)
    if copy is not None and serving is not None and copy.version == serving.version:
        return _end(home, step, asked, copy, before=serving, found=None, as_json=as_json)
    if not override:
        refuse_rolled_back(asked, copy)
    shown, title = Display(), f"{asked.name} {asked.version} to {to}"
    shown.say(f"{title}, on today's rows of {recipe.name}")
    heed_signals()
    with evaluation(recipe, home, asked, shown, f"promote {title}", kind="promote", environment=to) as (context, run):
        found = judged(context, run, asked, step.environment.gate, serving)
    if not override:
        _refuse_unfit(step, found)
    copy = copied(home, step, asked, found.decision)
    prove(context, copy, found.rows.sides)
    promote(
        home, step.target, copy.version,
        expected_champion=serving.version if serving else None,
        by=who, reason=why or f"version {asked.version} of {asked.name} passed the gate of {to}",
        even_if_rolled_back=override,
    )  # fmt: skip
    return _end(home, step, asked, copy, before=serving, found=found, as_json=as_json)


def _refuse_unfit(step: Step, found: Judged) -> None:
    """Raise Mistake with every check that did not pass."""
    if found.decision == "promote":
        return
    raise Mistake(
        [
            Problem(f"gate of {step.environment.name}, {check.name}", None, _told(check), OVERRIDE)
            for check in found.checks
            if not check.passed
        ]
    )


def _told(check: Check) -> str:
    return f"{check.outcome}: {check.found}; asked: {check.rule}"


def _end(
    home: Home,
    step: Step,
    asked: Registered,
    copy: Registered,
    *,
    before: Registered | None,
    found: Judged | None,
    as_json: bool,
) -> int:
    """Say who serves now; without `found` nothing was measured, for the copy served already."""
    now = champion(home, step.target)
    change = Change(step.target, copy.version, now.version if now else None, before.version if before else None)
    nothing: dict[str, Any] = {"decision": copy.gate, "rows_needed": None, "champion": change.before, "checks": []}
    if found is not None and not as_json:
        print_verdict(f"{asked.name} version {asked.version}", found.decision, found.rows_needed)
        print_checks(found.checks)
    more = {
        "environment": step.environment.name,
        "copied_from": f"models:/{asked.name}/{asked.version}",
        "mlflow_run_id": found.run_id if found else None,
        "mlflow_url": found.run_url if found else None,
        "gate": found.gate if found else nothing,
    }
    tell(change, f"hone rollback {step.target}", as_json=as_json, more=more)
    return 0
