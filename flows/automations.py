"""What Prefect does by itself for hone: it ends dead runs, tells a team of failures, and retrains on new rows.

Their names begin with `hone: `. `hone deploy` makes, changes and removes them; one that somebody paused stays paused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.desk import HEARTBEAT_SECONDS
from flows.events import DATA_CHANGED, FOUND_BY
from schemas.errors import EnvironmentMistake, Problem
from schemas.recipe import Recipe
from schemas.stages import STAGES

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

PREFIX = "hone: "
RETRAIN = PREFIX + "retrain {} on new rows"
TAG = "hone"
"""Of every deployment of hone, and so of its runs."""
NOTIFY = "HONE_NOTIFY"
"""Environment variable with the Prefect block that is told of failures: type and name, such as `slack-webhook/team`."""
LOST = timedelta(seconds=3 * HEARTBEAT_SECONDS)
"""A run that has not sent a heartbeat for this long is dead."""
WHEREABOUTS = (
    "Completed", "Skipped", "Cached", "Failed", "Crashed", "TimedOut", "Cancelling", "Cancelled", "Pausing", "Paused",
    "Suspended", "AwaitingRetry", "AwaitingConcurrencySlot", "Scheduled", "Late", "Pending", "Resuming",
)  # fmt: skip
"""Names of states in which no heartbeat is to be expected. Running is none: it may come after the first heartbeat."""
FINDERS = [stage for stage in STAGES if stage != STAGES[-1]]
"""Flows that find new rows and leave it to others to make a model of them."""
PAGE = 200
"""Automations asked for at once."""

SUBJECT = "hone: {{ flow.name }}/{{ deployment.name }} {{ flow_run.state.name | lower }}"
BODY = """\
Flow run {{ flow_run.name }} of {{ flow.name }}/{{ deployment.name }} ended {{ flow_run.state.name }}.
{{ flow_run.state.message }}
{{ flow_run|ui_url or "" }}
"""


def automations(
    recipes: Sequence[Recipe], retrain: Mapping[str, UUID], notification_block: UUID | None
) -> list[AutomationCore]:
    """The automations that these recipes and this environment ask for.

    Args:
        recipes: What is deployed.
        retrain: Recipe → deployment of its retraining.
        notification_block: Told of failures; none: nobody is.
    """
    found = [_end_dead_runs()]
    if notification_block is not None:
        found.append(_tell_of_failures(notification_block))
    return found + [
        _retrain_on_new_rows(recipe, retrain[recipe.name])
        for recipe in recipes
        if recipe.retrain.on_new_rows and recipe.name in retrain
    ]


def apply_automations(client: SyncPrefectClient, recipes: Sequence[Recipe]) -> list[str]:
    """Make the server's automations of hone those that are wanted.

    Args:
        client: Of the server; the deployments are on it already.
        recipes: Recipes that are deployed now; what was made for others stays while these are deployed.

    Returns:
        Names of those made, changed or removed.

    Raises:
        EnvironmentMistake: `HONE_NOTIFY` does not name a notification block of this server.
    """
    wanted = {one.name: one for one in automations(recipes, _retrainings(client, recipes), _notification_block(client))}
    changed = []
    for known in _ours(client):
        one = wanted.pop(known.name, None)
        if one is None and _is_anothers(client, known.name, recipes):
            continue
        if one is None:
            client.delete_automation(known.id)
        elif _content(one) != _content(known):
            client.update_automation(known.id, _asked(one, enabled=known.enabled))
        else:
            continue
        changed.append(known.name)
    for one in wanted.values():
        client.create_automation(one)
    return [*changed, *wanted]


def _end_dead_runs() -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=f"{PREFIX}end runs whose process is gone",
        description=f"A run of hone without a heartbeat for {LOST.seconds} s is set Crashed, which frees its slot.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in WHEREABOUTS)},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=LOST,
            **_of_our_runs(),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no heartbeat for {LOST.seconds} s: its process is gone"
            )
        ],
    )


def _tell_of_failures(block: UUID) -> AutomationCore:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=f"{PREFIX}tell of failures",
        description=f"Runs of hone that fail or crash are told to the block that {NOTIFY} names.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
            **_of_our_runs(),
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)],
    )


def _retrain_on_new_rows(recipe: Recipe, deployment: UUID) -> AutomationCore:
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=RETRAIN.format(recipe.name),
        description="When a stage that was run alone finds rows that have changed.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={DATA_CHANGED},
            match={"prefect.resource.id": f"hone.recipe.{recipe.name}", FOUND_BY: FINDERS},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment)],
    )


def _of_our_runs() -> dict[str, Any]:
    """What of a trigger limits it to flow runs of hone's deployments."""
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
    }


def _retrainings(client: SyncPrefectClient, recipes: Sequence[Recipe]) -> dict[str, UUID]:
    names = [recipe.name for recipe in recipes if recipe.retrain.on_new_rows]
    return {name: client.read_deployment_by_name(f"retrain/{name}").id for name in names}


def _is_anothers(client: SyncPrefectClient, name: str, recipes: Sequence[Recipe]) -> bool:
    """Whether an automation was made for a recipe that is none of these and is still deployed."""
    from prefect.exceptions import ObjectNotFound

    before, _, after = RETRAIN.partition("{}")
    recipe = name.removeprefix(before).removesuffix(after)
    if RETRAIN.format(recipe) != name or recipe in {one.name for one in recipes}:
        return False
    try:
        client.read_deployment_by_name(f"retrain/{recipe}")
    except ObjectNotFound:
        return False
    return True


def _notification_block(client: SyncPrefectClient) -> UUID | None:
    """The block that is told of failures; none where the environment names none."""
    from prefect.exceptions import ObjectNotFound

    named = os.environ.get(NOTIFY, "").strip()
    if not named:
        return None
    kind, _, name = named.partition("/")
    example = "name one as type/name, such as slack-webhook/team"
    if not kind or not name:
        raise EnvironmentMistake(Problem(NOTIFY, named, "must be a type and a name", example))
    try:
        block = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        remedy = "make it in Prefect under Blocks, or with `prefect block create`"
        raise EnvironmentMistake(Problem(NOTIFY, named, "the Prefect server has no such block", remedy)) from error
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise EnvironmentMistake(Problem(NOTIFY, named, "that block sends no notifications", example))
    return block.id


def _ours(client: SyncPrefectClient) -> list[Automation]:
    from prefect.events.schemas.automations import Automation

    found: list[Automation] = []
    while True:
        page = {"limit": PAGE, "offset": len(found), "sort": "NAME_ASC"}
        answer = client.request("POST", "/automations/filter", json=page).json()
        found += [Automation.model_validate(one) for one in answer]
        if len(answer) < PAGE:
            return [one for one in found if one.name.startswith(PREFIX)]


def _content(automation: AutomationCore) -> dict[str, Any]:
    """What of an automation is hone's: not the ids that the server gave it, nor whether somebody paused it."""
    wanted = automation.model_dump(mode="json", include={"name", "description", "trigger", "actions"})
    content: dict[str, Any] = _sorted(wanted)
    return content


def _sorted(value: Any) -> Any:
    """The same with sets, which JSON knows as lists in any order, in one order."""
    if isinstance(value, dict):
        return {name: _sorted(one) for name, one in value.items() if name != "id"}
    if isinstance(value, list):
        return sorted((_sorted(one) for one in value), key=repr)
    return value


def _asked(automation: AutomationCore, *, enabled: bool) -> AutomationCore:
    return automation.model_copy(update={"enabled": enabled})
