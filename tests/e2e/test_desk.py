"""The desk: one command brings up Prefect, MLflow and a worker, and from there everything can be done."""

from __future__ import annotations

import signal
from uuid import UUID

import psutil
import pytest

from tests.e2e.conftest import Hone
from tests.e2e.desk import Up, bring_up, desk, until
from tests.e2e.servers import running_postgres, running_s3

pytestmark = pytest.mark.e2e

STAGES = ["collect", "clean", "split", "tokenize", "train", "evaluate", "gate", "register"]


def test_a_desk_runs_what_is_triggered_and_keeps_its_state_between_starts(project):
    hone: Hone = project("desk")
    with desk(hone) as up:
        assert up.said["recipes"] == ["desk"]
        assert up.said["home"] == str(hone.home)
        with up.prefect() as client:
            flows = {flow.id: flow.name for flow in client.read_flows()}
            deployments = {f"{flows[d.flow_id]}/{d.name}": d for d in client.read_deployments(limit=200)}
            per_recipe = [f"{kind}/desk" for kind in ["finetune", "retrain", "curve", "tune", "compare", *STAGES]]
            assert set(deployments) == {
                *per_recipe,
                *(f"{kind}/any-model" for kind in ("promote", "rollback", "evaluate")),
            }
            assert deployments["finetune/desk"].parameters["recipe"]["train"]["learning_rate"] == 0.003
            recipe = deployments["finetune/desk"].parameters["recipe"]

        run = up.trigger("finetune/desk", recipe={**recipe, "train": {**recipe["train"], "epochs": 2}})
        assert up.wait(run, "Completed")
        mlflow_run = up.mlflow_run(run, "desk")
        assert mlflow_run.info.status == "FINISHED"
        assert mlflow_run.data.params["train.epochs"] == "2.0"
        assert mlflow_run.data.tags["hone.flow_run_url"] == f"{up.said['prefect_ui_url']}/flow-runs/flow-run/{run}"

        here = hone("run", "recipe.yaml")
        assert here.code == 0, here.errors
        assert up.state(UUID(here.result["flow_run_id"])).name == "Completed"
        assert here.result["mlflow_url"].startswith(up.said["mlflow_url"])

        second = hone("up", "recipe.yaml")
        assert second.code == 2
        assert f"its desk is up already, at {up.said['prefect_ui_url']} and {up.said['mlflow_url']}" in second.errors

        processes = up.processes()
        assert up.stop() < 10
        assert psutil.wait_procs(processes, timeout=2)[1] == []

    # Embedded, on the same databases, with what the servers have left.
    embedded = hone("status")
    (model,) = embedded.result["models"]
    assert (model["name"], model["champion"]["version"]) == ("desk", "2")
    evaluated = hone("evaluate", "desk")
    assert evaluated.code == 0, evaluated.errors

    with desk(hone) as up:
        assert up.state(run).name == "Completed"
        with up.prefect() as client:
            known = {d.id: d.updated for d in client.read_deployments(limit=200)}
        assert known == {d.id: d.updated for d in deployments.values()}
        up.stop(signal.SIGTERM)


def test_who_serves_is_decided_from_prefect(project):
    hone: Hone = project("decided")
    strict = ["--set", "train.learning_rate=2e-3", "--set", "gate.thresholds=[{metric: accuracy, at_least: 1.01}]"]
    with desk(hone) as up:
        assert hone("run", "recipe.yaml").code == 0
        assert hone("run", "recipe.yaml", *strict).result["gate"]["decision"] == "reject"

        refused = up.wait(up.trigger("promote/any-model", model="decided", version="2", promoted_by="ada"))
        assert refused.name == "Failed"
        assert "version = '2': it failed the gate; to let it serve all the same" in refused.message
        assert up.mlflow.get_model_version_by_alias("decided", "champion").version == "1"

        forced = {"version": "2", "promoted_by": "ada", "reason": "for a day", "override": True}
        up.wait(up.trigger("promote/any-model", model="decided", **forced), "Completed")
        assert up.mlflow.get_model_version_by_alias("decided", "champion").version == "2"
        up.wait(
            up.trigger("rollback/any-model", model="decided", rolled_back_by="bob", reason="complaints"), "Completed"
        )
        up.wait(up.trigger("evaluate/any-model", model="decided"), "Completed")
        with up.prefect() as client:
            shown = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
        pages = {artifact.key: artifact for artifact in shown}  # the newest of each key
        assert "version 1 serves now; version 2 served before" in pages["champion-decided"].data
        assert "decided version 1: promote" in pages["evaluation-decided"].data

        (model,) = hone("status").result["models"]
        assert [(move["to"], move["what"], move["by"], move["reason"]) for move in model["history"][1:]] == [
            ("2", "promoted", "ada", "for a day (with --override)"),
            ("1", "rolled back", "bob", "complaints"),
        ]


def test_parts_that_die_are_started_again(project):
    hone: Hone = project("mended")
    with desk(hone) as up:
        for part in ("-m mlflow server", "-m prefect worker start", "-m prefect server start"):
            up.part(part).kill()
        until(lambda: up.errors.read_text().count("starting it again") == 3, 30, "the desk to notice")
        run = until(lambda: triggered(up), 90, "the Prefect server to be back")
        assert up.wait(run, "Completed")
        assert up.mlflow.search_experiments()


def triggered(up: Up) -> UUID | None:
    import httpx

    try:
        return up.trigger("collect/mended")
    except httpx.HTTPError:
        return None


def test_a_desk_that_is_killed_leaves_no_process_and_no_run_running(project):
    hone: Hone = project("killed")
    up = bring_up(hone)
    run = up.trigger("finetune/killed")
    until(lambda: (found := up.mlflow_run(run, "killed")) and found.data.metrics.get("loss"), 120, "the training")
    processes = up.processes()
    up.process.kill()
    up.process.wait()
    assert psutil.wait_procs(processes, timeout=45)[1] == []
    status = hone("status").result
    assert status["running"] == []
    with desk(hone) as again:
        assert again.state(run).name in {"Crashed", "Completed"}
        assert again.mlflow_run(run, "killed").info.status in {"KILLED", "FINISHED"}


def test_a_desk_on_postgresql_and_s3_keeps_nothing_of_theirs_in_the_home(project, monkeypatch):
    hone: Hone = project("shared")
    with running_postgres() as postgres, running_s3(monkeypatch):
        for database in ("prefect", "mlflow"):
            postgres.execute(f"CREATE DATABASE {database}", "postgres")
        hone.environment = {
            "MLFLOW_TRACKING_URI": postgres.url(database="mlflow"),
            "HONE_ARTIFACTS": "s3://data/mlflow",
            "HONE_STORE": "s3://data/store",
        }
        asyncpg = postgres.url(database="prefect").replace("psycopg", "asyncpg")
        with desk(hone, PREFECT_SERVER_DATABASE_CONNECTION_URL=asyncpg) as up:
            run = up.trigger("finetune/shared")
            assert up.wait(run, "Completed")
            found = up.mlflow_run(run, "shared")
            assert found.info.artifact_uri.startswith("s3://data/mlflow/")
            assert found.info.status == "FINISHED"
        (state,) = postgres.execute("SELECT state_name FROM flow_run WHERE state_type = 'COMPLETED'", "prefect")
        assert state == ("Completed",)
        assert postgres.execute("SELECT alias FROM registered_model_aliases", "mlflow") == [("champion",)]
        assert not (hone.home / "mlflow.db").exists()
        assert not (hone.home / "prefect" / "prefect.db").exists()
        # Without the servers, straight to the same databases.
        assert hone("evaluate", "shared").code == 0
