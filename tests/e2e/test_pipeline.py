"""The pipeline as a user runs it: real processes, real Prefect and MLflow servers, a tiny model that really learns."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from tests.e2e.conftest import CHECKOUT, LONG, Ended, Hone, Servers, ended, labels_without_hone

pytestmark = pytest.mark.e2e

DATA = ["collect", "clean", "split", "data-report", "tokenize"]
AFTER_DATA = ["train", "evaluate", "gate", "register"]


@pytest.fixture
def mlflow(servers: Servers) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(servers.mlflow)


@pytest.fixture
def prefect(servers: Servers) -> Iterator[Any]:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(servers.prefect) as client:
        yield client


def task_states(prefect: Any, run: Ended) -> dict[str, str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run.result["flow_run_id"])]))
    return {r.name.rsplit("-", 1)[0]: r.state_name for r in prefect.read_task_runs(flow_run_filter=chosen)}


def test_a_recipe_becomes_a_champion_and_everything_is_on_record(project, servers, mlflow, prefect):
    hone: Hone = project("record", servers)
    first = hone("run", "recipe.yaml")
    assert first.code == 0, first.errors
    result = first.result

    assert first.computed == [*DATA, *AFTER_DATA]
    assert result["gate"]["passed"] is True
    assert result["model"] | {"key": "", "seconds": 0, "run_id": "", "why": ""} == {
        "stage": "register", "key": "", "cached": False, "why": "", "seconds": 0, "run_id": "",
        "name": "record", "version": "1", "aliases": ["champion"],
    }  # fmt: skip
    assert result["metrics"]["macro_f1_low"] <= result["metrics"]["macro_f1"] <= result["metrics"]["macro_f1_high"]
    assert set(result["baselines"]) == {"majority", "tfidf"}
    rows = result["rows"]
    quarantined = sum(rows["quarantined"].values())
    assert rows["train"] + rows["validation"] + rows["test"] + quarantined == rows["collected"] == 800
    assert result["train"]["steps"] == result["train"]["steps_run_here"] > 0

    run = mlflow.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.learning_rate"] == "0.003"
    assert run.data.params["plan.precision"] == result["train"]["plan"]["precision"]
    assert run.data.tags["hone.flow_run_id"] == result["flow_run_id"]
    assert run.data.tags["hone.flow_run_url"].endswith(result["flow_run_id"])
    assert run.data.tags["hone.stage.train.key"] == next(s["key"] for s in result["stages"] if s["name"] == "train")
    assert run.data.metrics["test/macro_f1"] == pytest.approx(result["metrics"]["macro_f1"])
    losses = mlflow.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in losses] == sorted({m.step for m in losses})
    assert len(losses) > 50
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert {d.tags[0].value for d in run.inputs.dataset_inputs} == {"train", "validation", "test"}
    files = {f.path for f in mlflow.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/report.md", "evaluation/confusion_matrix.png", "evaluation/learning_curve.png"} <= files

    assert prefect.read_flow_run(UUID(result["flow_run_id"])).state_name == "Completed"
    assert set(task_states(prefect, first).values()) == {"Completed"}
    kinds = {a.key: a.type for a in prefect.read_artifacts()}
    assert kinds["report-record"] == "markdown"
    assert kinds["training-record"] == "progress"
    assert kinds["mlflow-run"] == "markdown"

    second = hone("run", "recipe.yaml")
    assert second.computed == ["gate"]
    assert second.result["model"]["version"] == "1"
    assert second.result["train"]["steps_run_here"] == 0
    assert second.result["train"]["weights_sha256"] == result["train"]["weights_sha256"]
    assert task_states(prefect, second)["train"] == "Cached"
    tags = mlflow.get_run(second.result["mlflow_run_id"]).data.tags
    assert tags["hone.stage.train.run_id"] == result["mlflow_run_id"]
    assert len(mlflow.search_model_versions("name='record'")) == 1

    third = hone("run", "recipe.yaml", "--set", "train.learning_rate=2e-3")
    assert third.computed == AFTER_DATA
    why = {s["name"]: s["why"] for s in third.result["stages"]}
    assert why["train"] == "train.learning_rate 0.003 → 0.002"
    champion = {c["name"]: c for c in third.result["gate"]["checks"]}["champion:macro_f1"]
    assert "over version 1 on" in champion["found"]

    refreshed = hone("run", "recipe.yaml", "--refresh", "evaluate")
    assert refreshed.computed == ["evaluate", "gate"]


def test_the_registered_model_predicts_where_hone_is_not_to_be_had(project, servers):
    hone: Hone = project("serving", servers)
    assert hone("run", "recipe.yaml", "--set", "gate.thresholds=[]").code == 0
    texts = ["great so fine all great", "awful so bad all poor"]
    assert labels_without_hone("models:/serving@champion", texts, servers) == ["positive", "negative"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rooms whose code a test may change."""
    copy = tmp_path_factory.mktemp("checkout")
    for room in ("flows", "tasks", "schemas"):
        shutil.copytree(CHECKOUT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_changed_code_and_damaged_files_rerun_exactly_what_they_must(project, servers, checkout):
    hone: Hone = project("caching", servers)
    hone.checkout = checkout
    first = hone("run", "recipe.yaml")
    assert first.code == 0, first.errors

    helper = checkout / "tasks" / "rules" / "targets.py"  # not one that travels with the model
    source = helper.read_text()
    signature = "def strip(targets: pl.Series"
    changed = source.replace(signature, f"{signature}, unused: int = 0")
    assert changed != source
    helper.write_text(changed)
    edited = hone("run", "recipe.yaml")
    assert edited.computed[0] == "clean"
    assert edited.stages["collect"] == "cached"
    assert next(s["why"] for s in edited.result["stages"] if s["name"] == "clean") == "1 of 1 parts new; code changed"
    # The rows came out the same, so the same weights were learnt, and there is nothing new to register.
    assert edited.result["train"]["weights_sha256"] == first.result["train"]["weights_sha256"]
    assert edited.result["model"]["version"] == "1"

    key = next(s["key"] for s in edited.result["stages"] if s["name"] == "tokenize")
    damaged = hone.home / "store" / "tokenize" / key / "train.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    mended = hone("run", "recipe.yaml")
    assert mended.computed == ["tokenize", "gate"]

    key = next(s["key"] for s in edited.result["stages"] if s["name"] == "split")
    shutil.rmtree(hone.home / "store" / "split" / key)
    assert hone("run", "recipe.yaml").computed == ["split", "gate"]


SAVED = [*LONG, "--set", "train.save_steps=25"]


def family_tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def training_child(process: subprocess.Popen[str]) -> psutil.Process:
    (child,) = [p for p in family_tree(process) if "tasks.worker" in p.cmdline()]
    return child


def gone_within(processes: list[psutil.Process], seconds: float) -> bool:
    return psutil.wait_procs(processes, timeout=seconds)[1] == []


def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    project, servers, mlflow, prefect, uninterrupted
):
    # The child dies: the stage is tried again within the same run.
    cut: Hone = project("cut", servers, folder="cut")
    process = cut.start("run", "recipe.yaml", *SAVED, "--json")
    cut.until(process, r"train: step [1-9]\d\d of")
    training_child(process).kill()
    child_killed = ended(process)
    assert child_killed.code == 0, child_killed.errors
    train = child_killed.result["train"]
    assert 0 < train["resumed_from_step"] < train["steps"]
    assert train["steps_run_here"] == train["steps"] - train["resumed_from_step"]
    assert train["weights_sha256"] == uninterrupted
    assert mlflow.get_run(child_killed.result["mlflow_run_id"]).info.status == "FINISHED"

    # Everything dies: the same command goes on from the checkpoint, and closes what the dead one left.
    gone: Hone = project("gone", servers, folder="gone")
    process = gone.start("run", "recipe.yaml", *SAVED, "--json")
    gone.until(process, r"train: step [1-9]\d\d of")
    orphans = family_tree(process)
    process.kill()
    process.wait()
    assert gone_within(orphans, 10)
    again = gone("run", "recipe.yaml", *SAVED)
    assert again.code == 0, again.errors
    assert again.result["train"]["steps_run_here"] < again.result["train"]["steps"]
    assert again.result["train"]["weights_sha256"] == uninterrupted
    dead = mlflow.get_run(again.result["mlflow_run_id"]).data.tags["hone.continues"]
    dead_run = mlflow.get_run(dead)
    assert dead_run.info.status == "KILLED"
    flow_run = prefect.read_flow_run(UUID(dead_run.data.tags["hone.flow_run_id"]))
    assert flow_run.state_type.value == "CRASHED"
    assert list((gone.home / "work").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_killed_leaves_no_process_and_goes_on_at_the_step_it_was_at(
    project, servers, mlflow, prefect, uninterrupted, how
):
    hone: Hone = project("interrupted", servers)
    process = hone.start("run", "recipe.yaml", *LONG, "--json")
    hone.until(process, r"train: step [1-9]\d\d of")
    orphans = family_tree(process)
    began = time.monotonic()
    process.send_signal(how)
    stopped = ended(process)
    assert time.monotonic() - began < 15
    (step,) = re.findall(r"train: stopped after step (\d+), which is saved", stopped.errors)
    assert (stopped.code, "goes on from the last checkpoint" in stopped.errors) == (130, True)
    assert gone_within(orphans, 5)
    experiment = mlflow.get_experiment_by_name("interrupted").experiment_id
    (run,) = mlflow.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)
    assert run.info.status == "KILLED"
    state = prefect.read_flow_run(UUID(run.data.tags["hone.flow_run_id"])).state_type.value
    assert state in {"CRASHED", "CANCELLED"}

    again = hone("run", "recipe.yaml", *LONG)
    assert again.code == 0, again.errors
    train = again.result["train"]
    assert train["resumed_from_step"] == int(step)
    assert train["steps_run_here"] == train["steps"] - int(step)
    assert train["weights_sha256"] == uninterrupted


