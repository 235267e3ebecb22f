"""The bootstrap over rows, from counts of cells: rows that count alike in a measure make up one cell.

Drawing rows with replacement draws those counts from a multinomial distribution over the cells, so a resample costs as
many numbers as there are non-empty cells, not rows.

References:
    B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Interval

if TYPE_CHECKING:
    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Ints = np.ndarray[Any, np.dtype[np.int64]]

CHUNK = 4_000_000
"""Most cell counts held at once while resampling: 32 MB."""
CELLS = 128
"""Most cells that the values of rows are gathered in. Even heavy tails keep 99.5% of their variance."""


def resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Counts of resampled rows, `[chunk, cells]` at a time; the chunks' sizes do not change what is drawn.

    Args:
        counts: Rows of each cell.
        resamples: How often the rows are drawn.
        seed: Same seed, same counts.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK // len(counts))
    rows = int(counts.sum())
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        yield rng.multinomial(rows, counts / rows, size=size).astype(np.float64)


def resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means of resampled values, `[resamples]`, each value known as the mean of its cell.

    With at most `CELLS` distinct values nothing is lost. Otherwise the resampled means vary by too little by what the
    values of one cell differ, which is bounded on both sides: see `cells`.
    """
    means, counts = cells(values)
    return np.concatenate([stack @ means for stack in resampled(counts, resamples, seed)]) / len(values)


def cells(values: Floats) -> tuple[Floats, Ints]:
    """Mean value and rows of at most `CELLS` non-empty cells, in the order of the values.

    A cell spans at most `2 / CELLS` of the rows and of the range of the values alike: the many common values are told
    apart by the first, and a few far ones, which weigh most in a mean, by the second. Equal values share a cell.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= CELLS:
        return distinct, counts
    rank = np.cumsum(counts) / len(values)
    height = (distinct - distinct[0]) / (distinct[-1] - distinct[0])
    cell = np.minimum((rank + height) / 2 * CELLS, CELLS - 1).astype(np.int64)
    rows = np.bincount(cell, counts, CELLS)
    sums = np.bincount(cell, counts * distinct, CELLS)
    return sums[rows > 0] / rows[rows > 0], rows[rows > 0].astype(np.int64)


def percentiles(drawn: Floats, confidence: float) -> Floats:
    """Low and high ends that hold the middle `confidence` of what was drawn: `[resamples, …]` to `[2, …]`."""
    tail = (1 - confidence) / 2
    return np.quantile(drawn, [tail, 1 - tail], axis=0)


def interval(value: float, drawn: Floats, confidence: float) -> Interval:
    """A value with its percentile interval."""
    low, high = percentiles(drawn, confidence)
    return Interval(value=float(value), low=float(low), high=float(high))
