"""One Prefect and one MLflow server for all end-to-end tests, and the command line as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.learning import sentences, tiny_encoder

START_S = 90
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Servers:
    prefect: str
    mlflow: str

    @property
    def environment(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_environment(**more: str) -> dict[str, str]:
    """This process's environment without the user's own settings, offline and silent."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "HONE_"))}
    return own | {
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes that nothing here needs
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_COLOR": "1",
        "OMP_WAIT_POLICY": "passive",  # beside servers, threads that spin while they wait are fifty times as slow
        **more,
    }


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    prefect_port, mlflow_port = free_port(), free_port()
    environment = quiet_environment(PREFECT_HOME=str(folder / "prefect"))
    commands = {
        "prefect": ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
        "mlflow": [
            "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
    }  # fmt: skip
    started = []
    for name, command in commands.items():
        with (folder / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment))
    try:
        wait_for(f"http://127.0.0.1:{prefect_port}/api/health", folder / "prefect.log")
        wait_for(f"http://127.0.0.1:{mlflow_port}/health", folder / "mlflow.log")
        yield Servers(f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}")
    finally:
        for process in started:
            tree = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            for member in tree:
                member.terminate()
            process.wait(30)


def wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} did not answer within {START_S} s:\n{log.read_text()[-2000:]}")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    result: dict[str, Any]
    errors: str

    @property
    def stages(self) -> dict[str, str]:
        return {s["name"]: "cached" if s["cached"] else "computed" for s in self.result["stages"]}

    @property
    def computed(self) -> list[str]:
        return [s["name"] for s in self.result["stages"] if not s["cached"]]


@dataclass
class Hone:
    """The command line, in a project folder with a home of its own."""

    project: Path
    environment: dict[str, str] = field(default_factory=dict)
    checkout: Path = CHECKOUT

    @property
    def home(self) -> Path:
        return self.project / ".hone"

    def start(
        self, *arguments: str, stderr: int | IO[str] = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        # PYTHONPATH decides which checkout's rooms are run, whatever is installed.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.cli", *arguments], cwd=self.project, text=True,
            stdout=subprocess.PIPE, stderr=stderr,
            env=quiet_environment(PYTHONPATH=str(self.checkout), **self.environment, **environment),
        )  # fmt: skip

    def __call__(self, *arguments: str, **environment: str) -> Ended:
        return ended(self.start(*arguments, "--json", **environment))

    def until(self, process: subprocess.Popen[str], pattern: str) -> str:
        """Read standard error until a line matches."""
        seen = []
        for line in process.stderr or []:
            seen.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"{pattern!r} was never written:\n{''.join(seen)}")


def ended(process: subprocess.Popen[str]) -> Ended:
    out, errors = process.communicate(timeout=400)
    lines = out.strip().splitlines()
    result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Ended(process.returncode, result, errors)


RECIPE = """\
name: NAME
task: {family: text-classification, labels: [negative, positive]}
collect: {source: {kind: csv, path: rows.csv}}
clean: {max_quarantined: 0.9}
split: {kind: hash, near_duplicates: {search: false}}  # the sentences are made of a dozen words
tokenize: {max_seq_length: 40}
model: {base: ./base}
train: {epochs: 3, learning_rate: 3e-3, global_batch_size: 16}
evaluate: {bootstrap_resamples: 500}
gate: {thresholds: [{metric: accuracy, at_least: 0.7}], beat_baseline: false}
registry: {promote: auto}
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Callable[..., Hone]:
    """Makes a project: a recipe `recipe.yaml`, rows, a tiny base model."""

    def make(name: str, servers: Servers | None = None, rows: int = 800, folder: str = "project") -> Hone:
        return make_project(tmp_path / folder, base, name, servers, sentences(rows))

    return make


LONG = ["--set", "train.epochs=40", "--set", "train.early_stopping_patience=null"]
"""Long enough to be interrupted."""


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, base: Path, servers: Servers) -> str:
    """Digest of the weights that a long training ends with when nothing happens to it."""
    hone = make_project(tmp_path_factory.mktemp("whole") / "project", base, "whole", servers, sentences(800))
    untouched = hone("run", "recipe.yaml", *LONG)
    assert untouched.code == 0, untouched.errors
    return str(untouched.result["train"]["weights_sha256"])


def make_project(
    root: Path, base: Path, name: str, servers: Servers | None, rows: list[tuple[str, str]], recipe: str = RECIPE
) -> Hone:
    """A project with these texts and labels."""
    root.mkdir()
    (root / "base").symlink_to(base)
    (root / "pyproject.toml").write_text("")
    (root / "recipe.yaml").write_text(recipe.replace("NAME", name))
    write_rows(root / "rows.csv", rows)
    return Hone(root, servers.environment if servers else {})


def write_rows(file: Path, rows: list[tuple[str, str]]) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "label"), *rows])


def labels_without_hone(model: str, texts: list[str], servers: Servers) -> list[str]:
    """What a registered model says of texts, in a process that cannot import hone."""
    script = f"""
import json, sys, mlflow, pandas
for room in ("flows", "tasks", "schemas"):
    sys.modules[room] = None
model = mlflow.pyfunc.load_model({model!r})
print(json.dumps(model.predict(pandas.DataFrame({{"text": {texts!r}}}))["label"].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd="/", capture_output=True, text=True, check=True,
        env=quiet_environment(MLFLOW_TRACKING_URI=servers.mlflow),
    )  # fmt: skip
    labels: list[str] = json.loads(done.stdout)
    return labels
