"""Calibration of a classifier on validation rows: a temperature, and a threshold below which it abstains.

Both are fitted on rows that picked the checkpoint too, and the threshold on probabilities that the temperature has
moved: what they are worth is measured on the test rows (`abstention`). Does not cover a calibration that differs from
label to label.

References:
    C. Guo et al. (2017), On Calibration of Modern Neural Networks (temperature scaling).
    A. Angelopoulos et al. (2021), Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Interval
from tasks.classification import forecast
from tasks.probabilities import TINY, Forecast, binned, log_loss, matrix

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats, Ints
    from tasks.probabilities import Booleans, Codes, Singles

log = logging.getLogger(__name__)

MIN_ROWS = 50
"""Fewer validation rows than this fit no temperature."""
LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature."""
BATCH_ROWS = 100_000
GRID = tuple(i / 100 for i in range(99)) + tuple(i / 1000 for i in range(990, 999)) + tuple(
    i / 10_000 for i in range(9_990, 10_000)
)  # fmt: skip
"""Thresholds that are tried, fixed beforehand: finer towards 1, where a good model has most of its rows."""
LATER_START = 4
"""The second sequence of tests starts where this many times the rows are above the threshold."""


def fit(
    validation: pl.DataFrame, labels: Sequence[str], *, abstain_precision: float | None, confidence: float
) -> dict[str, Any]:
    """Fit the temperature and, where asked for, the threshold below which the model abstains.

    Args:
        validation: Columns truth, prediction and probabilities, as the model makes them.
        labels: In the order of the probabilities.
        abstain_precision: Share of right answers wanted where the model does not abstain; none: it never does.
        confidence: That this share is reached.

    Returns:
        `temperature`; `before` and `after` it: `log_loss` and `ece` of these rows; `abstain`: none, or see
        `abstain_threshold`. Empty where there are no probabilities.
    """
    found = forecast(validation, labels)
    if found is None:
        return {}
    temperature = fitted_temperature(found)
    probabilities = apply(found.probabilities, temperature)
    after = Forecast(found.truth, found.right, probabilities.astype(np.float32))
    abstain = None
    if abstain_precision is not None:
        abstain = abstain_threshold(
            probabilities.max(1), found.right, precision=abstain_precision, confidence=confidence
        )
    return {"temperature": temperature, "before": _fit_of(found), "after": _fit_of(after), "abstain": abstain}


