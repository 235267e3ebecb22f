"""Heavy work in a child process: running out of memory kills the child, not the flow, and the flow never loads torch.

The child does one job after another and stays warm between them. It lives exactly as long as its parent's end of a
pipe is open, however the parent dies; not even a torch launcher that starts new sessions can leave it behind. A parent
that is interrupted asks for a checkpoint first; one that is gone cannot wait for it, and an orphan would hold locks.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from schemas.errors import ChildDied, Mistake, OutOfMemory
from tasks.machine import Slot, slot
from tasks.stopping import GivenUp, Stopped

log = logging.getLogger(__name__)

LOG_TAIL = 3_000
"""Characters of the child's log shown when it dies."""

SAVING_JOBS = {"train"}
"""Jobs that have something to save when they are interrupted."""
SAVE_S = 10.0
"""Longest an interrupted job may take to end its step and save itself; Prefect allows a cancelled run 30 s in all."""

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on CUDA
    # A thread that waits spins for microseconds, not milliseconds, before it sleeps: training is as fast, and what
    # runs beside it gets its share of the processor.
    "GOMP_SPINCOUNT": "10000",
    # glibc gives tensors of more than 32 MB back to the system when they are freed, which fills the next ones with
    # zeros, page by page. Kept, a language model learns 1.2 times as fast; `release_free_memory` gives them back.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    """Nobody listens."""


class Child:
    """One child process. Starting it returns at once; it imports torch while its parent does something else.

    Args:
        log_file: Where its standard output and error go.
        place: The part of the machine that it may use; none: all of it.
    """

    def __init__(self, log_file: Path, place: Slot | None = None) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file = log_file
        read, write = os.pipe()
        with log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.worker", str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={**environment(), **(place.environment if place else {})},
                start_new_session=True,  # Ctrl-C is for the parent; the pipe ends the child
                text=True,
            )
        os.close(write)
        if place is not None:
            place.confine(self._process.pid)
        self._events = os.fdopen(read)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None

    def run(self, job: str, spec: dict[str, Any], on_event: OnEvent = _ignore) -> Any:
        """Do a job of `tasks.worker.JOBS` and return its result.

        Args:
            job: Name of the job.
            spec: Its arguments, as JSON values.
            on_event: Called with each event the job emits on the way.

        Raises:
            Mistake: The job met a user's mistake.
            GivenUp: `on_event` raised it; the job has ended, and the child takes the next one.
            Stopped: Another thread has asked the job to save itself; the child has ended.
            OutOfMemory: The child's allocator gave up, or the kernel killed it for its memory.
            ChildDied: The child failed or ended in any other way.
        """
        kills_before = _kernel_oom_kills()
        try:
            self._send({"job": job, "spec": spec})
            for line in self._events:
                event = json.loads(line)
                match event.pop("event"):
                    case "done":
                        return event["result"]
                    case "given up":
                        raise GivenUp
                    case "stopped":
                        raise Stopped(event["step"])
                    case "mistake":
                        raise Mistake.from_dict(event)
                    case "failed":
                        kind = OutOfMemory if event["out_of_memory"] else ChildDied
                        raise kind(f"{job}: {event['error']}", self._log_tail())
                    case _:
                        self._heed(event, on_event)
        except BrokenPipeError:
            pass  # it died before it read the job; the exit code below tells how
        code = self._process.wait()
        killed_for_memory = code == -signal.SIGKILL and _kernel_oom_kills() > kills_before
        kind = OutOfMemory if killed_for_memory else ChildDied
        raise kind(f"{job}: the child process ended with {_meaning(code)}", self._log_tail())

    def _heed(self, event: Event, on_event: OnEvent) -> None:
        try:
            on_event(event)
        except GivenUp:
            self._send({"job": "give up"})

    def ask_to_save(self) -> None:
        """Let the job in progress save itself after the step it is at; the thread that runs it hears of it."""
        with suppress(BrokenPipeError):  # it is gone already
            self._send({"job": "stop"})

    def save(self, on_event: OnEvent = _ignore) -> int | None:
        """Let the job in progress save itself after the step it is at, which ends the process; at most for `SAVE_S`.

        Args:
            on_event: Called with each event until then.

        Returns:
            The step that was saved; none when it took too long, or was over already.
        """
        deadline = threading.Timer(SAVE_S, self._process.kill)
        deadline.start()
        try:
            self._send({"job": "stop"})
            for line in self._events:
                event = json.loads(line)
                match event.pop("event"):
                    case "stopped":
                        return cast("int | None", event["step"])
                    case "done" | "mistake" | "failed":
                        break
                    case _:
                        on_event(event)
        except BrokenPipeError:
            pass  # it is gone already
        finally:
            deadline.cancel()
        return None

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # it is gone already
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._events.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-LOG_TAIL:]


class Children:
    """The children of this process: started early when work is coming, kept for the next job, replaced when they died.

    One for each part of the machine that work is done in at once, one in all where it is not parted.
    """

    def __init__(self) -> None:
        self._living: dict[Slot | None, Child] = {}
        self._lock = threading.Lock()
        self._stops_at_exit = False

    def warm(self, folder: Path) -> Child:
        """The living child of this part of the machine, started if need be; its log goes to `folder`."""
        place = slot.get()
        with self._lock:
            child = self._living.get(place)
            if child is None or not child.alive:
                if not self._stops_at_exit:
                    atexit.register(self.stop)
                    self._stops_at_exit = True
                name = f"child-{os.getpid()}" if place is None else f"child-{os.getpid()}-{place.number}"
                child = self._living[place] = Child(folder / f"{name}.log", place)
            return child

    def run(self, folder: Path, job: str, spec: dict[str, Any], on_event: OnEvent = _ignore) -> Any:
        """Do a job in the living child. A child that failed is not trusted with another job.

        Interrupted from outside, the job saves itself first; a second interruption ends it at once.
        """
        child = self.warm(folder)
        try:
            return child.run(job, spec, on_event)
        except GivenUp:
            raise
        except Exception:
            self._stop_this()
            raise
        except BaseException:
            try:
                if job in SAVING_JOBS:
                    _tell_saved(job, child.save(on_event))
            finally:
                self._stop_this()
            raise

    def ask_to_save(self) -> None:
        """Let the jobs of all children save themselves; for whoever waits for the threads that run them."""
        with self._lock:
            living = list(self._living.values())
        for child in living:
            child.ask_to_save()

    def stop(self) -> None:
        """End the children, if there are any."""
        with self._lock:
            for child in self._living.values():
                child.stop()
            self._living = {}

    def _stop_this(self) -> None:
        with self._lock:
            child = self._living.pop(slot.get(), None)
            if child is not None:
                child.stop()


children = Children()


def _tell_saved(job: str, step: int | None) -> None:
    if step is None:
        log.warning("%s: stopped; the next try goes on from the last checkpoint", job)
    else:
        log.warning("%s: stopped after step %d, which is saved; the next try goes on from there", job, step)


def environment() -> dict[str, str]:
    """A child's environment: what is set already stays, and there are two variables for how threads wait."""
    found = {**ENVIRONMENT, **os.environ}
    if "OMP_WAIT_POLICY" in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        del found["GOMP_SPINCOUNT"]  # it would win
    return found


def _kernel_oom_kills() -> int:
    counters = Path("/proc/vmstat")
    if not counters.exists():
        return 0
    found = [line.split()[1] for line in counters.read_text().splitlines() if line.startswith("oom_kill ")]
    return int(found[0]) if found else 0


def _meaning(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
