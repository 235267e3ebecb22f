"""The child's side of `tasks.child`: reads jobs from standard input, writes events to the pipe it was given."""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from schemas.errors import Mistake
from tasks import process, stopping
from tasks.machine import release_free_memory

JOBS = {
    "plan": "tasks.probe:plan_training",
    "train": "tasks.learner:train",
    "rehearse": "tasks.rehearsal:rehearse",
    "predict": "tasks.predict:predict",
    "latency": "tasks.latency:latency",
    "onnx": "tasks.onnx_export:export_onnx",
}
"""Job → `module:function`; the function takes `emit` and the spec as keywords."""
STOP = "stop"
"""Not a job: asks the one in progress to save itself and end, and this process with it."""
GIVE_UP = "give up"
"""Not a job: asks the one in progress to end without a result; this process takes the next one."""


def main() -> None:
    """Serve jobs until standard input closes."""
    process.begin()
    pipe = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()

    def emit(event: str, **values: Any) -> None:
        pipe.write(json.dumps({"event": event, **values}) + "\n")

    importlib.import_module("tasks.learner")  # warm: every job needs torch, and waiting for the first one is free
    process.settle()
    while True:
        asked = jobs.get()
        stopping.given_up.clear()  # it was for the job before
        try:
            module, function = JOBS[asked["job"]].split(":")
            emit("done", result=_function(module, function)(emit=emit, **asked["spec"]))
        except stopping.Stopped as stopped:
            emit("stopped", step=stopped.step)
            os._exit(0)  # the reader holds standard input; an orderly exit would wait for it
        except stopping.GivenUp:
            emit("given up")
        except Mistake as mistake:
            emit("mistake", **mistake.as_dict())
        except Exception as error:  # noqa: BLE001  the border of the process: the parent decides what it means
            traceback.print_exc()
            emit("failed", error=f"{type(error).__name__}: {error}", out_of_memory=_is_out_of_memory(error))
        release_free_memory()


def _function(module: str, function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _read_jobs(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["job"] == STOP:
            stopping.asked.set()
        elif asked["job"] == GIVE_UP:
            stopping.given_up.set()
        else:
            jobs.put(asked)
    os._exit(1)  # the parent is gone, or wants us gone; nothing may hold the process back


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    main()
