"""How a run that a worker carries out ends, whoever ends it: what Prefect and MLflow say of it, what is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from tests.e2e.conftest import Hone, Servers, quiet_environment
from tests.e2e.desk import until

pytestmark = pytest.mark.e2e

EPOCHS = 40
"""Of the training in `uninterrupted`."""


@dataclass
class Worked:
    """A project whose runs are carried out by a worker, and the ways into its servers."""

    hone: Hone
    servers: Servers
    prefect: Any
    mlflow: Any
    worker: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.hone.project / "worker.log"

    def start_worker(self) -> None:
        command = ["-P", "-m", "prefect", "worker", "start", "--pool", "hone", "--type", "process"]
        environment = quiet_environment(
            PYTHONPATH=str(self.hone.checkout),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            HONE_HOME=str(self.hone.home),
            PREFECT_HOME=str(self.hone.project / "prefect"),
            PREFECT_WORKER_QUERY_SECONDS="1",
            **self.servers.environment,
        )
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def trigger(self, seed: int, epochs: int = 1000) -> UUID:
        """Ask for a run; each has a seed of its own, so that none finds what another has learnt."""
        deployment = self.prefect.read_deployment_by_name("finetune/ends")
        recipe = deployment.parameters["recipe"]
        train = recipe["train"] | {"epochs": epochs, "early_stopping_patience": None, "seed": seed}
        given = {"recipe": recipe | {"train": train}}
        return self.prefect.create_flow_run_from_deployment(deployment.id, parameters=given).id

    def training(self, flow_run: UUID) -> list[psutil.Process]:
        """Once it has learnt for a while: the process that the worker started, the engine below it, and the child."""
        until(lambda: self.last_step(flow_run) >= 50, 120, f"the training:\n{self.log.read_text()[-3000:]}")
        assert self.worker is not None
        (front,) = [p for p in psutil.Process(self.worker.pid).children() if "flows.under_worker" in p.cmdline()]
        (engine,) = front.children()
        (child,) = [p for p in engine.children() if "tasks.worker" in p.cmdline()]
        return [front, engine, child]

    def last_step(self, flow_run: UUID) -> int:
        run = self.run(flow_run)
        return max((m.step for m in self.mlflow.get_metric_history(run.info.run_id, "loss")), default=0) if run else 0

    def run(self, flow_run: UUID) -> Any:
        """The MLflow run of a flow run; none before it is made."""
        experiment = self.mlflow.get_experiment_by_name("ends")
        if experiment is None:
            return None
        tagged = f"tags.`hone.flow_run_id` = '{flow_run}'"
        return next(iter(self.mlflow.search_runs([experiment.experiment_id], tagged)), None)

    def ends(self, flow_run: UUID, limit_s: float) -> tuple[str, str]:
        """The states in Prefect and in MLflow that it ends with."""
        state = until(lambda: self._final(flow_run), limit_s, f"{flow_run} to end:\n{self.log.read_text()[-3000:]}")
        return state.type.value, self.run(flow_run).info.status

    def checkpoints(self) -> list[int]:
        """Steps of the whole checkpoints of whatever is not finished."""
        found = (self.hone.home / "work").glob("train-*/checkpoint-*/whole.json")
        return sorted(int(mark.parent.name.removeprefix("checkpoint-")) for mark in found)

    def _final(self, flow_run: UUID) -> Any:
        state = self.prefect.read_flow_run(flow_run).state
        return state if state.is_final() else None


@pytest.fixture
def worked(project: Any, servers: Servers) -> Iterator[Worked]:
    from mlflow import MlflowClient
    from prefect.client.orchestration import SyncPrefectClient

    hone: Hone = project("ends", servers)
    deployed = hone("deploy", "recipe.yaml")
    assert deployed.code == 0, deployed.errors
    with SyncPrefectClient(servers.prefect) as prefect:
        worked = Worked(hone, servers, prefect, MlflowClient(servers.mlflow))
        worked.start_worker()
        try:
            yield worked
        finally:
            assert worked.worker is not None
            worked.worker.terminate()
            worked.worker.wait(40)


def gone(processes: list[psutil.Process], limit_s: float) -> bool:
    return psutil.wait_procs(processes, timeout=limit_s)[1] == []


def test_a_cancelled_run_and_one_that_is_killed(worked: Worked) -> None:
    from prefect.states import Cancelling

    cancelled = worked.trigger(1)
    processes = worked.training(cancelled)
    worked.prefect.set_flow_run_state(cancelled, Cancelling())
    assert worked.ends(cancelled, 20) == ("CANCELLED", "KILLED")
    assert gone(processes, 1)
    assert len(worked.checkpoints()) == 1

    # What the kernel does for want of memory: nobody can say anything any more but the worker.
    killed = worked.trigger(2)
    processes = worked.training(killed)
    processes[1].kill()
    assert worked.ends(killed, 10) == ("CRASHED", "RUNNING")
    assert gone(processes, 5)
    assert [entry["flow_run_id"] for entry in worked.hone("status").result["swept"]] == [str(killed)]
    assert worked.ends(killed, 1) == ("CRASHED", "KILLED")


def test_a_run_whose_worker_is_stopped_goes_on_under_the_next_one(worked: Worked, uninterrupted: str) -> None:
    from prefect.states import AwaitingRetry

    run = worked.trigger(0, epochs=EPOCHS)
    processes = worked.training(run)
    assert worked.worker is not None
    worked.worker.send_signal(signal.SIGTERM)
    assert worked.ends(run, 20) == ("CRASHED", "KILLED")
    assert gone(processes, 5)
    (step,) = worked.checkpoints()
    mlflow_run = worked.run(run).info.run_id

    worked.worker.wait(20)
    worked.start_worker()
    assert worked.prefect.set_flow_run_state(run, AwaitingRetry()).status == "ACCEPT"
    until(lambda: worked.prefect.read_flow_run(run).state.type.value == "RUNNING", 60, "the retry")
    assert worked.ends(run, 120) == ("COMPLETED", "FINISHED")
    again = worked.run(run)
    assert again.info.run_id == mlflow_run
    assert again.data.tags["hone.weights_sha256"] == uninterrupted
    steps = [metric.step for metric in worked.mlflow.get_metric_history(mlflow_run, "loss")]
    assert steps == sorted(set(steps))
    assert step in range(min(steps), max(steps))


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_finishes_and_one_that_is_ended_by_hand_is_told(worked: Worked) -> None:
    ended = worked.trigger(3)
    processes = worked.training(ended)
    processes[1].terminate()
    assert worked.ends(ended, 15) == ("CRASHED", "KILLED")
    assert gone(processes, 5)
    assert len(worked.checkpoints()) == 1

    orphaned = worked.trigger(4, epochs=15)
    worked.training(orphaned)
    assert worked.worker is not None
    worked.worker.kill()
    assert worked.ends(orphaned, 120) == ("COMPLETED", "FINISHED")
    worked.worker.wait()
