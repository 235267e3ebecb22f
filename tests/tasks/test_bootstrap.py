from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tasks import bootstrap


def lost(values: np.ndarray) -> float:
    """Share of the values' variance that their cells do not have."""
    means, counts = bootstrap.cells(values)
    return 1 - np.average((means - values.mean()) ** 2, weights=counts) / values.var()


def test_few_distinct_values_are_cells_of_their_own() -> None:
    means, counts = bootstrap.cells(np.array([0.5, 0.1, 0.5, 0.9, 0.1, 0.5]))
    assert means.tolist() == [0.1, 0.5, 0.9]
    assert counts.tolist() == [2, 3, 1]


def test_many_values_share_cells_that_keep_rows_and_sum() -> None:
    values = np.random.default_rng(0).lognormal(size=20_000)
    means, counts = bootstrap.cells(values)
    assert len(means) <= bootstrap.CELLS
    assert counts.sum() == 20_000
    assert (means * counts).sum() == pytest.approx(values.sum())
    assert (np.diff(means) > 0).all()


def test_a_cell_spans_little_of_the_rows_and_of_the_range() -> None:
    values = np.random.default_rng(1).lognormal(sigma=2, size=20_000)
    means, counts = bootstrap.cells(values)
    within = np.searchsorted(np.cumsum(counts), np.arange(20_000), side="right")
    ordered = np.sort(values)
    for cell in range(len(means)):
        held = ordered[within == cell]
        assert np.ptp(held) <= 2 * np.ptp(values) / bootstrap.CELLS
        assert len(held) <= 2 * 20_000 / bootstrap.CELLS + 1


@pytest.mark.parametrize("tail", ["even", "heavy", "few"])
def test_cells_keep_the_variance_of_common_and_of_far_values(tail: str) -> None:
    rng = np.random.default_rng(2)
    values = {
        "even": rng.normal(size=50_000),
        "heavy": rng.lognormal(sigma=1.5, size=50_000),
        "few": np.concatenate([rng.exponential(0.01, 49_990), rng.uniform(20, 27, 10)]),
    }[tail]
    assert 0 <= lost(values) < 0.005


def test_resampled_means_agree_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=500)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    low, high = bootstrap.percentiles(bootstrap.resampled_means(values, 20_000, 0), 0.95)
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.high, abs=0.03 * width)


def test_chunks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(300)
    whole = bootstrap.resampled_means(values, 100, 5)
    monkeypatch.setattr(bootstrap, "CHUNK", 1_000)
    assert bootstrap.resampled_means(values, 100, 5).tolist() == whole.tolist()
    assert bootstrap.resampled_means(values, 100, 6).tolist() != whole.tolist()


def test_every_resample_has_as_many_rows_as_there_are() -> None:
    counts = np.array([3, 1, 6])
    for stack in bootstrap.resampled(counts, 50, 0):
        assert (stack.sum(1) == 10).all()
        assert stack.mean(0) == pytest.approx(counts, abs=1)


def test_percentiles_hold_the_middle() -> None:
    found = bootstrap.interval(50, np.arange(101.0), 0.9)
    assert (found.low, found.value, found.high) == pytest.approx((5, 50, 95))
