"""How the child's reader of jobs asks its training to stop: training looks after each step, saves itself and ends.

Or to give up, which saves nothing.
"""

from __future__ import annotations

import threading

asked = threading.Event()
given_up = threading.Event()
"""Nobody wants what the training would end with: it ends, saves nothing, and the process takes the next job."""


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """The job ended early because it was asked to.

    Args:
        step: The step after which it was saved; none when there was nothing to save.
    """

    def __init__(self, step: int | None) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}")


class GivenUp(Exception):  # noqa: N818  nothing went wrong
    """Nobody wants the rest of a job: raised by whoever heeds its events, and by the job that heard of it."""