def test_a_users_mistake_is_one_line_exit_code_two_and_no_retry(project, servers, mlflow, prefect):
    hone: Hone = project("mistaken", servers)
    (hone.project / "rows.csv").write_text("text,queue\nhello,positive\n")
    began = time.monotonic()
    wrong = hone("run", "recipe.yaml")
    assert wrong.code == 2
    assert time.monotonic() - began < 30
    (line,) = [line for line in wrong.errors.splitlines() if line.startswith("hone: ")]
    assert line.startswith("hone: task.label_column = 'label': ")
    assert "Traceback" not in wrong.errors
    assert wrong.result["error"]["problems"][0]["field"] == "task.label_column"
    experiment = mlflow.get_experiment_by_name("mistaken").experiment_id
    (run,) = mlflow.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert prefect.read_flow_run(UUID(run.data.tags["hone.flow_run_id"])).state_type.value == "FAILED"


def test_without_servers_everything_is_embedded_and_deleting_the_home_resets_it(project):
    hone: Hone = project("embedded")
    first = hone("run", "recipe.yaml")
    assert first.code == 0, first.errors
    assert (hone.home / "mlflow.db").exists()
    assert (hone.home / "prefect" / "prefect.db").exists()
    process = hone.start("run", "recipe.yaml", *LONG, "--json")
    hone.until(process, r"train: step [1-9]\d\d of")
    orphans = family_tree(process)
    assert any("flows.embedded" in p.cmdline() for p in orphans)
    process.kill()
    process.wait()
    assert gone_within(orphans, 15)

    status = hone("status").result
    assert len(status["swept"]) == 1
    (model,) = status["models"]
    assert (model["name"], model["champion"]["version"], model["challenger"]) == ("embedded", "1", None)
    assert status["running"] == []
    shutil.rmtree(hone.home)
    again = hone("run", "recipe.yaml")
    assert again.computed == [*DATA, *AFTER_DATA]
    assert again.result["model"]["version"] == "1"
    assert again.result["train"]["weights_sha256"] == first.result["train"]["weights_sha256"]


