"""What a process has started ends when it does, however it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import guard

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")

LEADER = """
import pathlib, signal, subprocess, sys, time
member = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
def end(*_):
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
    member.terminate()
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else end)
print(member.pid, flush=True)  # Not before it heeds: what is sent earlier would end it alone.
time.sleep(60)
"""


def start_guard() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE)


def start(ended: Path, how: str = "polite") -> tuple[subprocess.Popen[str], psutil.Process]:
    """A process that leads a group, and a member of it."""
    leader = subprocess.Popen(
        [sys.executable, "-I", "-c", LEADER, str(ended), how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    return leader, psutil.Process(int(leader.stdout.readline()))


def tell(guarding: subprocess.Popen[bytes], rank: int, pid: int) -> None:
    assert guarding.stdin is not None
    guarding.stdin.write(f"{rank} {pid}\n".encode())
    guarding.stdin.flush()


def test_nothing_is_ended_while_the_parent_lives(tmp_path: Path) -> None:
    guarding = start_guard()
    leader, member = start(tmp_path / "ended")
    tell(guarding, 0, leader.pid)
    time.sleep(0.3)
    assert leader.poll() is None
    assert member.is_running()
    guarding.communicate(timeout=10)
    assert leader.wait(5) == 0


def test_the_higher_rank_ends_first_and_whole_groups_with_their_leaders(tmp_path: Path) -> None:
    guarding = start_guard()
    server, server_member = start(tmp_path / "server")
    worker, worker_member = start(tmp_path / "worker")
    tell(guarding, 0, server.pid)
    tell(guarding, 1, worker.pid)
    guarding.communicate(timeout=10)
    assert (server.wait(5), worker.wait(5)) == (0, 0)
    assert float((tmp_path / "worker").read_text()) < float((tmp_path / "server").read_text())
    assert psutil.wait_procs([server_member, worker_member], timeout=5)[1] == []


def test_what_a_dead_leader_left_is_ended_too(tmp_path: Path) -> None:
    guarding = start_guard()
    leader, member = start(tmp_path / "ended")
    tell(guarding, 0, leader.pid)
    leader.kill()
    leader.wait()
    guarding.communicate(timeout=10)
    assert psutil.wait_procs([member], timeout=5)[1] == []


def test_who_does_not_heed_is_killed_at_once_when_there_is_no_more_grace(tmp_path: Path) -> None:
    guarding = start_guard()
    leader, member = start(tmp_path / "ended", "deaf")
    tell(guarding, 0, leader.pid)
    assert guarding.stdin is not None
    guarding.stdin.close()
    time.sleep(0.5)
    assert leader.poll() is None
    guarding.send_signal(signal.SIGTERM)
    guarding.wait(5)
    assert leader.wait(5) == -signal.SIGKILL
    assert psutil.wait_procs([member], timeout=5)[1] == []


def test_a_process_that_leads_no_group_is_ended_alone() -> None:
    guarding = start_guard()
    asleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    told, beside = subprocess.Popen(asleep), subprocess.Popen(asleep)
    try:
        tell(guarding, 0, told.pid)
        guarding.communicate(timeout=10)
        assert told.wait(5) == -signal.SIGTERM
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()
