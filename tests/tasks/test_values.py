from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn import metrics

from tasks import values

META = {"mean": 50.0, "scale": 8.0}
HOW = {"resamples": 2_000, "confidence": 0.95, "seed": 0}


def predicted(rows: int, noise: float = 5.0, seed: int = 1) -> pl.DataFrame:
    random = np.random.default_rng(7)
    truth = random.normal(50, 8, rows)
    found = truth + np.random.default_rng(seed).normal(1, noise, rows)
    return pl.DataFrame({"id": [str(i) for i in range(rows)], "truth": truth, "prediction": found})


def test_every_measure_is_that_of_scikit_learn_and_scipy():
    rows = predicted(300)
    truth, found = rows["truth"], rows["prediction"]
    assert values.score(rows, META) == {
        "r2": pytest.approx(metrics.r2_score(truth, found)),
        "pearson": pytest.approx(stats.pearsonr(truth, found).statistic),
        "spearman": pytest.approx(stats.spearmanr(truth, found).statistic, abs=1e-4),
        "rmse": pytest.approx(metrics.root_mean_squared_error(truth, found)),
        "mae": pytest.approx(metrics.mean_absolute_error(truth, found)),
    }


def test_the_mean_explains_nothing_and_goes_with_nothing():
    rows = predicted(50).with_columns(prediction=pl.lit(50.0))
    scores = values.score(rows, META)
    assert scores["r2"] <= 0
    assert (scores["pearson"], scores["spearman"]) == (0, 0)


def test_the_intervals_are_those_of_resampled_rows():
    rows = predicted(500)
    truth, found = rows["truth"].to_numpy(), rows["prediction"].to_numpy()
    drawn = np.random.default_rng(0).integers(0, 500, (1_000, 500))
    expected = {
        "r2": [metrics.r2_score(truth[d], found[d]) for d in drawn],
        "spearman": [stats.spearmanr(truth[d], found[d]).statistic for d in drawn],
    }
    intervals = values.intervals(rows, META, **HOW)
    for name, redrawn in expected.items():
        low, high = np.quantile(redrawn, [0.025, 0.975])
        assert (intervals[name].low, intervals[name].high) == pytest.approx((low, high), abs=0.2 * (high - low))


@pytest.mark.parametrize("metric", ["r2", "pearson", "spearman"])
def test_a_better_model_gains_and_the_same_one_does_not(metric):
    good, bad = predicted(400, 3.0), predicted(400, 6.0)
    better = values.paired(good, bad, META, metric, **HOW)
    assert better.gain.low > 0
    assert better.p < 0.01
    same = values.paired(good, good, META, metric, **HOW)
    assert (same.gain.value, same.p) == (0, 1)
