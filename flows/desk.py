"""The desk: a Prefect server, an MLflow server and a worker on this machine, started, watched and ended together.

State stays in the home: the same databases that `hone run` uses without servers. What is configured already is not
started: a Prefect API named by `PREFECT_API_URL`, an MLflow server named by `MLFLOW_TRACKING_URI` (a database named
there is served). `flows.guard` ends everything, whether this process asks for it or dies. Does not cover what is
deployed (`flows.deploy`) nor what the desk looks after while it is up (`flows.caretaker`).
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows import access
from flows.engine import QUIET
from flows.guard import start_guard, tell
from schemas.errors import EnvironmentMistake, Fault, Problem
from tasks.desk_note import DeskNote
from tasks.home import Home

log = logging.getLogger(__name__)

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104  asked for by name, and with a password
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
"""Taken where they are free and nothing else is said."""
START_S = 120.0
"""Longest a server may take to answer."""
STOP_S = 40.0
"""Longest the guard may take to end everything."""
POOL = "hone"
"""The work pool that deployments go to and the desk's worker serves."""
WORKER_SECONDS = 2
"""Pause of the worker between two looks for runs that are due."""
HEARTBEAT_SECONDS = 30
"""Of every flow run: a run whose heartbeat stops is found out by an automation."""
RESTART_S = (1.0, 5.0, 30.0)
"""Pauses before a part that died is started again; the last one from then on."""
LOG_BYTES = 20_000_000
"""A log larger than this is put aside when its part starts; one of before is kept."""
LIVED_S = 120.0
"""A part that lived this long before it died is started again at once."""


@dataclass
class Part:
    """One process of the desk.

    Attributes:
        name: `prefect`, `mlflow` or `worker`; names its log.
        rank: For the guard: who ends first.
        url: Answers 200 when it is healthy; none for the worker.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    rank: int
    url: str | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None


@dataclass(frozen=True)
class Addresses:
    """Where the desk's servers are; a server that somebody else runs has no port here.

    Attributes:
        host: Network address that they listen on.
    """

    host: str
    prefect_port: int | None
    mlflow_port: int | None

    @property
    def _reached(self) -> str:
        """Host by which this machine reaches them."""
        return LOOPBACK if self.host == EVERYWHERE else self.host

    @property
    def prefect_api_url(self) -> str:
        """Prefect's API."""
        given = os.environ.get("PREFECT_API_URL")
        return given if self.prefect_port is None and given else f"http://{self._reached}:{self.prefect_port}/api"

    @property
    def prefect_ui_url(self) -> str:
        """Prefect's pages."""
        return self.prefect_api_url.removesuffix("/api")

    @property
    def mlflow_url(self) -> str:
        """MLflow, for programs and for people."""
        given = os.environ.get("MLFLOW_TRACKING_URI")
        return given if self.mlflow_port is None and given else f"http://{self._reached}:{self.mlflow_port}"


def choose_addresses(
    home: Home, *, prefect_port: int | None, mlflow_port: int | None, host: str = LOOPBACK
) -> Addresses:
    """The ports: those asked for, else those of the last time, else the usual ones, else any that is free.

    Raises:
        EnvironmentMistake: A port that was asked for is taken.
    """
    last = DeskNote.read(home.root)
    prefect = mlflow = None
    if not os.environ.get("PREFECT_API_URL"):
        prefect = _port("--prefect-port", prefect_port, last.prefect_port if last else None, PREFECT_PORT)
    if not home.mlflow_is_server:
        mlflow = _port("--mlflow-port", mlflow_port, last.mlflow_port if last else None, MLFLOW_PORT, taken=prefect)
    return Addresses(host, prefect, mlflow)


def _port(option: str, asked: int | None, last: int | None, usual: int, *, taken: int | None = None) -> int:
    if asked is not None:
        if not 0 < asked < 65_536:
            raise EnvironmentMistake(Problem(option, asked, "is not a port", "name one from 1 to 65535, or none"))
        if asked == taken or not _is_free(asked):
            rule = f"the port is taken{_by_whom(asked)}"
            raise EnvironmentMistake(Problem(option, asked, rule, "name another one, or none to have one chosen"))
        return asked
    for port in (last, usual):
        if port and port != taken and _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _by_whom(port: int) -> str:
    import psutil

    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        holders = [c.pid for c in listening if c.laddr and c.laddr.port == port and c.pid]
        return f" by process {holders[0]} ({psutil.Process(holders[0]).name()})" if holders else ""
    except psutil.Error:  # not everybody may ask
        return ""


