from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from schemas.errors import EnvironmentMistake, Fault
from schemas.recipe import Recipe
from tasks import outbox, tracking
from tasks.home import Home
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "TICK_S", 0.05)
    monkeypatch.setattr(tracking, "END_S", 1.0)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.2)


class Outage:
    """Lets MLflow's writes fail while it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        for name in ("log_batch", "log_text", "log_artifact", "log_artifacts", "log_inputs", "set_terminated"):
            monkeypatch.setattr(MlflowClient, name, self._failing(getattr(MlflowClient, name)))

    def _failing(self, method):
        def call(*args, **kwargs):
            if self.on:
                raise RestException({"error_code": 503, "message": "down for maintenance"})
            return method(*args, **kwargs)

        return call


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


@contextmanager
def stand_in(answers: list[int]) -> Iterator[str]:
    """A server in MLflow's place: gives these statuses, then says that experiment and run are made."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer()

        def do_GET(self):
            self._answer()

        def _answer(self):
            status = answers.pop(0) if answers else 200
            run = {"info": {"run_id": "r1", "experiment_id": "7", "status": "RUNNING"}, "data": {}}
            body = {"run": run, "experiment": {"experiment_id": "7", "name": "tiny", "lifecycle_stage": "active"}}
            text = b"busy" if status != 200 else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def entry_of(home: Home, run_id: str) -> dict:
    return json.loads((home.journal / "runs" / f"{run_id}.json").read_text())


