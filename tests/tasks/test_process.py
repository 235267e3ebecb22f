"""How a process of hone begins and ends."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from tasks import process

ENDS = """
import atexit, sys, threading, time
from tasks import process

codes = []
process.end_at_once(codes)
atexit.register(print, "registered later")
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread ended"))).start()


class Torn:
    def __del__(self):
        print("taken apart")


torn = Torn()
sys.stdout.write("no line end yet ")
if "fails" in sys.argv:
    raise ValueError("a bug")
codes.append(7)
sys.exit(7)
"""


def ends(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ENDS, *arguments], capture_output=True, text=True, check=False)


def test_a_process_ends_with_its_code_once_threads_and_handlers_have_ended() -> None:
    done = ends()
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "no line end yet a thread ended\nregistered later\n"


def test_a_process_that_fails_ends_as_others_do() -> None:
    done = ends("fails")
    assert done.returncode == 1
    assert "ValueError: a bug" in done.stderr
    assert "taken apart" in done.stdout


@pytest.mark.parametrize("settled", [False, True])
def test_garbage_is_collected_rarely_while_a_process_imports(settled: bool) -> None:
    before = gc.get_threshold()
    try:
        process.begin()
        assert gc.get_threshold()[0] == process.YOUNG_OBJECTS > before[0]
        if settled:
            process.settle()
            assert gc.get_threshold() == process.PYTHONS
            assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
