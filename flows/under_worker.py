"""How a flow run starts under a Prefect worker: `python -P -m flows.under_worker` in place of `prefect.engine`.

A worker that is stopped kills the process it started, at once and without a word. So that is this small one: it passes
SIGTERM on and ends as the engine below it ends. The engine outlives it just long enough to save its state and to tell
Prefect and MLflow that it ended. A worker that is killed leaves both running; then nobody reads their output any more,
and the run goes on without.
"""

from __future__ import annotations

import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

ENGINE = "engine"
END_S = 60.0
"""Longest the engine may take to end once this process is gone."""
TICK_S = 0.1
STDIN, STDOUT, STDERR = 0, 1, 2


def main() -> int:
    """Run the engine below this process, or be it."""
    if sys.argv[1:] == [ENGINE]:
        sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
        threading.Thread(target=_watch_above, daemon=True).start()
        sys.argv = sys.argv[:1]  # the engine takes an argument for a flow run
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
        return 0
    # Ctrl-C reaches all processes of a terminal. The worker heeds it; the engine, which inherits this, is ended by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine = subprocess.Popen([sys.executable, "-P", "-m", "flows.under_worker", ENGINE], stdin=subprocess.PIPE)
    signal.signal(signal.SIGTERM, lambda number, _: engine.send_signal(number))
    code = engine.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


class _Output:
    """A stream that goes nowhere once nobody reads it, instead of failing whoever writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        with suppress(BrokenPipeError):
            return self._stream.write(text)
        _drop(self._stream.fileno())
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with suppress(BrokenPipeError):
            return self._stream.flush()
        return _drop(self._stream.fileno())


def _drop(descriptor: int) -> None:
    """Let what is written there go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _watch_above() -> None:
    """End this process politely when the one above is gone; drop output that nobody reads."""
    watched = select.poll()
    watched.register(STDIN, select.POLLIN)
    for output in (STDOUT, STDERR):
        watched.register(output, 0)  # without events it tells of errors only: there is no reader
    while True:
        for descriptor, _ in watched.poll():
            if descriptor == STDIN:
                _end()
            _drop(descriptor)


def _end() -> None:
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(TICK_S)  # the flow has not begun; Prefect would not learn that it ended
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
