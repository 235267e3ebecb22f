from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from schemas.errors import DataError
from tasks import row_metrics

HOW = {"resamples": 4_000, "confidence": 0.95, "seed": 0}


def f1(sums):
    """Of rows counted as (hits, predicted, true)."""
    return {"f1": row_metrics.ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])}


def mean(sums):
    return {"mean": row_metrics.ratio(sums[..., 1], sums[..., 0])}


def test_a_point_value_is_the_metric_of_the_sums():
    numbers = np.array([[1, 1, 2], [0, 1, 0], [2, 2, 2]], float)  # 3 hits, 4 predicted, 4 true
    assert row_metrics.score(numbers, f1) == {"f1": 0.75}
    assert row_metrics.score(np.zeros((2, 3)), f1) == {"f1": 0.0}


@pytest.mark.parametrize("rows", [400, 60_000])
def test_the_interval_of_a_mean_is_that_of_the_textbook(rows):
    values = np.random.default_rng(1).gamma(2.0, size=rows)
    found = row_metrics.intervals(np.stack([np.ones(rows), values], 1), mean, **HOW)["mean"]
    low, high = stats.norm.interval(0.95, values.mean(), values.std(ddof=1) / np.sqrt(rows))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) == pytest.approx(high - low, rel=0.06)
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))


def test_the_order_of_the_rows_does_not_matter():
    numbers = np.random.default_rng(2).integers(0, 4, (300, 3)).astype(float)
    assert row_metrics.intervals(numbers, f1, **HOW) == row_metrics.intervals(numbers[::-1], f1, **HOW)


def frame(values, ids=None, truth=None):
    names = [f"r{i}" for i in range(len(values))] if ids is None else ids
    return pl.DataFrame({"id": names, "truth": truth or ["x"] * len(values), "prediction": values})


def numbers_of(predictions):
    return np.stack([np.ones(predictions.height), predictions["prediction"].to_numpy()], 1)


def test_a_gain_is_measured_on_the_rows_both_have():
    new, old = frame([1.0, 2.0, 6.0]), frame([9.0, 1.0, 1.0], ["other", "r1", "r0"])
    found = row_metrics.paired(new, old, numbers_of, mean, "mean", **HOW)
    assert found.gain.value == pytest.approx(0.5)  # (1 + 2) / 2 - (1 + 1) / 2


def test_a_real_gain_is_told_from_none():
    random = np.random.default_rng(3)
    level = random.normal(size=500)
    alike = level + random.normal(scale=0.1, size=500), level + random.normal(scale=0.1, size=500)
    better = row_metrics.paired(frame(alike[0] + 0.05), frame(alike[1]), numbers_of, mean, "mean", **HOW)
    same = row_metrics.paired(frame(alike[0]), frame(alike[1]), numbers_of, mean, "mean", **HOW)
    assert better.gain.low > 0
    assert better.p < 0.001
    assert same.gain.low < 0 < same.gain.high
    assert same.p > 0.01


def test_models_with_no_row_in_common_or_another_truth_are_refused():
    with pytest.raises(DataError, match="no row in common"):
        row_metrics.paired(frame([1.0]), frame([1.0], ["z"]), numbers_of, mean, "mean", **HOW)
    with pytest.raises(DataError, match="truth = 'r0': 1 row"):
        row_metrics.paired(frame([1.0]), frame([1.0], truth=["y"]), numbers_of, mean, "mean", **HOW)


def test_nothing_to_measure_is_refused():
    with pytest.raises(DataError, match="no rows to measure"):
        row_metrics.intervals(np.zeros((0, 2)), mean, **HOW)
