"""`hone up` as a user starts it, and the ways into its servers."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from tests.e2e.conftest import Hone, free_port

START_S = 120.0
STOP_S = 60.0


@dataclass
class Up:
    """A desk that is up.

    Attributes:
        said: What it printed once it was healthy.
        seconds: How long that took.
    """

    hone: Hone
    process: subprocess.Popen[str]
    said: dict[str, Any]
    seconds: float
    errors: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.said["prefect_api_url"], "MLFLOW_TRACKING_URI": self.said["mlflow_url"]}

    @property
    def mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.said["mlflow_url"])

    @contextmanager
    def prefect(self) -> Iterator[Any]:
        from prefect.client.orchestration import SyncPrefectClient

        with SyncPrefectClient(self.said["prefect_api_url"]) as client:
            yield client

    def processes(self) -> list[psutil.Process]:
        """All that it has started, and what those have."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def part(self, words: str) -> psutil.Process:
        """The process whose command line holds these words."""
        (found,) = [p for p in self.processes() if words in command_line(p)]
        return found

    def trigger(self, deployment: str, **parameters: Any) -> UUID:
        """Ask for a run, as the UI does; parameters left out have the deployment's defaults."""
        with self.prefect() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def state(self, flow_run: UUID) -> Any:
        with self.prefect() as client:
            return client.read_flow_run(flow_run).state

    def wait(self, flow_run: UUID, *states: str, limit_s: float = 240.0) -> Any:
        """Wait until a run is in one of these states, by default a final one; returns the state."""
        return until(lambda: self._reached(flow_run, states), limit_s, f"{flow_run} {states or 'to end'}")

    def _reached(self, flow_run: UUID, states: tuple[str, ...]) -> Any:
        state = self.state(flow_run)
        if state.is_final() and states and state.name not in states:
            pytest.fail(f"ended as {state.name}: {state.message}\n{self.log('worker')}")
        return state if (state.name in states if states else state.is_final()) else None

    def mlflow_run(self, flow_run: UUID, experiment: str) -> Any:
        """The MLflow run of a flow run; none before it is made."""
        found = self.mlflow.get_experiment_by_name(experiment)
        if found is None:
            return None
        tagged = f"tags.`hone.flow_run_id` = '{flow_run}'"
        return next(iter(self.mlflow.search_runs([found.experiment_id], tagged)), None)

    def log(self, part: str) -> str:
        return (self.hone.home / "logs" / f"{part}.log").read_text(errors="replace")[-4000:]

    def stop(self, how: signal.Signals = signal.SIGINT) -> float:
        """End it; returns the seconds that took."""
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(STOP_S)
        return time.monotonic() - began


def command_line(process: psutil.Process) -> str:
    """Of a process that lives; empty for one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def until(condition: Callable[[], Any], limit_s: float, what: str = "it") -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    pytest.fail(f"waited {limit_s:.0f} s for {what}")


def bring_up(hone: Hone, *arguments: str, **environment: str) -> Up:
    """Start `hone up` and wait until it says where it is."""
    began = time.monotonic()
    errors = hone.project / "up.err"
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    with errors.open("a") as file:
        process = hone.start("up", *(arguments or ["recipe.yaml"]), *ports, "--json", stderr=file, **environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(STOP_S)
        pytest.fail(f"hone up ended with {process.returncode}:\n{errors.read_text()[-3000:]}")
    return Up(hone, process, json.loads(line), time.monotonic() - began, errors)


@contextmanager
def desk(hone: Hone, *arguments: str, **environment: str) -> Iterator[Up]:
    """A desk that ends with the block, whatever happens in it."""
    up = bring_up(hone, *arguments, **environment)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.stop()