def run_that(home: Home, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with `home` and `recipe` there."""
    head = """
import json, os, signal, sys, time
from pathlib import Path
from schemas.recipe import Recipe
from tasks import tracking
from tasks.home import Home
from schemas.loading import validate_recipe
home = Home(Path(sys.argv[1]))
recipe = validate_recipe({"name": "tiny", "task": {"family": "text-classification"},
    "collect": {"source": {"kind": "csv", "path": "/x.csv"}}, "model": {"base": "/m"}})
"""
    return subprocess.run(
        [sys.executable, "-c", head + code, str(home.root)], capture_output=True, text=True, check=False
    )


def test_a_run_says_what_was_asked_and_how_it_ended(home: Home, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"png")
    run = Run.start(home, recipe, flow_run_id="f1", name="nightly", tags={"hone.trigger": "schedule"}, note="**hello**")
    run.log_metrics([(1, {"loss": 0.5}), (2, {"loss": 0.25, "accuracy": 1.0})])
    run.log_artifact(tmp_path / "plot.png", "plots")
    run.log_dataset("tweets", digest="d" * 64, source="/data/tiny.csv", counts={"rows": 3})
    run.link_cached("clean", "earlier")
    run.end("FINISHED")

    mlflow = MlflowClient(home.mlflow_uri)
    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "nightly"
    assert mlflow.get_experiment(found.info.experiment_id).name == "tiny"
    assert found.info.artifact_uri.startswith(home.mlflow_artifacts)
    assert found.data.params["train.learning_rate"] == "5e-05"
    assert found.data.params["task.labels"] == '["bad", "good"]'
    assert "train.max_steps" not in found.data.params
    assert found.data.tags["hone.stage.clean.run_id"] == "earlier"
    assert found.data.tags["hone.flow_run_id"] == "f1"
    assert found.data.tags["mlflow.note.content"] == "**hello**"
    assert [(m.step, m.value) for m in mlflow.get_metric_history(run.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("tweets", "d" * 36)
    assert {a.path for a in mlflow.list_artifacts(run.run_id)} == {"plots", "recipe.json"}
    logged = mlflow.download_artifacts(run.run_id, "recipe.json")
    assert Recipe.model_validate_json(Path(logged).read_text()) == recipe


def test_a_param_over_the_limit_is_cut_and_says_so(home: Home, recipe: Recipe) -> None:
    run = Run.start(home, recipe)
    run.log_params({"long": "x" * 7_000} | {f"p{i}": i for i in range(250)})
    run.end("FINISHED")
    params = MlflowClient(home.mlflow_uri).get_run(run.run_id).data.params
    assert len(params["long"]) == 6_000
    assert params["long"].endswith("[cut: 7000 characters, whole in recipe.json]")
    assert params["p249"] == "249"


def test_more_metrics_than_fit_one_request_all_arrive(home: Home, recipe: Recipe) -> None:
    run = Run.start(home, recipe)
    run.log_metrics([(step, {"loss": step / 10, "rate": 1.0}) for step in range(1_100)])
    run.end("FINISHED")
    mlflow = MlflowClient(home.mlflow_uri)
    assert len(mlflow.get_metric_history(run.run_id, "loss")) == 1_100
    assert len(mlflow.get_metric_history(run.run_id, "rate")) == 1_100


def test_the_use_of_the_machine_is_measured_and_does_not_delay_the_end(
    home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_METRICS_S", 0.1)
    run = Run.start(home, recipe)
    time.sleep(0.6)
    began = time.monotonic()
    run.end("FINISHED")
    assert time.monotonic() - began < 0.5
    metrics = MlflowClient(home.mlflow_uri).get_run(run.run_id).data.metrics
    assert "system/cpu_utilization_percentage" in metrics
    assert "system/system_memory_usage_megabytes" in metrics


def test_a_crashed_process_leaves_no_run_running(home: Home, recipe: Recipe) -> None:
    died = run_that(
        home,
        """
run = tracking.Run.start(home, recipe, flow_run_id="flow-1")
print(run.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    assert died.returncode == -signal.SIGKILL
    run_id = died.stdout.strip()
    mlflow = MlflowClient(home.mlflow_uri)
    assert mlflow.get_run(run_id).info.status == "RUNNING"

    (swept,) = tracking.sweep(home)

    assert (swept.run_id, swept.flow_run_id, swept.recipe) == (run_id, "flow-1", "tiny")
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert mlflow.get_run(run_id).info.end_time is not None
    assert entry_of(home, run_id)["status"] == "KILLED"
    assert tracking.sweep(home) == []


def test_a_crash_between_making_a_run_and_noting_it_leaves_no_run_running(home: Home) -> None:
    died = run_that(
        home,
        """
made = tracking._create
def create_and_die(*args, **kwargs):
    made(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
tracking._create = create_and_die
tracking.Run.start(home, recipe)
""",
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    mlflow = MlflowClient(home.mlflow_uri)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "RUNNING"
    (swept,) = tracking.sweep(home)
    assert swept.run_id == run.info.run_id
    assert mlflow.get_run(run.info.run_id).info.status == "KILLED"
    assert [p.stem for p in (home.journal / "runs").glob("*.json")] == [run.info.run_id]


def test_a_living_process_keeps_its_run(home: Home, recipe: Recipe) -> None:
    run = Run.start(home, recipe)
    assert tracking.sweep(home) == []
    swept_elsewhere = run_that(home, "print(len(tracking.sweep(home)))")
    assert swept_elsewhere.stdout.strip() == "0", swept_elsewhere.stderr
    run.flush()
    assert MlflowClient(home.mlflow_uri).get_run(run.run_id).info.status == "RUNNING"
    run.end("FINISHED")
    assert not list(home.locks.glob("run-*"))


def test_a_dead_run_waits_to_be_closed_while_mlflow_is_away(home: Home, recipe: Recipe, outage: Outage) -> None:
    died = run_that(home, "tracking.Run.start(home, recipe); os.kill(os.getpid(), signal.SIGKILL)")
    assert died.returncode == -signal.SIGKILL
    outage.on = True
    assert tracking.sweep(home) == []
    outage.on = False
    assert len(tracking.sweep(home)) == 1


def test_a_dead_run_that_somebody_deleted_in_mlflow_is_forgotten(home: Home) -> None:
    died = run_that(home, "print(tracking.Run.start(home, recipe).run_id, flush=True); os.kill(os.getpid(), 9)")
    run_id = died.stdout.strip()
    entry = home.journal / "runs" / f"{run_id}.json"
    entry.write_text(entry.read_text().replace(run_id, "0" * 32))
    entry.rename(entry.with_stem("0" * 32))
    (swept,) = tracking.sweep(home)
    assert swept.run_id == "0" * 32
    assert tracking.sweep(home) == []


def test_runs_of_another_mlflow_are_left_alone(home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run_that(home, "tracking.Run.start(home, recipe); os.kill(os.getpid(), 9)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking.sweep(home) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert len(tracking.sweep(home)) == 1


def test_the_journal_forgets_runs_that_ended_long_ago(home: Home, recipe: Recipe) -> None:
    old, young = Run.start(home, recipe), Run.start(home, recipe)
    for run in (old, young):
        run.end("FINISHED")
    file = home.journal / "runs" / f"{old.run_id}.json"
    os.utime(file, (0, time.time() - 31 * 86_400))
    tracking.sweep(home)
    assert [p.stem for p in (home.journal / "runs").glob("*.json")] == [young.run_id]


def test_an_entry_that_cannot_be_read_does_not_stop_the_sweep(home: Home) -> None:
    (home.journal / "runs" / "0.json").write_text("{")
    run_that(home, "tracking.Run.start(home, recipe); os.kill(os.getpid(), 9)")
    assert len(tracking.sweep(home)) == 1


def test_a_retry_of_the_same_flow_run_continues_its_mlflow_run(home: Home, recipe: Recipe) -> None:
    first = Run.start(home, recipe, flow_run_id="f1")
    first.log_metrics([(1, {"loss": 1.0})])
    first.end("FAILED")
    again = Run.start(home, recipe, flow_run_id="f1")
    assert again.run_id == first.run_id
    assert MlflowClient(home.mlflow_uri).get_run(again.run_id).info.status == "RUNNING"
    again.log_metrics([(2, {"loss": 0.5})])
    again.end("FINISHED")
    assert [m.step for m in MlflowClient(home.mlflow_uri).get_metric_history(first.run_id, "loss")] == [1, 2]
    other = Run.start(home, recipe, flow_run_id="f2")
    other.end("FINISHED")
    assert other.run_id != first.run_id


def test_a_retry_whose_run_was_deleted_gets_a_new_one(home: Home, recipe: Recipe) -> None:
    first = Run.start(home, recipe, flow_run_id="f1")
    first.end("FAILED")
    MlflowClient(home.mlflow_uri).delete_run(first.run_id)
    again = Run.start(home, recipe, flow_run_id="f1")
    again.end("FINISHED")
    assert again.run_id != first.run_id


def test_tracking_away_does_not_stop_training(home: Home, recipe: Recipe, outage: Outage) -> None:
    run = Run.start(home, recipe)
    assert run.flush()
    outage.on = True
    began = time.monotonic()
    for step in range(50):
        run.log_metrics([(step, {"loss": 1.0 / (step + 1)})])
    run.set_tags({"hone.plan": "bf16"})
    assert time.monotonic() - began < 0.5
    time.sleep(0.3)
    outage.on = False
    run.end("FINISHED")
    mlflow = MlflowClient(home.mlflow_uri)
    assert len(mlflow.get_metric_history(run.run_id, "loss")) == 50
    assert mlflow.get_run(run.run_id).data.tags["hone.plan"] == "bf16"
    assert not (home.journal / "unsent").exists()


def test_what_was_not_sent_is_kept_and_sent_by_the_next_command(
    home: Home, recipe: Recipe, outage: Outage, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.txt"
    plot.write_text("drawn")
    run = Run.start(home, recipe)
    assert run.flush()
    outage.on = True
    run.log_metrics([(1, {"loss": 0.5}), (2, {"loss": float("nan")})])
    run.log_artifact(plot)
    plot.unlink()
    began = time.monotonic()
    run.end("FINISHED")
    assert time.monotonic() - began < tracking.END_S + 1
    mlflow = MlflowClient(home.mlflow_uri)
    assert mlflow.get_run(run.run_id).info.status == "RUNNING"
    assert entry_of(home, run.run_id)["status"] == "FINISHED"

    assert tracking.replay_unsent(home) == 0
    outage.on = False
    assert tracking.replay_unsent(home) == 1

    found = mlflow.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert [m.step for m in mlflow.get_metric_history(run.run_id, "loss")] == [1, 2]
    assert Path(mlflow.download_artifacts(run.run_id, "plot.txt")).read_text() == "drawn"
    assert not list((home.journal / "unsent").iterdir())
    assert tracking.replay_unsent(home) == 0


def test_sending_twice_changes_nothing(home: Home, recipe: Recipe) -> None:
    run = Run.start(home, recipe)
    run.flush()
    mlflow = MlflowClient(home.mlflow_uri)
    for _ in range(2):
        outbox.send(mlflow, run.run_id, {"op": "metrics", "values": [["loss", 0.5, 1_000, 1], ["loss", 0.4, 2_000, 2]]})
    run.end("FINISHED")
    assert len(mlflow.get_metric_history(run.run_id, "loss")) == 2


def test_what_mlflow_refuses_is_told_and_holds_up_nothing(
    home: Home, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.start(home, recipe)
    run.log_metrics([(1, {"not a name!?": 1.0})])
    run.log_metrics([(1, {"loss": 1.0})])
    with caplog.at_level(logging.ERROR):
        run.end("FINISHED")
    assert "refused" in caplog.text
    assert MlflowClient(home.mlflow_uri).get_run(run.run_id).info.status == "FINISHED"


def test_a_missing_artifact_is_an_error(home: Home, recipe: Recipe) -> None:
    run = Run.start(home, recipe)
    with pytest.raises(FileNotFoundError):
        run.log_artifact(Path("/nowhere/plot.png"))
    run.end("FAILED")


def test_a_start_waits_for_a_server_that_comes_back(
    home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with stand_in([503, 502, 503]) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        run = Run.start(home, recipe)
        assert (run.run_id, run.experiment_id) == ("r1", "7")
        assert run.url == f"{uri}/#/experiments/7/runs/r1"
        run.end("FINISHED")


def test_a_start_gives_up_on_a_server_that_stays_away(
    home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "MUST_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(Fault, match=r"127\.0\.0\.1:9 is away") as caught:
        Run.start(home, recipe)
    shown = "".join(traceback.format_exception(caught.value)).splitlines()
    assert not [line for line in shown if "secret@" in line and "setenv" not in line]
    assert "secret" not in caplog.text


def test_a_mistake_is_not_tried_again(home: Home) -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        raise RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"})

    with pytest.raises(MlflowException):
        outbox.patiently(refused, home)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (RestException({"error_code": 503, "message": ""}), True),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "database is locked"}), True),
        (RestException({"error_code": 429, "message": ""}), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": ""}), False),
        (RestException({"error_code": "PERMISSION_DENIED", "message": ""}), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ValueError(), False),
    ],
)
def test_only_absence_is_worth_another_try(error: Exception, away: bool) -> None:
    assert outbox.is_away(error) is away


def test_a_new_database_is_made_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home.open(tmp_path)
    code = "tracking.prepare(home); run = tracking.Run.start(home, recipe); run.end('FINISHED')"
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: run_that(home, code), range(3)))
    assert [p.returncode for p in done] == [0, 0, 0], done[0].stderr[-2000:]
    mlflow = MlflowClient(home.mlflow_uri)
    experiment = mlflow.get_experiment_by_name("tiny")
    assert {r.info.status for r in mlflow.search_runs([experiment.experiment_id])} == {"FINISHED"}
    assert len(mlflow.search_runs([experiment.experiment_id])) == 3
    assert mlflow.search_runs(["0"]) == []


def test_a_database_that_is_ready_costs_nothing_to_prepare(home: Home) -> None:
    tracking.prepare(home)
    began = time.monotonic()
    tracking.prepare(home)
    assert time.monotonic() - began < 0.05


def test_an_older_database_is_upgraded_and_the_old_one_kept(home: Home, recipe: Recipe) -> None:
    database = home.root / "mlflow.db"
    _downgrade(database)
    tracking.prepare(home)
    run = Run.start(home, recipe)
    run.end("FINISHED")
    assert MlflowClient(home.mlflow_uri).get_run(run.run_id).info.status == "FINISHED"
    assert len(list(home.root.glob("mlflow.db.*.bak"))) == 1


def test_a_database_of_a_newer_mlflow_is_refused(home: Home) -> None:
    with sqlite3.connect(home.root / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    with pytest.raises(EnvironmentMistake, match="use the MLflow that made it"):
        tracking.prepare(home)


def test_a_deleted_experiment_is_restored(home: Home, recipe: Recipe) -> None:
    first = Run.start(home, recipe)
    first.end("FINISHED")
    MlflowClient(home.mlflow_uri).delete_experiment(first.experiment_id)
    second = Run.start(home, recipe)
    second.end("FINISHED")
    assert second.experiment_id == first.experiment_id


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/ml", "http://host:5000/ml"),
        ("postgresql://me:secret@db/mlflow?sslmode=require", "postgresql://db/mlflow"),
        ("sqlite:////home/x/mlflow.db", "sqlite:////home/x/mlflow.db"),
        ("/data/tiny.csv", "/data/tiny.csv"),
    ],
)
def test_no_password_is_shown(uri: str, shown: str) -> None:
    assert outbox.without_password(uri) == shown


def test_an_embedded_mlflow_has_no_page(home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.run_url(home, "1", "r") is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/")
    assert tracking.run_url(home, "1", "r") == "https://mlflow.example/#/experiments/1/runs/r"


def test_importing_it_loads_no_mlflow() -> None:
    modules = "tasks.tracking, tasks.registry, tasks.model_card"
    code = f"import sys, {modules}; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def _downgrade(database: Path) -> None:
    """Undo MLflow's last migration that can be undone."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    shutil.copyfile(database, database.with_suffix(".whole"))
    config = _get_alembic_config(f"sqlite:///{database}")
    command.downgrade(config, "-1")