def apply(probabilities: Singles | Floats, temperature: float) -> Floats:
    """softmax(log p / temperature), `[rows, labels]` in float64, so that values that differ go on to differ.

    A probability below `TINY` counts as that much.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), TINY)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fitted_temperature(found: Forecast) -> float:
    """The temperature with the least log loss on these rows, to four digits behind the point.

    1 where the rows cannot tell: when they are few, of one label, or all predicted right, so that the surer the model,
    the better.
    """
    from scipy.optimize import brentq

    untold = _untold(found)
    if untold:
        log.warning("the temperature stays 1: %s", untold)
        return 1.0
    logs = np.log(np.maximum(found.probabilities, np.float32(TINY)))

    # The loss is convex in the inverse temperature: its slope rises and is zero at the one best value, if anywhere.
    def slope(inverse: float) -> float:
        return _slope(logs, found.truth, inverse)

    coldest, hottest = 1 / HIGHEST, 1 / LOWEST
    if slope(coldest) >= 0:
        return HIGHEST
    if slope(hottest) <= 0:
        return LOWEST
    return round(1 / float(brentq(slope, coldest, hottest, xtol=1e-7)), 4)


def abstain_threshold(top: Floats, right: Booleans, *, precision: float, confidence: float) -> dict[str, Any]:
    """The smallest threshold above which the share of right answers is surely as wanted.

    Thresholds of `GRID` are tested from the strictest downwards, each by the exact binomial (Clopper-Pearson) lower
    bound of that share, and the first that fails ends the sequence: so all tests together are wrong no more often than
    one. The sequence starts where just enough rows are above that it could pass at all, and once more where there are
    `LATER_START` times as many, as a single error ends a start among few; each start has half of the chance to be
    wrong. Order and starts depend on the probabilities, never on what is true.

    Args:
        top: Probability of each row's prediction.
        right: Whether it is the truth.
        precision: Share of right answers wanted at or above the threshold.
        confidence: That this share is reached.

    Returns:
        `precision` as wanted; `threshold`, none when not even the strictest passes, so that the model always abstains;
        `coverage`, the share of these rows at or above it; `validation_precision`, the share of right ones among them.
    """
    thresholds = np.array(GRID[::-1])
    ordered = np.argsort(top)
    below = np.searchsorted(top[ordered], thresholds)
    above, right_above = len(top) - below, right.sum() - np.concatenate([[0], np.cumsum(right[ordered])])[below]
    level, starts = _starts(len(top), precision, 1 - confidence)
    passes = _lower_bounds(right_above, above, level) >= precision
    reached = [place for start in starts if (place := _last_passed(passes, above >= start)) is not None]
    if not reached:
        return {"precision": precision, "threshold": None, "coverage": 0.0, "validation_precision": None}
    last = max(reached)
    return {
        "precision": precision,
        "threshold": float(thresholds[last]),
        "coverage": float(above[last] / len(top)),
        "validation_precision": float(right_above[last] / above[last]),
    }


def calibrated(predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
    """The predictions with calibrated probabilities, in float64; those given where there is nothing to apply."""
    import polars as pl

    if not calibration or "probabilities" not in predictions.columns or predictions.is_empty():
        return predictions
    labels = len(predictions["probabilities"][0])
    probabilities = apply(matrix(predictions, labels), calibration["temperature"])
    return predictions.with_columns(pl.Series("probabilities", probabilities).arr.to_list())


def abstained(predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.Series:
    """Whether the model abstains from each row.

    Args:
        predictions: Calibrated.
        calibration: See `fit`.
    """
    import polars as pl

    abstain = calibration.get("abstain")
    if abstain is None:
        return pl.repeat(value=False, n=predictions.height, dtype=pl.Boolean, eager=True)
    if abstain["threshold"] is None:
        return pl.repeat(value=True, n=predictions.height, dtype=pl.Boolean, eager=True)
    return predictions.select(pl.col("probabilities").list.max() < abstain["threshold"]).to_series()


def abstention(predictions: pl.DataFrame, calibration: Mapping[str, Any], *, confidence: float) -> dict[str, Any]:
    """What abstaining does to these rows, with exact binomial intervals.

    Args:
        predictions: Calibrated, of rows on which nothing was fitted.
        calibration: See `fit`.
        confidence: Of the intervals.

    Returns:
        `rows`; `answered`, those the model does not abstain from; `coverage`, their share, with `coverage_low` and
        `coverage_high`; `precision` (value, low, high), the share of right ones among them, none when there are none.
        Empty where the model never abstains.
    """
    if calibration.get("abstain") is None or predictions.is_empty():
        return {}
    answered = ~abstained(predictions, calibration)
    right = int((answered & (predictions["truth"] == predictions["prediction"])).sum())
    count = int(answered.sum())
    coverage = _share(count, predictions.height, confidence)
    return {
        "rows": predictions.height,
        "answered": count,
        "coverage": coverage.value,
        "coverage_low": coverage.low,
        "coverage_high": coverage.high,
        "precision": _share(right, count, confidence).model_dump() if count else None,
    }


def _untold(found: Forecast) -> str | None:
    """Why these rows tell no temperature."""
    if len(found.truth) < MIN_ROWS:
        return f"{len(found.truth)} validation rows are too few, {MIN_ROWS} are needed"
    if (found.truth == found.truth[0]).all():
        return "all validation rows have one label"
    if found.right.all():
        return "all validation rows are predicted right"
    return None


def _slope(logs: Singles, truth: Codes, inverse: float) -> float:
    """Derivative of the mean log loss by the inverse temperature."""
    total = 0.0
    for start in range(0, len(logs), BATCH_ROWS):
        batch = logs[start : start + BATCH_ROWS].astype(np.float64)
        powers = np.exp(inverse * (batch - batch.max(1, keepdims=True)))
        expected = (powers * batch).sum(1) / powers.sum(1)
        total += float((expected - batch[np.arange(len(batch)), truth[start : start + BATCH_ROWS]]).sum())
    return total / len(logs)


def _fit_of(found: Forecast) -> dict[str, float]:
    return {"log_loss": log_loss(found), "ece": binned(found.probabilities.max(1), found.right).error}


def _starts(rows: int, precision: float, risk: float) -> tuple[float, tuple[int, ...]]:
    """Level of each test, and rows above the threshold from which each sequence starts."""
    fewest = _rows_that_can_pass(precision, risk / 2)
    if rows >= LATER_START * fewest:
        return risk / 2, (fewest, LATER_START * fewest)
    return risk, (_rows_that_can_pass(precision, risk),)


def _rows_that_can_pass(precision: float, level: float) -> int:
    """Fewest rows that show the precision when all of them are right."""
    return math.ceil(math.log(level) / math.log(precision))


def _lower_bounds(hits: Ints, rows: Ints, level: float) -> Floats:
    """One-sided Clopper-Pearson bounds of shares; 0 where there are no hits."""
    from scipy.stats import beta

    bounds = beta.ppf(level, np.maximum(hits, 1), rows - hits + 1)
    return np.where(hits > 0, bounds, 0.0)


def _last_passed(passes: Booleans, enough: Booleans) -> int | None:
    """Place of the last test that passes in the sequence that starts at the first with enough rows; none: it fails."""
    if not enough.any():
        return None
    start = int(enough.argmax())
    failed = np.flatnonzero(~passes[start:])
    end = start + (int(failed[0]) if len(failed) else len(passes) - start)
    return end - 1 if end > start else None


def _share(hits: int, rows: int, confidence: float) -> Interval:
    from scipy.stats import binomtest

    found = binomtest(hits, rows).proportion_ci(confidence, method="exact")
    return Interval(value=hits / rows, low=float(found.low), high=float(found.high))
