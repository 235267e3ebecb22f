from __future__ import annotations

import numpy as np
import pytest

from tasks.bootstrap import percentiles
from tasks.power_law import Points, fit, resample

MOST = 20_000
SHARES = np.array([0.05, 0.1, 0.25, 0.5, 1.0])
ROWS = MOST * SHARES
ROWS_ERROR = 0.007
"""Of a metric on 3,500 rows; six tenths of its variance are shared by models that are measured on the same ones."""
SHARED = 0.6
TRAINING_ERROR = 0.004
COVARIANCE = ROWS_ERROR**2 * (SHARED + (1 - SHARED) * np.eye(len(ROWS)))


def true(a: float, b: float, c: float) -> np.ndarray:
    return a - b * (ROWS / MOST) ** -c


def measured(law: tuple[float, float, float], rng: np.random.Generator, seeds: int = 1) -> Points:
    """Points as they would be found: the noise of the validation rows is alike, that of training is not."""
    apart = np.sqrt(MOST / ROWS)
    trained = TRAINING_ERROR * apart * rng.standard_normal((seeds, len(ROWS)))
    values = true(*law) + rng.multivariate_normal(np.zeros(len(ROWS)), COVARIANCE) + trained.mean(0)
    if seeds == 1:
        return Points(ROWS, values, COVARIANCE, (ROWS_ERROR / 2) ** 2, 2.0)
    freedom = len(ROWS) * (seeds - 1)
    pooled = (((trained - trained.mean(0)) / apart) ** 2).sum() / freedom / seeds
    return Points(ROWS, values, COVARIANCE, float(pooled), float(freedom))


def exact(values: np.ndarray) -> Points:
    return Points(ROWS, values, 1e-10 * np.eye(len(values)), 1e-10, 2.0)


@pytest.mark.parametrize("law", [(0.85, 0.05, 0.4), (0.9, 0.12, 0.25), (0.82, 0.01, 1.0)])
def test_points_on_a_law_give_that_law(law: tuple[float, float, float]) -> None:
    found = fit(exact(true(*law)))
    assert found.gain(2)[0] == pytest.approx(law[1] * (1 - 2 ** -law[2]), abs=1e-3)
    assert found.at(ROWS)[0] == pytest.approx(true(*law), abs=2e-3)


def test_a_metric_of_shares_is_not_foretold_beyond_one() -> None:
    steep = np.array([0.5, 0.62, 0.76, 0.88, 0.999])
    found = fit(exact(steep))
    assert found.at(np.array([1e12]))[0, 0] <= 1
    percent = fit(exact(100 * steep))
    assert percent.at(np.array([1e12]))[0, 0] > 100


def test_a_metric_that_falls_is_seen_to_fall() -> None:
    assert fit(exact(np.array([0.84, 0.83, 0.82, 0.815, 0.81]))).gain(2)[0] < 0


def test_same_seed_same_laws() -> None:
    points = measured((0.85, 0.05, 0.4), np.random.default_rng(0))
    first, second, other = (resample(points, fit(points), 50, seed).gain(2).tolist() for seed in (1, 1, 2))
    assert first == second != other


def test_points_off_the_law_widen_what_is_foretold() -> None:
    smooth = exact(true(0.85, 0.05, 0.4))
    points = Points(ROWS, smooth.values, COVARIANCE, 1e-5, 2.0)
    rough = Points(ROWS, points.values + np.array([0.0, 0.03, -0.03, 0.03, -0.03]), COVARIANCE, 1e-5, 2.0)
    narrow, wide = (np.ptp(percentiles(resample(p, fit(p), 500, 0).gain(2), 0.95)) for p in (points, rough))
    assert wide > 1.3 * narrow


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("law", [(0.85, 0.05, 0.4), (0.9, 0.12, 0.25), (0.82, 0.01, 1.0), (0.95, 0.15, 0.15)])
def test_intervals_of_what_more_rows_would_add_hold_it_about_as_often_as_they_say(
    law: tuple[float, float, float], seeds: int
) -> None:
    rng = np.random.default_rng(0)
    held = {2: 0, 4: 0}
    for _ in range(120):
        points = measured(law, rng, seeds)
        laws = resample(points, fit(points), 400, 0)
        for factor in held:
            low, high = percentiles(laws.gain(factor), 0.95)
            held[factor] += bool(low <= law[1] * (1 - factor ** -law[2]) <= high)
    assert all(times >= 0.85 * 120 for times in held.values())


def test_a_flat_curve_is_seldom_taken_for_one_that_rises() -> None:
    rng = np.random.default_rng(1)
    rises = 0
    for _ in range(120):
        points = measured((0.8, 0.0, 0.4), rng)
        rises += bool(percentiles(resample(points, fit(points), 400, 0).gain(2), 0.95)[0] > 0)
    assert rises <= 0.08 * 120


def test_a_steep_curve_is_seen_to_rise() -> None:
    points = measured((0.9, 0.12, 0.25), np.random.default_rng(2))
    assert percentiles(resample(points, fit(points), 400, 0).gain(2), 0.95)[0] > 0