def test_check_foretells_a_run_and_registers_nothing(project, servers, mlflow):
    hone: Hone = project("foretold", servers)
    checked = hone("check", "recipe.yaml")
    assert checked.code == 0, checked.errors
    forecast = checked.result["forecast"]
    assert forecast["train_seconds"] > 0
    assert mlflow.get_experiment_by_name("foretold") is None
    ran = hone("run", "recipe.yaml")
    assert {s["name"]: s["cached"] for s in ran.result["stages"]}["tokenize"] is True
    assert ran.result["train"]["plan"] == checked.result["plan"]
    assert ran.result["rows"]["test"] == checked.result["rows"]["test"]


def test_four_runs_at_once_share_what_they_can_and_all_finish(project, servers, mlflow):
    hone: Hone = project("at-once", servers, rows=300)
    started = [hone.start("run", "recipe.yaml", "--set", f"train.seed={seed}", "--json") for seed in range(4)]
    finished = [ended(process) for process in started]
    assert [run.code for run in finished] == [0] * 4, [run.errors for run in finished]
    assert sum("clean" in run.computed for run in finished) == 1
    versions = {v.version for v in mlflow.search_model_versions("name='at-once'")}
    assert len(versions) == 4
    assert len({run.result["model"]["version"] for run in finished}) == 4
    assert list((hone.home / "work").iterdir()) == []
