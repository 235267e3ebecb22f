"""What stands between a worker and Prefect's engine; the engine here is a stand-in of the same name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows import under_worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes are watched the POSIX way")

ENGINE = """
import os, pathlib, signal, sys, time
place = pathlib.Path(os.environ["PLACE"])
(place / "pid.new").write_text(str(os.getpid()))
(place / "pid.new").rename(place / "pid")
time.sleep(float(os.environ["BEGINS_AFTER"]))
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
while not told:
    print("at work", flush=True)
    time.sleep(0.02)
(place / "ended").write_text(f"arguments: {sys.argv[1:]}")
sys.exit(3)
"""


@dataclass
class Started:
    """The process that a worker starts, and the engine below it."""

    front: subprocess.Popen[bytes]
    engine: psutil.Process
    place: Path

    def ended_well(self) -> bool:
        """Whether the engine came to its end by itself."""
        psutil.wait_procs([self.engine], timeout=10)
        return (self.place / "ended").exists()


@pytest.fixture(params=["0", "0.7"], ids=["begun", "not-begun"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Started]:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "engine.py").write_text(ENGINE)
    path = os.pathsep.join([str(tmp_path), str(Path(under_worker.__file__).parents[1])])
    front = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.under_worker"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "PLACE": str(tmp_path), "BEGINS_AFTER": request.param},
        start_new_session=True,
    )
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    engine = psutil.Process(int((tmp_path / "pid").read_text()))
    yield Started(front, engine, tmp_path)
    for process in (engine, psutil.Process(front.pid) if front.poll() is None else None):
        if process is not None and process.is_running():
            process.kill()
    front.wait()
    if front.stdout is not None:
        front.stdout.close()


def read_a_line(started: Started) -> None:
    assert started.front.stdout is not None
    assert started.front.stdout.readline() == b"at work\n"


def test_sigterm_is_passed_on_and_the_engines_exit_code_passed_up(started: Started) -> None:
    read_a_line(started)
    started.front.terminate()
    assert started.front.wait(10) == 3
    assert (started.place / "ended").read_text() == "arguments: []"


def test_the_engine_ends_well_when_the_worker_kills_what_it_started(started: Started) -> None:
    started.front.kill()
    assert started.ended_well()


def test_an_engine_that_is_killed_is_told_as_what_it_is(started: Started) -> None:
    started.engine.kill()
    assert started.front.wait(10) == -signal.SIGKILL


def test_the_engine_goes_on_when_nobody_reads_its_output_any_more(started: Started) -> None:
    read_a_line(started)
    assert started.front.stdout is not None
    started.front.stdout.close()
    time.sleep(0.3)
    assert started.engine.is_running()
    started.front.terminate()
    assert started.front.wait(10) == 3


def test_ctrl_c_in_the_terminal_is_for_the_worker(started: Started) -> None:
    read_a_line(started)
    os.killpg(started.front.pid, signal.SIGINT)
    time.sleep(0.2)
    assert started.front.poll() is None
    assert not (started.place / "ended").exists()
