"""Measures of predicted values: point values, bootstrap intervals, paired tests of two models.

All but the rank correlation follow from sums over rows (`tasks.row_metrics`); that one is resampled in its first-order
expansion, as areas under curves are (`tasks.probabilities`). Values are measured in standard deviations of the training
values, so that sums of squares keep their digits; errors are told in the source's units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Interval, Paired
from tasks import row_metrics
from tasks.bootstrap import interval, resampled_means
from tasks.ranks import spearman
from tasks.row_metrics import ratio

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats

NOTHING = 1e-12
"""Variance, in those of the training values, below which values count as one and the same."""


def score(predictions: pl.DataFrame, meta: Mapping[str, Any]) -> dict[str, float]:
    """Every measure on these rows.

    Args:
        predictions: Columns truth and prediction, numbers.
        meta: `mean` and `scale` of the training values.

    Returns:
        `r2`: share of the variance explained, 1 less squared errors over squared distances from these rows' own mean.
        `pearson` and `spearman`: correlations of values and of ranks, 0 where either side has one value alone.
        `rmse` and `mae`, in the units of the values.
    """
    found = row_metrics.score(numbers(predictions, meta), lambda sums: metrics_of(sums, meta))
    return found | {"spearman": spearman(*_sides(predictions))[0]}


def intervals(
    predictions: pl.DataFrame, meta: Mapping[str, Any], *, resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Every measure with its percentile bootstrap interval over rows."""
    found = row_metrics.intervals(
        numbers(predictions, meta),
        lambda sums: metrics_of(sums, meta),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    value, influence = spearman(*_sides(predictions))
    drawn = np.clip(value + resampled_means(influence, resamples, seed), -1, 1)
    return found | {"spearman": interval(value, drawn, confidence)}


def paired(
    new: pl.DataFrame,
    old: pl.DataFrame,
    meta: Mapping[str, Any],
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Paired:
    """The gain of `new` over `old` on the rows both have; see `tasks.row_metrics.paired`."""
    if metric == "spearman":
        ours, theirs = (spearman(*_sides(rows)) for rows in row_metrics.common(new, old))
        gain = ours[0] - theirs[0]
        return row_metrics.compared(gain, gain + resampled_means(ours[1] - theirs[1], resamples, seed), confidence)
    return row_metrics.paired(
        new,
        old,
        lambda rows: numbers(rows, meta),
        lambda sums: metrics_of(sums, meta),
        metric,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def numbers(predictions: pl.DataFrame, meta: Mapping[str, Any]) -> Floats:
    """Of each row 1, truth, prediction, their squares and product, the squared and the absolute error, `[rows, 8]`."""
    truth, found = ((side - meta["mean"]) / meta["scale"] for side in _sides(predictions))
    error = found - truth
    ones = np.ones(len(truth))
    return np.stack([ones, truth, found, truth**2, found**2, truth * found, error**2, abs(error)], axis=1)


def metrics_of(sums: Floats, meta: Mapping[str, Any]) -> dict[str, Floats]:
    """Measures, `[…]`, of the numbers of several rows added up, `[…, 8]`."""
    rows, truth, found, truth_squares, found_squares, products, squares, distances = np.moveaxis(sums, -1, 0)
    spread = _variance(rows, truth, truth_squares)
    width = _variance(rows, found, found_squares)
    covariance = products / rows - truth * found / rows**2
    return {
        "r2": np.where(spread > 0, 1 - ratio(squares / rows, spread), 0.0),
        "pearson": np.clip(ratio(covariance, np.sqrt(spread * width)), -1, 1),
        "rmse": meta["scale"] * np.sqrt(squares / rows),
        "mae": meta["scale"] * distances / rows,
    }


def row_scores(predictions: pl.DataFrame, meta: Mapping[str, Any]) -> pl.Series:
    """1 less the absolute error in standard deviations of the training values, and 0 from one of these on."""
    import polars as pl

    off = (pl.col("prediction") - pl.col("truth")).abs() / meta["scale"]
    return predictions.select((1 - off).clip(0, 1).cast(pl.Float64).alias("score")).to_series()


def _variance(rows: Floats, total: Floats, squares: Floats) -> Floats:
    """Of so many values with this sum and sum of squares; 0 where it is nothing but rounding."""
    variance = squares / rows - (total / rows) ** 2
    return np.where(variance > NOTHING, variance, 0.0)


def _sides(predictions: pl.DataFrame) -> tuple[Floats, Floats]:
    """Truth and prediction, `[rows]` each."""
    truth, found = (predictions[name].to_numpy().astype(np.float64) for name in ("truth", "prediction"))
    return truth, found
