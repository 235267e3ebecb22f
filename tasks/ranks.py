"""Spearman's rank correlation, and how it moves with the rows.

References:
    C. Spearman (1904), The Proof and Measurement of Association between Two Things.
    F. Jaeckel (1972), The Infinitesimal Jackknife.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tasks.bootstrap import Floats, Ints


def spearman(ours: Floats, theirs: Floats) -> tuple[float, Floats]:
    """The correlation of the ranks, ties sharing their mean rank, and each row's influence on it, `[rows]`.

    The influence is the derivative by the share of the rows that a row makes up: it moves its own product of ranks,
    and the ranks of all rows above it. Both are 0 where either side has one value alone.

    Args:
        ours: Values, `[rows]`.
        theirs: Values of the same rows.
    """
    first, second = _Ranks(ours), _Ranks(theirs)
    x, y = first.shares, second.shares
    covariance, spread = (x * y).mean() - 0.25, ((x * x).mean() - 0.25, (y * y).mean() - 0.25)
    if min(spread) <= 0:
        return 0.0, np.zeros(len(x))
    scale = np.sqrt(spread[0] * spread[1])
    value = float(covariance / scale)
    moved = x * y + first.above(y) + second.above(x)
    widened = (x * x + 2 * first.above(x), y * y + 2 * second.above(y))
    influence = moved / scale - value / 2 * (widened[0] / spread[0] + widened[1] / spread[1])
    return value, influence - influence.mean()


class _Ranks:
    """Rows by one value.

    Attributes:
        shares: Of the rows at or below each row, those of equal value counted half; 0.5 on average. `[rows]`
    """

    def __init__(self, values: Floats) -> None:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        self._place: Ints = place
        self._places = len(count)
        self.shares: Floats = ((np.cumsum(count) - count / 2) / len(values))[place]

    def above(self, weights: Floats) -> Floats:
        """Sum of the weights of all rows above each row, those of equal value counted half, by the number of rows."""
        at = np.bincount(self._place, weights, self._places)
        after: Floats = at.sum() - np.cumsum(at) + at / 2
        return after[self._place] / len(weights)
