from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flows import events
from flows.cli import main
from schemas.errors import Fault
from schemas.records import Artifact, Check, ModelVersion, Verdict
from tasks.context import Context
from tasks.home import Home
from tasks.promotion_journal import Move

pytest_plugins = ("tests.mlflow_home",)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a Prefect server was sent."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(events, "_send", taken.extend)
    return taken


def moved(home: Home, event: str = "confirmed", **more: Any) -> Move:
    move = Move("tiny", "2", "1", "ada", "sharper", **more)
    if event == "confirmed":
        move.note(home, "intent")
    move.note(home, event)
    return move


# Champions.


def test_every_settled_move_is_told_once(home, sent):
    moved(home, decision="promote", flow_run_id="f-1")
    moved(home, rolls_back=True)
    moved(home, "by hand", decision="reject")
    moved(home, "elsewhere")
    moved(home, "refused")
    moved(home, "undone")
    assert len(events.publish(home)) == 4
    assert [event["event"].removeprefix("hone.model.") for event in sent] == [
        "promoted", "rolled_back", "moved_by_hand", "promoted",
    ]  # fmt: skip
    first = sent[0]
    assert first["resource"] == {
        "prefect.resource.id": "hone.model.tiny", "prefect.resource.name": "tiny",
        "hone.version": "2", "hone.before": "1", "hone.decision": "promote", "hone.by": "ada", "hone.reason": "sharper",
    }  # fmt: skip
    assert first["related"] == [{"prefect.resource.id": "prefect.flow-run.f-1", "prefect.resource.role": "flow-run"}]
    assert [event["payload"]["gate_failed"] for event in sent] == [False, False, True, False]
    assert events.publish(home) == []
    moved(home)
    assert len(events.publish(home)) == 1


def test_a_move_that_the_server_did_not_take_is_told_later_under_the_same_id(home, sent, monkeypatch, caplog):
    moved(home)

    def dies_after_sending(news: list[dict[str, Any]]) -> None:
        sent.extend(news)
        raise Fault("Prefect does not take events: refused")

    with monkeypatch.context() as patch:
        patch.setattr(events, "_send", dies_after_sending)
        events.publish_if_possible(home)
        assert "Prefect does not take events: refused; the next command tells it" in caplog.text
    events.publish(home)
    once, again = sent
    assert once["id"] == again["id"]


def test_homes_that_share_an_mlflow_tell_of_one_move_under_one_id(home, sent, tmp_path):
    move = moved(home)
    other = Home(tmp_path / "other")
    other.locks.mkdir(parents=True)
    Move("tiny", "2", "1", "ada", "sharper", id=move.id).note(other, "elsewhere")
    events.publish(home)
    events.publish(other)
    assert len({event["id"] for event in sent}) == 1


def test_history_of_long_ago_is_not_told(home, sent, monkeypatch):
    old = datetime.now(UTC) - timedelta(days=2)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.promotion_journal.now", old.isoformat)
        moved(home)
    moved(home)
    (told,) = events.publish(home)
    assert datetime.fromisoformat(told["at"]) > old


def test_a_line_that_a_crash_cut_short_is_told_when_it_is_whole_and_swallows_no_other(home, sent):
    moved(home)
    file = home.journal / "promotions.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert events.publish(home) == []
    file.write_bytes(whole[:-1])  # all but the end of the line
    assert len(events.publish(home)) == 1
    moved(home)
    assert len(events.publish(home)) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"promotions": 1000000}'])
def test_a_place_that_is_none_means_the_whole_journal(home, sent, text):
    moved(home)
    (home.journal / "events.json").write_text(text)
    assert len(events.publish(home)) == 1


def test_without_a_server_nothing_is_sent_and_the_moves_wait_for_one(home, sent, monkeypatch):
    moved(home)
    with monkeypatch.context() as patch:
        patch.delenv("PREFECT_API_URL")
        patch.setenv("PREFECT_HOME", str(home.root / "prefect"))
        assert events.publish(home) == []
    assert len(events.publish(home)) == 1


