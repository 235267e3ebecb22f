"""One metric on predictions of the same rows, with the intervals that a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.recipe import Recipe
from schemas.records import Interval
from tasks.families import Family, Meta

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Measure:
    """How predictions are measured.

    Attributes:
        family: Of the task.
        meta: What the rows say of the task.
        metric: The one that decides.
        confidence: Of every interval.
        resamples: Of the rows.
        seed: Of the resampling.
    """

    family: Family
    meta: Meta
    metric: str
    confidence: float
    resamples: int
    seed: int

    def of(self, predictions: pl.DataFrame) -> Interval:
        """The metric, over rows."""
        return self.family.intervals(predictions, self.meta, **self._options(self.confidence))[self.metric]

    def gain(self, one: pl.DataFrame, other: pl.DataFrame, confidence: float | None = None) -> Interval:
        """What one has more than another on the same rows."""
        options = self._options(confidence or self.confidence)
        return self.family.paired(one, other, self.meta, self.metric, **options).gain

    def _options(self, confidence: float) -> dict[str, Any]:
        return {"resamples": self.resamples, "confidence": confidence, "seed": self.seed}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe shapes a measure, as stages that measure take it: task, metric, confidence, resamples."""
    return {
        "task": recipe.task,
        "metric": recipe.metric,
        "confidence": recipe.evaluate.confidence,
        "resamples": recipe.evaluate.bootstrap_resamples,
    }


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The middle of several on the same rows: what these leave open does not average out."""
    many = len(intervals)
    value, low, high = (sum(getattr(each, end) for each in intervals) / many for end in ("value", "low", "high"))
    return Interval(value=value, low=low, high=high)


def widened(found: Interval, apart: float) -> Interval:
    """The interval with half a width more that is independent of it."""
    from math import hypot

    low, high = hypot(found.value - found.low, apart), hypot(found.high - found.value, apart)
    return Interval(value=found.value, low=found.value - low, high=found.value + high)
