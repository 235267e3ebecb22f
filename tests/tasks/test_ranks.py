from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tasks.ranks import spearman


def drawn(rows: int, seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    y = 0.7 * x + random.normal(size=rows)
    return (x.round(0), y.round(0)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
def test_the_value_is_that_of_scipy(ties):
    x, y = drawn(200, 1, ties=ties)
    assert spearman(x, y)[0] == pytest.approx(stats.spearmanr(x, y).statistic, abs=2e-4 if ties else 1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_the_influence_of_a_row_is_what_one_more_of_it_moves(ties):
    x, y = drawn(3_000, 2, ties=ties)
    value, influence = spearman(x, y)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    for row in (0, 7, 100):
        moved = spearman(np.append(x, x[row]), np.append(y, y[row]))[0] - value
        assert moved * 3_001 == pytest.approx(influence[row], rel=0.02, abs=0.01)


def test_the_interval_is_that_of_resampled_rows():
    x, y = drawn(400, 3, ties=False)
    value, influence = spearman(x, y)
    random = np.random.default_rng(0)
    redrawn = [spearman(x[rows], y[rows])[0] for rows in random.integers(0, 400, (800, 400))]
    assert influence.std() / np.sqrt(400) == pytest.approx(np.std(redrawn), rel=0.1)
    assert value == pytest.approx(np.mean(redrawn), abs=0.01)


def test_one_value_alone_has_no_correlation():
    value, influence = spearman(np.ones(5), np.arange(5.0))
    assert value == 0
    assert not influence.any()