def test_commands_tell_what_they_moved(home, sent):
    from mlflow import MlflowClient

    mlflow = MlflowClient(home.mlflow_uri)
    mlflow.create_registered_model("tiny")
    for _ in range(2):
        mlflow.create_model_version("tiny", "s3://nowhere", tags={"hone.gate": "promote"})
    assert main(["promote", "tiny", "1"]) == 0
    assert main(["promote", "tiny", "2"]) == 0
    assert main(["rollback", "tiny"]) == 0
    assert [(event["event"], event["payload"]["version"]) for event in sent] == [
        ("hone.model.promoted", "1"), ("hone.model.promoted", "2"), ("hone.model.rolled_back", "1"),
    ]  # fmt: skip


def test_a_promotion_without_servers_imports_no_prefect(home):
    import subprocess

    script = """
import sys
from mlflow import MlflowClient
from pathlib import Path
from tasks.home import Home
home = Home.open(Path.cwd())
mlflow = MlflowClient(home.mlflow_uri)
mlflow.create_registered_model("tiny")
mlflow.create_model_version("tiny", "s3://nowhere", tags={"hone.gate": "promote"})
from flows.cli import main
assert main(["promote", "tiny", "1"]) == 0
assert "prefect" not in sys.modules
"""
    environment = {"HONE_HOME": str(home.root), "HOME": str(home.root), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# Runs.


def rows(context: Context, content: str, *, names: str = "a.csv") -> Artifact:
    settings = {"names": [names], "digests": [content]}
    key = f"{content}{names}".encode().hex()
    with context.store.draft("collect", key) as draft:
        context.store.publish(
            draft, "collect", key, ingredients={"settings": settings}, summary={"rows": 3}, run_id="r"
        )
    return Artifact(
        stage="collect", key=key, cached=False, why="1 of 1 digests new", seconds=0.0, run_id="r", summary={"rows": 3}
    )


def test_rows_that_changed_are_told_once_with_the_flow_that_found_them(home, recipe, sent, monkeypatch):
    monkeypatch.setattr(events, "_flow_name", lambda: "collect")
    context = Context(recipe, home, "")
    for content, names in (("one", "a.csv"), ("one", "a.csv"), ("one", "b.csv"), ("two", "b.csv")):
        events.announce(context, [rows(context, content, names=names)])
    assert [event["event"] for event in sent] == ["hone.data.changed"] * 2
    assert sent[1]["resource"] == {
        "prefect.resource.id": "hone.recipe.tiny", "prefect.resource.name": "tiny",
        "hone.found-by": "collect", "hone.why": "1 of 1 digests new", "hone.rows": "3",
    }  # fmt: skip


def test_changed_rows_that_the_server_did_not_take_are_told_by_the_next_run(home, recipe, sent, monkeypatch):
    monkeypatch.setattr(events, "_flow_name", lambda: "collect")
    context = Context(recipe, home, "")

    def away(news: list[dict[str, Any]]) -> None:
        raise Fault("Prefect is away")

    with monkeypatch.context() as patch:
        patch.setattr(events, "_send", away)
        events.announce(context, [rows(context, "one")])
    events.announce(context, [rows(context, "one")])
    assert len(sent) == 1


def judged(decision: Any, **more: Any) -> list[Any]:
    common = {"key": "k", "why": "", "seconds": 0.0, "run_id": "r"}
    checks = (
        Check(name="threshold:accuracy", outcome="failed", rule="at least 0.9", found="0.5"),
        Check(name="budget:size", outcome="passed", rule="at most 9", found="1"),
    )
    verdict = Verdict(stage="gate", cached=False, decision=decision, checks=checks, champion="1", **common)
    return [verdict, ModelVersion(stage="register", name="tiny", version="2", aliases=(), **common, **more)]


def test_a_new_version_is_told_and_one_that_was_there_is_not(home, recipe, sent):
    context = Context(recipe, home, "run", flow_run_id="f-1")
    events.announce(context, judged("challenger", cached=False))
    events.announce(context, judged("challenger", cached=True))
    (event,) = sent
    assert event["event"] == "hone.model.registered"
    assert event["resource"]["hone.version"] == "2"
    assert event["resource"]["hone.decision"] == "challenger"
    assert event["payload"]["mlflow_run_id"] == "run"


def test_a_rejected_model_is_told_with_what_it_failed(home, recipe, sent):
    events.announce(Context(recipe, home, "run"), judged("reject", cached=True))
    (event,) = sent
    assert event["event"] == "hone.model.gate_failed"
    assert event["resource"]["hone.reason"] == "threshold:accuracy"
    assert [check["name"] for check in event["payload"]["failed"]] == ["threshold:accuracy"]
