"""What Prefect does by itself for hone, on a real server: events arrive, dead runs end, new rows retrain once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, Running

from flows import automations, events
from flows.automations import apply_automations
from schemas.errors import EnvironmentMistake
from schemas.recipe import Recipe
from tasks.home import Home
from tasks.promotion_journal import Move
from tests.e2e.conftest import Hone, Servers

pytestmark = pytest.mark.e2e
pytest_plugins = ("tests.mlflow_home",)


@pytest.fixture
def prefect(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("PREFECT_API_URL", servers.prefect)
    monkeypatch.delenv("HONE_NOTIFY", raising=False)
    with temporary_settings({PREFECT_API_URL: servers.prefect}), get_client(sync_client=True) as client:
        yield client
        for automation in automations._ours(client):
            client.delete_automation(automation.id)


def until(done: Callable[[], Any], limit_s: float = 40.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := done()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.3)
    return found


def named(recipe: Recipe, name: str, *, on_new_rows: bool = True) -> Recipe:
    retrain = recipe.retrain.model_copy(update={"on_new_rows": on_new_rows})
    return recipe.model_copy(update={"name": name, "retrain": retrain})


def deployed(client: SyncPrefectClient, name: str, *tags: str) -> Any:
    return client.create_deployment(client.create_flow_from_name("retrain"), name, tags=list(tags))


def heartbeat(run: FlowRun) -> None:
    """As a flow run sends it."""
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags]
    events._send([{
        "id": str(uuid4()), "event": "prefect.flow-run.heartbeat", "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"}, "related": tags, "payload": {},
    }])  # fmt: skip


def test_a_move_arrives_once_however_often_it_is_sent(home: Home, prefect: SyncPrefectClient) -> None:
    name = f"tiny-{uuid4().hex[:8]}"
    Move(name, "2", "1", "ada", "sharper", decision="promote").note(home, "confirmed")
    assert len(events.publish(home)) == 1
    (home.journal / "events.json").unlink()  # as if the process had died before it could remember
    assert len(events.publish(home)) == 1
    Move(name, "1", "2", "bob", "complaints", rolls_back=True).note(home, "confirmed")
    events.publish(home)

    def seen() -> list[Any]:
        ours = EventFilter(event=EventNameFilter(prefix=["hone.model."]))
        found = prefect.read_events(ours, limit=50).events
        return [event for event in found if event.resource.id == f"hone.model.{name}"]

    until(lambda: len(seen()) >= 2)
    assert sorted(event.event for event in seen()) == [events.PROMOTED, events.ROLLED_BACK]


def test_a_run_tells_what_it_found_and_what_became_of_its_model(
    project: Callable[..., Hone], servers: Servers, prefect: SyncPrefectClient
) -> None:
    name = f"told-{uuid4().hex[:8]}"
    done = project(name, servers)("run", "recipe.yaml")
    assert done.code == 0, done.errors

    def seen() -> list[Any]:
        ours = EventFilter(event=EventNameFilter(prefix=["hone."]))
        found = prefect.read_events(ours, limit=50).events
        return [event for event in found if event.resource["prefect.resource.name"] == name]

    until(lambda: len(seen()) >= 3)
    by_name = {event.event: event for event in seen()}
    assert sorted(by_name) == [events.DATA_CHANGED, events.PROMOTED, events.REGISTERED]
    assert by_name[events.DATA_CHANGED].resource[events.FOUND_BY] == "finetune"
    assert by_name[events.REGISTERED].resource["hone.version"] == "1"
    assert by_name[events.PROMOTED].resource["hone.decision"] == "promote"
    for event in by_name.values():
        assert [one.id for one in event.related] == [f"prefect.flow-run.{done.result['flow_run_id']}"]


def test_a_server_that_is_away_is_a_fault_within_seconds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    Move("tiny", "2", "1", "ada", "sharper").note(home, "confirmed")
    began = time.monotonic()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        events.publish_if_possible(home)
    assert time.monotonic() - began < 10
    assert events._told(home) == {}


def test_applying_twice_changes_nothing_and_what_is_not_wanted_any_more_goes(
    recipe: Recipe, prefect: SyncPrefectClient
) -> None:
    for name in ("one", "two"):
        deployed(prefect, name)
    dead, *both = apply_automations(prefect, [named(recipe, "one"), named(recipe, "two")])
    assert both == ["hone: retrain one on new rows", "hone: retrain two on new rows"]
    assert apply_automations(prefect, [named(recipe, "one"), named(recipe, "two")]) == []
    assert apply_automations(prefect, [named(recipe, "one")]) == []  # the other one is deployed still
    assert apply_automations(prefect, [named(recipe, "two", on_new_rows=False)]) == both[1:]
    prefect.delete_deployment(prefect.read_deployment_by_name("retrain/one").id)
    assert apply_automations(prefect, []) == both[:1]
    (left,) = automations._ours(prefect)
    assert left.name == dead


def test_a_changed_automation_is_updated_and_one_that_was_paused_stays_paused(
    recipe: Recipe, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dead,) = apply_automations(prefect, [])
    (made,) = automations._ours(prefect)
    prefect.pause_automation(made.id)
    monkeypatch.setattr(automations, "LOST", timedelta(seconds=77))
    assert apply_automations(prefect, []) == [dead]
    (now,) = automations._ours(prefect)
    assert (now.id, now.enabled, now.trigger.within) == (made.id, False, timedelta(seconds=77))


@pytest.mark.slow
def test_a_run_of_hone_whose_heartbeat_stops_is_ended_and_no_other(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automations, "LOST", timedelta(seconds=10))
    ours, foreign = deployed(prefect, "ours", "hone"), deployed(prefect, "foreign")
    apply_automations(prefect, [])
    time.sleep(2)  # until the server has read them
    deployments = {"dead": ours, "young": ours, "alive": ours, "ended": ours, "foreign": foreign}
    runs = {name: prefect.create_flow_run_from_deployment(one) for name, one in deployments.items()}
    heartbeat(runs["young"])  # dies between its first heartbeat and its next one
    for run in runs.values():
        prefect.set_flow_run_state(run.id, Running(), force=True)
    for name in ("dead", "alive", "ended", "foreign"):
        heartbeat(runs[name])
    prefect.set_flow_run_state(runs["ended"].id, Completed(name="Skipped"), force=True)

    def states() -> dict[str, str | None]:
        heartbeat(runs["alive"])
        return {name: prefect.read_flow_run(run.id).state_name for name, run in runs.items()}

    until(lambda: {states()[name] for name in ("dead", "young")} == {"Crashed"})
    assert states() == {
        "dead": "Crashed", "young": "Crashed", "alive": "Running", "ended": "Skipped", "foreign": "Running",
    }  # fmt: skip


def test_new_rows_that_a_stage_found_are_trained_on_and_those_that_retraining_found_are_not(
    recipe: Recipe, prefect: SyncPrefectClient
) -> None:
    deployment = deployed(prefect, "rows", "hone")
    apply_automations(prefect, [named(recipe, "rows")])
    time.sleep(2)
    for finder in ("retrain", "finetune", "register", "collect"):
        labels = {events.FOUND_BY: finder}
        event = events._event(
            events.DATA_CHANGED, "hone.recipe.rows", "rows", labels=labels, payload={}, flow_run_id=""
        )
        events._send([event])

    def runs() -> list[FlowRun]:
        return [run for run in prefect.read_flow_runs() if run.deployment_id == deployment]

    until(runs)
    time.sleep(2)
    assert len(runs()) == 1


@pytest.mark.parametrize(
    ("named_block", "said"),
    [
        ("team", "must be a type and a name"),
        ("slack-webhook/team", "the Prefect server has no such block"),
        ("no-such-type/team", "the Prefect server has no such block"),
        ("secret/password", "that block sends no notifications"),
    ],
)
def test_a_block_that_cannot_notify_is_a_mistake(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, named_block: str, said: str
) -> None:
    from prefect.blocks.system import Secret

    Secret(value="x").save("password", overwrite=True)
    monkeypatch.setenv("HONE_NOTIFY", named_block)
    with pytest.raises(EnvironmentMistake, match=said):
        apply_automations(prefect, [])


def test_a_failure_is_told(prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Team(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Team) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        CustomWebhookNotificationBlock(
            name="team",
            url=f"http://127.0.0.1:{server.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        ).save("team", overwrite=True)
        monkeypatch.setenv("HONE_NOTIFY", "custom-webhook/team")
        apply_automations(prefect, [])
        time.sleep(2)
        ours, foreign = deployed(prefect, "failing", "hone"), deployed(prefect, "others")
        for deployment in (foreign, ours):
            run = prefect.create_flow_run_from_deployment(deployment)
            prefect.set_flow_run_state(run.id, Running(), force=True)
            prefect.set_flow_run_state(run.id, Failed(message="collect: no such file"), force=True)
        until(lambda: told)
        time.sleep(2)
        server.shutdown()
    (message,) = told
    assert message["subject"] == "hone: retrain/failing failed"
    assert message["body"].strip() == f"Flow run {run.name} of retrain/failing ended Failed.\ncollect: no such file"
