"""The learning-rate range test: the rate rises from step to step, and the loss tells where learning is fastest.

The loss falls while the rate grows, levels off, and rises where steps have become too long. AdamW moves every weight by
about the rate in each of these steps, whatever the gradients' size, so that the place hardly depends on the model's
scale. The steps are real ones, of the recipe's batches in their order, and are thrown away. Seeded like the training:
the same rows on the same machine give the same rate. Does not foresee what a long training adds (`hone tune` does).

References:
    L. Smith (2017), Cyclical Learning Rates for Training Neural Networks, section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = 60
"""Optimiser steps of the test."""
SPAN = 100.0
"""Times the usual rate of method and task, down and up, that is tried."""
SMOOTHING = 0.85
"""Weight of the losses before, in the moving average of the loss."""
DIVERGED = 1.5
"""Times the distance fallen, above the first loss, at which the test ends."""
BELOW_LOWEST = 6.0
"""The rate chosen is that of the lowest loss by this; see docs/tuning.md for how it was measured."""


@dataclass(frozen=True)
class RangeTest:
    """What the test found.

    Attributes:
        rates: Of each step, ascending.
        losses: The moving average after each step.
        chosen: The rate to train with.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float

    @property
    def told(self) -> str:
        """Why this rate."""
        lowest = self.rates[int(np.argmin(self.losses))]
        return f"a range test of {len(self.rates)} steps: the loss was lowest at {lowest:.1e}, this is a sixth of that"


def range_test(usual: float, step: Callable[[int, float], float]) -> RangeTest:
    """Raise the rate from step to step, and choose one.

    Args:
        usual: Rate around which is tried.
        step: Takes an optimiser step, given its number and rate; returns the loss before it.
    """
    low, high = usual / SPAN, min(usual * SPAN, 1.0)
    rates = np.geomspace(low, high, STEPS)
    averages: list[float] = []
    running = 0.0
    for number, rate in enumerate(rates):
        loss = step(number, float(rate))
        if not math.isfinite(loss):
            break
        running = SMOOTHING * running + (1 - SMOOTHING) * loss
        averages.append(running / (1 - SMOOTHING ** (number + 1)))
        if averages[-1] > averages[0] + DIVERGED * (averages[0] - min(averages)) + 0.1 * averages[0]:
            break
    tried = tuple(float(rate) for rate in rates[: len(averages)])
    return RangeTest(tried, tuple(averages), chosen_of(tried, averages))


def chosen_of(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate of the lowest loss by `BELOW_LOWEST`, to two digits."""
    lowest = rates[int(np.argmin(losses))]
    return float(f"{max(lowest / BELOW_LOWEST, rates[0]):.1e}")
