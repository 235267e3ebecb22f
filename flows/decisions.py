"""The flows by which a person decides from the Prefect UI: `promote`, `rollback`, `evaluate`; as their verbs do."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact

from flows.evaluate import evaluate_version
from flows.promote import promote_version, rollback_champion
from flows.rollout import roll_out_version
from schemas.records import Check
from tasks.markdown import table
from tasks.registry import Change


@flow(name="promote", persist_result=False)
async def promote(
    model: str,
    version: str | None = None,
    *,
    promoted_by: str = "",
    reason: str = "",
    override: bool = False,
    to: str | None = None,
) -> str:
    """Let a version of a model serve.

    Args:
        model: The registered model.
        version: Number or alias; default: the challenger, and with an environment the champion of the one before.
        promoted_by: Who decides. Kept in the journal and in MLflow.
        reason: Why. Needed to override.
        override: Even if the gate did not let it through, or it was rolled back.
        to: Copy it to this environment of the recipe, if it passes its gate on today's rows, and let it serve there.
    """
    who, why = promoted_by or None, reason or None
    if to:
        change, moved = roll_out_version(model, version, to, reason=why, by=who, override=override)
        return await _told(change, moved.found.checks if moved.found else ())
    return await _told(promote_version(model, version, reason=why, by=who, override=override))


@flow(name="rollback", persist_result=False)
async def rollback(model: str, *, rolled_back_by: str = "", reason: str = "") -> str:
    """Let the former champion serve again.

    Args:
        model: The registered model.
        rolled_back_by: Who decides. Kept in the journal and in MLflow.
        reason: Why.
    """
    return await _told(rollback_champion(model, reason=reason or None, by=rolled_back_by or None))


@flow(name="evaluate", persist_result=False)
async def evaluate(model: str, version: str = "champion") -> str:
    """Measure a registered version on today's rows, and put it before today's gate; nothing in the registry changes.

    Args:
        model: The registered model.
        version: Number or alias.
    """
    _, asked, found = evaluate_version(model, version)
    title = f"{asked.name} version {asked.version}: {found.decision}"
    await _page(f"evaluation-{asked.name}", title, f"# {title}\n\n{_checks(found.checks)}\n\n{found.candidate.report}")
    return title


def _checks(checks: tuple[Check, ...]) -> str:
    rows = [(check.name, check.outcome, check.rule, check.found) for check in checks]
    return table(("check", "outcome", "rule", "found"), rows) if rows else ""


async def _told(change: Change, checks: tuple[Check, ...] = ()) -> str:
    """What became of it, on the run's page and as its result."""
    if change.champion == change.before:
        said = f"{change.name}: version {change.champion} serves already; nothing was done"
    else:
        said = f"{change.name}: {_version(change.champion)} serves now; {_version(change.before)} served before"
    await _page(f"champion-{change.name}", said, f"{said}.\n\n{_checks(checks)}")
    return said


async def _page(key: str, title: str, page: str) -> None:
    await acreate_markdown_artifact(page, key=key.lower().replace("_", "-").replace(".", "-"), description=title)


def _version(number: str | None) -> str:
    return f"version {number}" if number else "nothing"
