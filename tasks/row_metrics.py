"""Metrics that follow from sums over rows: point values, bootstrap intervals, paired tests of two models.

A family says of every row a few numbers (right answers, predicted and true entities, squared errors …) and how
metrics follow from their sums; the rest is here. Rows that count alike are drawn together, see `tasks.bootstrap`; where
more than `CELLS` rows count differently, rows are put together at random and drawn as groups, which leaves the expected
variance of every mean as it is. Does not cover metrics that need the rows side by side, as ranks do.

References:
    B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap.
    B. Phipson, G. Smyth (2010), Permutation P-values Should Never Be Zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import DataError, Problem
from schemas.records import Interval, Paired
from tasks.bootstrap import interval, resampled

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats, Ints

Metrics = Callable[["Floats"], Mapping[str, "Floats"]]
"""Sums of the rows' numbers, `[..., numbers]`, to name → metric, `[...]`."""
CELLS = 20_000
"""Most cells that rows are drawn in."""


def score(numbers: Floats, metrics: Metrics) -> dict[str, float]:
    """Point values.

    Args:
        numbers: Of each row, `[rows, numbers]`.
        metrics: Makes metrics of their sums.
    """
    return {name: float(value) for name, value in metrics(numbers.sum(0)).items()}


def intervals(
    numbers: Floats, metrics: Metrics, *, resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Every metric with its percentile bootstrap interval over rows.

    Args:
        numbers: Of each row, `[rows, numbers]`.
        metrics: Makes metrics of their sums.
        resamples: Resamples of the rows.
        confidence: Share of the resampled values between low and high.
        seed: Same seed, same interval, whatever the order of the rows.

    Raises:
        DataError: There are no rows.
    """
    points, drawn = metrics(numbers.sum(0)), _drawn(numbers, metrics, resamples, seed)
    return {name: interval(float(points[name]), drawn[name], confidence) for name in points}


def paired(
    new: pl.DataFrame,
    old: pl.DataFrame,
    numbers: Callable[[pl.DataFrame], Floats],
    metrics: Metrics,
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Paired:
    """The gain of `new` over `old` on the rows both have, joined by id, and its paired bootstrap; see `compared`.

    Args:
        new: Predictions.
        old: The same of the other model.
        numbers: Gives those of each row.
        metrics: Makes metrics of their sums.
        metric: Which one is compared.
        resamples: Resamples of the rows both have.
        confidence: Share of the resampled differences between low and high of the gain.
        seed: Same seed, same interval.

    Raises:
        DataError: No row in common, the two disagree about what is true, or the metric is not known of both.
    """
    ours, theirs = common(new, old)
    ours_numbers, theirs_numbers = numbers(ours), numbers(theirs)
    size = ours_numbers.shape[1]

    for whose, found in (("new", ours_numbers), ("old", theirs_numbers)):
        if metric not in metrics(found.sum(0)):
            rule = f"nobody knows it of the {whose} model's predictions"
            raise DataError(Problem("evaluate.metric", metric, rule, "compare by another metric"))

    def difference(sums: Floats) -> Mapping[str, Floats]:
        return {metric: metrics(sums[..., :size])[metric] - metrics(sums[..., size:])[metric]}

    both = np.concatenate([ours_numbers, theirs_numbers], axis=1)
    return compared(
        float(difference(both.sum(0))[metric]), _drawn(both, difference, resamples, seed)[metric], confidence
    )


def compared(gain: float, drawn: Floats, confidence: float) -> Paired:
    """A gain and its paired bootstrap.

    P is twice the share of resampled differences on the smaller side of zero, the measured one counted among them, so
    that it is never zero.

    Args:
        gain: As measured.
        drawn: On resampled rows, `[resamples]`.
        confidence: Share of them between low and high.
    """
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Paired(
        gain=interval(gain, drawn, confidence),
        se=float(drawn.std(ddof=1)),
        p=min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)),
        test="paired bootstrap",
    )


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient; zero where the denominator is."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _drawn(numbers: Floats, metrics: Metrics, resamples: int, seed: int) -> dict[str, Floats]:
    """Name → `[resamples]`."""
    if not len(numbers):
        raise DataError(Problem("predictions", None, "there are no rows to measure", "give the split test rows"))
    sums, counts = _cells(numbers, seed)
    parts = [metrics(stack @ sums) for stack in resampled(counts, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _cells(numbers: Floats, seed: int) -> tuple[Floats, Ints]:
    """Numbers of a row of each cell, `[cells, numbers]`, and the rows it has: sorted, so that order is forgotten."""
    distinct, counts = np.unique(np.asarray(numbers, np.float64), axis=0, return_counts=True)
    if len(distinct) <= CELLS:
        return distinct, counts.astype(np.int64)
    every = np.repeat(distinct, counts, axis=0)
    group = np.random.default_rng(seed).permutation(len(every)) % CELLS
    sums = np.stack([np.bincount(group, column, CELLS) for column in every.T], axis=1)
    return np.asarray(sums, np.float64), np.ones(CELLS, np.int64)


def common(new: pl.DataFrame, old: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows both have, in one order.

    Raises:
        DataError: There is none, or the two disagree about what is true.
    """
    ours = new.join(old.select("id"), on="id", how="semi", maintain_order="left")
    theirs = ours.select("id").join(old, on="id", how="left", maintain_order="left")
    if ours.is_empty():
        rule, remedy = "the two models have no row in common", "compare predictions of the same test rows"
        raise DataError(Problem("id", None, rule, remedy))
    other = ours["truth"].ne_missing(theirs["truth"])
    if other.any():
        rule = f"{int(other.sum())} row(s) have another truth for each model"
        remedy = "predict the same version of the test rows with both"
        raise DataError(Problem("truth", ours["id"].filter(other)[0], rule, remedy))
    return ours, theirs
