"""`hone promote NAME --to ENVIRONMENT`: a version goes on to the next environment, if the gate of that one lets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.evaluate import Judged, evaluation, judged
from flows.events import publish_if_possible
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
    heed_signals()
    change, moved = roll_out_version(model, version, to, reason=reason, by=by, override=override)
    if moved.found is not None and not as_json:
        print_verdict(
            f"{moved.asked.name} version {moved.asked.version}", moved.found.decision, moved.found.rows_needed
        )
        print_checks(moved.found.checks)
    tell(change, f"hone rollback {change.name}", as_json=as_json, more=moved.told(change))
    return 0


@dataclass(frozen=True)
class Moved:
    """How a version got into an environment.

    Attributes:
        environment: Its name.
        asked: The version, in the environment before.
        copy: The version here.
        found: What it was measured to be; none where nothing was measured, for the copy served already.
    """

    environment: str
    asked: Registered
    copy: Registered
    found: Judged | None

    def told(self, change: Change) -> dict[str, Any]:
        """The same as JSON values."""
        nothing: dict[str, Any] = {
            "decision": self.copy.gate,
            "rows_needed": None,
            "champion": change.before,
            "checks": [],
        }
        return {
            "environment": self.environment,
            "copied_from": f"models:/{self.asked.name}/{self.asked.version}",
            "mlflow_run_id": self.found.run_id if self.found else None,
            "mlflow_url": self.found.run_url if self.found else None,
            "gate": self.found.gate if self.found else nothing | {"champion": change.before},
        }


def roll_out_version(
    model: str, version: str | None, to: str, *, reason: str | None, by: str | None, override: bool
) -> tuple[Change, Moved]:
    """What `hone promote --to` does; it says only what is going on."""
    who, why = decided(by, reason, override=override)
    home, name, recipe = open_model(model)
    step, asked, recipe = find_way(home, name, version, to, recipe)
    reconcile(home, step.target)  # what a crash left half done, before it is asked who serves
    copy, serving = copy_in(home, step, asked), champion(home, step.target)
    before = serving.version if serving else None
    if copy is not None and copy.version == before:
        return _change(home, step, copy, before), Moved(to, asked, copy, None)
    if not override:
        refuse_rolled_back(asked, copy)
    shown, title = Display(), f"{asked.name} {asked.version} to {to}"
    shown.say(f"{title}, on today's rows of {recipe.name}")
    with evaluation(recipe, home, asked, shown, f"promote {title}", kind="promote", environment=to) as (context, run):
        found = judged(context, run, asked, step.environment.gate, serving)
    if not override:
        _refuse_unfit(step, found)
    copy = copied(home, step, asked, found.decision)
    prove(context, copy, found.rows.sides)
    why = why or f"version {asked.version} of {asked.name} passed the gate of {to}"
    promote(
        home, step.target, copy.version,
        expected_champion=before, by=who, reason=why, even_if_rolled_back=override,
    )  # fmt: skip
    publish_if_possible(home)
    return _change(home, step, copy, before), Moved(to, asked, copy, found)


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


def _change(home: Home, step: Step, copy: Registered, before: str | None) -> Change:
    """Who serves now."""
    now = champion(home, step.target)
    return Change(step.target, copy.version, now.version if now else None, before)
