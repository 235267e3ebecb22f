"""Ends what a process has started when that process does, however it dies. Run as a script of its own.

It is told of each process by a line `<rank> <pid>` on standard input, and acts when that closes: the highest rank
first, each rank together. A process gets SIGTERM; where it is gone already, what is left of its group does. Whoever is
still there after its grace is killed with its group. SIGTERM to this process means: no more grace.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_S = {0: 8.0, 1: 25.0}
"""Rank → seconds between SIGTERM and SIGKILL. Servers have rank 0; a worker, whose runs save their state, 1."""
TICK_S = 0.05


def main() -> None:
    """Wait for the end of standard input, then end everything it told of."""
    told: list[tuple[int, int]] = []
    for line in sys.stdin:
        rank, pid = line.split()
        told.append((int(rank), int(pid)))
    hurry: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: hurry.append(number))
    for rank in sorted({rank for rank, _ in told}, reverse=True):
        _end([pid for at, pid in told if at == rank], GRACE_S[rank], hurry)


def _end(leaders: list[int], grace_s: float, hurry: list[int]) -> None:
    """End these process groups, named by the processes that lead them."""
    for leader in leaders:
        with suppress(ProcessLookupError):
            (os.kill if _runs(leader) else os.killpg)(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(map(_group_lives, leaders)):
        if hurry or time.monotonic() > deadline:
            for leader in leaders:
                with suppress(ProcessLookupError):
                    os.killpg(leader, signal.SIGKILL)
            return
        time.sleep(TICK_S)


def _runs(pid: int) -> bool:
    """Whether the process is there and leads its group, so that the number still means the one that was told."""
    try:
        return os.getpgid(pid) == pid and not _is_zombie(pid)
    except ProcessLookupError:
        return False


def _group_lives(leader: int) -> bool:
    """Whether any process of the group runs; a zombie that its parent has not heard of yet does not."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return any(not _is_zombie(pid) for pid in _members(leader))


def _members(leader: int) -> list[int]:
    """Processes of a group; only the leader where the system has no /proc."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112  this script starts in 20 ms without pathlib
        return [leader]
    members = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with suppress(ProcessLookupError, PermissionError):
                if os.getpgid(int(name)) == leader:
                    members.append(int(name))
    return members


def _is_zombie(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] == "Z"
    return False


if __name__ == "__main__":
    main()