class Desk:
    """The processes, started once and watched; use as a context manager, so that they end with it.

    Args:
        home: Whose state it serves.
        addresses: From `choose_addresses`.
        password: That both servers ask for; none: they ask nobody.
    """

    def __init__(self, home: Home, addresses: Addresses, password: str | None = None) -> None:
        self.home = home
        self.addresses = addresses
        self.password = password
        self.parts: dict[str, Part] = {}
        home.logs.mkdir(parents=True, exist_ok=True)
        self._guard = start_guard()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_prefect(self) -> None:
        """Start the Prefect server, unless somebody else runs one; its migrations are its first act."""
        port = self.addresses.prefect_port
        if port is None:
            return
        command = ["-m", "prefect", "server", "start", "--host", self.addresses.host, "--port", str(port)]
        environment = {
            "PREFECT_HOME": str(self.home.prefect),
            "PREFECT_API_URL": self.addresses.prefect_api_url,
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_UI_API_URL": "/api",
            # In memory, the slots of a concurrency limit would be free after a restart while their runs go on.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            **access.prefect_environment(self.password),
        }
        url = f"{self.addresses.prefect_api_url}/health"
        self._add(Part("prefect", command, environment, rank=0, url=url))

    def start_mlflow(self, environment: Mapping[str, str]) -> None:
        """Start the MLflow server on the home's database, made ready by `tasks.tracking.prepare`.

        Args:
            environment: What else it needs to know, for webhooks.
        """
        port = self.addresses.mlflow_port
        if port is None:
            return
        # Artifacts are read and written where they lie, so that runs of before and after need no server to find them.
        command = [
            "-m", "mlflow", "server", "--host", self.addresses.host, "--port", str(port), "--workers", "1",
            "--backend-store-uri", self.home.mlflow_uri, "--default-artifact-root", self.home.mlflow_artifacts,
            "--no-serve-artifacts", "--uvicorn-opts", "--no-access-log",
            *(["--app-name", "basic-auth"] if self.password else []),
        ]  # fmt: skip
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        asking = access.mlflow_environment(self.home, self.password)
        url = f"{self.addresses.mlflow_url}/health"
        self._add(Part("mlflow", command, {**quiet, **environment, **asking}, rank=0, url=url))

    def start_worker(self) -> None:
        """Start the worker that carries out what is due in the pool."""
        command = [
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            socket.gethostname(),
        ]
        self._add(Part("worker", command, self.flow_environment(), rank=1))

    def flow_environment(self) -> dict[str, str]:
        """What flow runs of the worker have in their environment."""
        return {
            "HONE_HOME": str(self.home.root),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PREFECT_API_URL": self.addresses.prefect_api_url,
            "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_SECONDS),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
            "MLFLOW_TRACKING_URI": self.addresses.mlflow_url,
            **access.client_environment(self.password),
        }

    def wait_healthy(self, name: str) -> None:
        """Wait until a server answers; one that somebody else runs is not waited for.

        Raises:
            Fault: It ended, or did not answer in time; with the last lines of its log.
        """
        part = self.parts.get(name)
        if part is None or part.url is None:
            return
        deadline = time.monotonic() + START_S
        while not _answers(part.url):
            if not part.alive:
                raise Fault(f"the {name} server ended as it started:\n{self._log_tail(part)}")
            if time.monotonic() > deadline:
                raise Fault(f"the {name} server did not answer within {START_S:.0f} s:\n{self._log_tail(part)}")
            time.sleep(0.1)

    def mend(self, say: Callable[[str], None]) -> None:
        """Start parts again that died, each time after a longer pause.

        Args:
            say: Told of each of them.
        """
        now = time.monotonic()
        for part in self.parts.values():
            if part.alive or now < part.not_before:
                continue
            if part.not_before == 0.0:
                code = part.process.returncode if part.process else None
                part.deaths = 0 if now - part.started > LIVED_S else part.deaths
                part.not_before = now + RESTART_S[min(part.deaths, len(RESTART_S) - 1)]
                part.deaths += 1
                say(f"{part.name} ended (exit code {code}); starting it again; its log is {self._log(part)}")
                continue
            self._start(part)

    def stop(self, *, at_once: bool = False) -> None:
        """End everything: the worker first, whose runs save their state while the servers still listen.

        Args:
            at_once: Without grace.
        """
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        if at_once:
            self._guard.terminate()
        self._guard.wait(STOP_S)
        for part in self.parts.values():
            if part.process is not None:
                part.process.wait(STOP_S)

    def _add(self, part: Part) -> None:
        self.parts[part.name] = part
        self._start(part)

    def _start(self, part: Part) -> None:
        log_file = self._log(part)
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
        with log_file.open("ab") as output:
            part.process = subprocess.Popen(
                [sys.executable, "-P", *part.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**QUIET, **os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **part.environment},
                cwd=self.home.root,
                start_new_session=True,  # Ctrl-C is for this process, which ends them in order
            )
        part.started, part.not_before = time.monotonic(), 0.0
        tell(self._guard, part.process.pid, part.rank)

    def _log(self, part: Part) -> Path:
        return self.home.logs / f"{part.name}.log"

    def _log_tail(self, part: Part) -> str:
        return self._log(part).read_text(errors="replace")[-2000:]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310  our own address
            return True
    except urllib.error.HTTPError as answer:
        return answer.code in {401, 403}  # it asks for a password: it is there
    except OSError:
        return False
