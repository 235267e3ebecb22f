"""Recipes on a Prefect server: deployed once, again, and after they have changed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import RECIPE, Hone, Servers

pytestmark = pytest.mark.e2e

SCHEDULE = "schedule: {retrain: {cron: '0 3 * * 1', timezone: Europe/Berlin, active: false}}\n"


def done(hone: Hone) -> dict[str, str]:
    """Deployment → what was done about it."""
    deployed = hone("deploy", "recipe.yaml")
    assert deployed.code == 0, deployed.errors
    return {each["name"]: each["done"] for each in deployed.result["deployments"]}


def test_deploying_again_changes_nothing_and_what_leaves_a_recipe_leaves_the_server(
    project: Any, servers: Servers
) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    hone: Hone = project("deployed", servers)
    recipe = hone.project / "recipe.yaml"
    recipe.write_text(RECIPE.replace("NAME", "deployed") + SCHEDULE)
    first = done(hone)
    ours = [name for name in first if name.endswith("/deployed")]
    assert len(ours) == 13
    assert {first[name] for name in ours} == {"created"}
    with SyncPrefectClient(servers.prefect) as client:
        known = client.read_deployment_by_name("retrain/deployed")
        (schedule,) = known.schedules
        rhythm = schedule.schedule
        assert (rhythm.cron, rhythm.timezone, schedule.active) == ("0 3 * * 1", "Europe/Berlin", False)
        assert (known.global_concurrency_limit.limit, known.work_pool_name) == (1, "hone")
        assert set(known.tags) == {"hone", "deployed", "text-classification"}
        assert known.description.startswith("The recipe deployed.")

        client.update_deployment_schedule(known.id, schedule.id, active=True)  # switched on in the UI
        assert set(done(hone).values()) == {"unchanged"}
        assert client.read_deployment_by_name("retrain/deployed").updated == known.updated

        recipe.write_text(recipe.read_text().replace("epochs: 3", "epochs: 4"))
        assert done(hone)["retrain/deployed"] == "updated"
        known = client.read_deployment_by_name("retrain/deployed")
        assert known.parameters["recipe"]["train"]["epochs"] == 4
        assert [each.active for each in known.schedules] == [True]

        recipe.write_text(recipe.read_text().replace(SCHEDULE, ""))
        changed = done(hone)
        assert [name for name, what in changed.items() if what != "unchanged"] == ["retrain/deployed"]
        assert client.read_deployment_by_name("retrain/deployed").schedules == []
