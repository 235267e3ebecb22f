"""How a process of hone begins and ends: imports make a million objects that nobody throws away."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import sys
import threading

YOUNG_OBJECTS = 50_000
"""New objects between two collections; Python's 700 have it look through what is imported again and again."""
PYTHONS = gc.get_threshold()
"""What Python collects by, unless told otherwise."""


def begin() -> None:
    """Collect garbage more rarely: imports of a command take three quarters of the time."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


def import_meanwhile(*modules: str) -> None:
    """Import modules in a thread, while this one waits; nothing where they are imported already."""

    def one_by_one() -> None:
        for module in modules:
            importlib.import_module(module)

    threading.Thread(target=one_by_one, daemon=True).start()


def settle() -> None:
    """Leave what was imported alone from now on, and collect as Python does: tensors must not wait long for it."""
    gc.freeze()
    gc.set_threshold(*PYTHONS)


def end_at_once(codes: list[int]) -> None:
    """End without taking apart what is in memory, half a second where Prefect and MLflow are; call first of all.

    What is registered with `atexit` later runs before, and threads have ended.

    Args:
        codes: Empty now; holds the exit code by then. Where it does not, the process ends as others do.
    """
    atexit.register(_leave, codes)


def _leave(codes: list[int]) -> None:
    if codes:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])
