"""Ends what a process has started when that process does, however it dies. Run as a script of its own.

It is told of each process by a line `<rank> <pid>` on standard input, and acts when that closes: the highest rank
first, each rank together. A process gets SIGTERM; one that leads a process group stands for the group, and where it is
gone already, what is left of that gets it. Whoever is still there after its grace is killed. SIGTERM to this process
means: no more grace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE_S = {0: 8.0, 1: 25.0}
"""Rank → seconds between SIGTERM and SIGKILL. Servers have rank 0; a worker, whose runs save their state, 1."""
TICK_S = 0.05
PROCESSES = Path("/proc")


def start_guard() -> subprocess.Popen[bytes]:
    """A guard of this process: write lines to its standard input; it acts when that closes, whoever closes it."""
    return subprocess.Popen([sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True)


def tell(guard: subprocess.Popen[bytes], pid: int, rank: int = 0) -> None:
    """Have a guard end a process, too."""
    assert guard.stdin is not None
    guard.stdin.write(f"{rank} {pid}\n".encode())
    guard.stdin.flush()


@dataclass(frozen=True)
class Guarded:
    """A process to end.

    Attributes:
        leads: It led a process group when it was told of.
    """

    rank: int
    pid: int
    leads: bool

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process; to its group where it is gone, and where it is to be killed."""
        with suppress(ProcessLookupError):
            if self.leads and (number == signal.SIGKILL or not _runs(self.pid)):
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    @property
    def lives(self) -> bool:
        """Whether it, or anybody of its group, still runs."""
        if not self.leads:
            return _runs(self.pid)
        return any(_runs(pid) for pid in _members(self.pid))


def main() -> None:
    """Wait for the end of standard input, then end everything it told of."""
    told: list[Guarded] = []
    for line in sys.stdin:
        rank, pid = map(int, line.split())
        told.append(Guarded(rank, pid, leads=_leads(pid)))
    hurry: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: hurry.append(number))
    for rank in sorted({guarded.rank for guarded in told}, reverse=True):
        _end([guarded for guarded in told if guarded.rank == rank], GRACE_S[rank], hurry)


def _end(guarded: list[Guarded], grace_s: float, hurry: list[int]) -> None:
    for each in guarded:
        each.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(each.lives for each in guarded):
        if hurry or time.monotonic() > deadline:
            for each in guarded:
                each.send(signal.SIGKILL)
            return
        time.sleep(TICK_S)


def _leads(pid: int) -> bool:
    """Whether a process leads a group; one that is gone already may have left one."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return True


def _runs(pid: int) -> bool:
    """Whether a process is there; a zombie that its parent has not heard of yet is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _members(group: int) -> list[int]:
    """Processes of a group; only its leader where the system has no /proc."""
    if not PROCESSES.exists():
        return [group]
    members = []
    for process in PROCESSES.glob("[0-9]*"):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(int(process.name)) == group:
                members.append(int(process.name))
    return members


if __name__ == "__main__":
    main()
