"""Pearson's chi-square test, without the third of a second that `scipy.stats` takes to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


def tail(statistic: float, freedom: int) -> float:
    """Chance of at least this statistic under a chi-square distribution of so many degrees of freedom."""
    from scipy.special import chdtrc

    return float(chdtrc(freedom, statistic))


def independence(counts: npt.ArrayLike) -> float:
    """Chance of counts at least this unlike those that rows and columns independent of each other would have.

    Args:
        counts: `[rows, columns]`, without a row or column of zeros.
    """
    import numpy as np

    table: Any = np.asarray(counts, np.float64)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return tail(float(((table - expected) ** 2 / expected).sum()), (table.shape[0] - 1) * (table.shape[1] - 1))
