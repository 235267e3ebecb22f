"""MLflow calls the desk when somebody moves an alias: a real MLflow server, set up as the desk does it, and one not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.webhook import NAME, listen, subscribe, unsubscribe, webhook_environment
from tasks.home import Home
from tasks.registry import promote_by_hand, reconcile
from tests.e2e.conftest import Servers, free_port, quiet_environment, wait_for

pytestmark = pytest.mark.e2e
pytest_plugins = ("tests.mlflow_home",)

SOON_S = 10.0
"""It takes less than a second, on a machine that does nothing else."""


class Mlflow:
    """The home's MLflow server; it can be started again."""

    def __init__(self, home: Home) -> None:
        self.home, self.port = home, free_port()
        self.log = home.root / "mlflow.log"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{home.root / 'mlflow.db'}",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        environment = quiet_environment(**webhook_environment(self.home))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        wait_for(f"http://127.0.0.1:{self.port}/health", self.log)

    def stop(self) -> None:
        for member in [self.process, *psutil.Process(self.process.pid).children(recursive=True)]:
            member.kill()
        self.process.wait(30)


@pytest.fixture
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    made = Mlflow(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{made.port}")
    yield made
    made.stop()


def noted_soon(home: Home, called: threading.Event) -> list[str]:
    """Versions that were moved in by hand, once the webhook calls."""
    assert called.wait(SOON_S)
    called.clear()
    return [line["to"] for line in reconcile(home) if line["event"] == "by hand"]


def test_a_move_by_hand_is_noted_within_seconds_after_restarts_too(home: Home, server: Mlflow) -> None:
    person = MlflowClient(f"http://127.0.0.1:{server.port}")
    person.create_registered_model("tiny")
    for _ in range(3):
        person.create_model_version("tiny", "s3://nowhere/model", tags={"hone.gate": "promote", "hone.identity": "0f"})
    person.create_webhook(NAME, "http://127.0.0.1:9/", ["model_version.created"], description="another home's")
    person.set_registered_model_alias("tiny", "else", "1")  # MLflow has looked who subscribes: nobody
    called = threading.Event()
    with listen(called.set) as listener:
        assert subscribe(home, listener)
        time.sleep(1.5)
        person.set_registered_model_alias("tiny", "champion", "1")
        assert noted_soon(home, called) == ["1"]
        person.set_registered_model_alias("tiny", "champion", "2")
        assert noted_soon(home, called) == ["2"]
        person.delete_registered_model_alias("tiny", "champion")
        assert noted_soon(home, called) == [None]
        server.stop()
        server.start()
        person.set_registered_model_alias("tiny", "champion", "3")
        assert noted_soon(home, called) == ["3"]
        promote_by_hand(home, "tiny", "2", by="ada", reason="better")
        assert noted_soon(home, called) == []
    with listen(called.set) as listener:  # another desk of the same home
        assert subscribe(home, listener)
        assert len(person.list_webhooks()) == 2
        time.sleep(1.5)
        person.set_registered_model_alias("tiny", "champion", "1")
        assert noted_soon(home, called) == ["1"]
        unsubscribe(home)
    (left,) = person.list_webhooks()
    assert left.description == "another home's"


def test_a_server_that_allows_no_webhooks_here_is_looked_at_instead(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    with listen(lambda: None) as listener:
        assert subscribe(Home(tmp_path), listener) is False
    unsubscribe(Home(tmp_path))
