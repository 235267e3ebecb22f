"""How the child's reader of jobs asks its training to stop: training looks after each step, saves itself and ends."""

from __future__ import annotations

import threading

asked = threading.Event()


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """The job ended early because it was asked to.

    Args:
        step: The step after which it was saved; none when there was nothing to save.
    """

    def __init__(self, step: int | None) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}")
