"""The power law that a metric follows as rows are added, and what it foretells of more of them.

`metric = a - b * (rows / most rows) ** -c`: endless rows would reach a, which is b more than the most rows there are
reach, and c says how fast. For a given c the rest is linear: every c of a grid is tried and the best one is taken, so
that nothing diverges. A metric of shares ends between 0 and 1. c is held near what learning curves have, so that few
noisy points make no extreme one; b may be negative, so that a curve that does not rise is seen as such. Fitted again
and again to points that are moved by their noise (parametric bootstrap), the law has intervals.

Does not foresee what the points do not show: rows of another kind, a slow stretch behind a fast one.

References:
    C. Cortes et al. (1993), Learning Curves: Asymptotic Values and Rate of Convergence.
    T. Viering, M. Loog (2023), The Shape of Learning Curves: a Review.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tasks.bootstrap import Floats

PARAMETERS = 3
FEWEST_POINTS = 4
"""Three lie on a law whatever they are, and say nothing of their noise."""
RATES = np.geomspace(0.05, 2.0, 40)
"""Exponents that are tried."""
USUAL_RATE, RATE_SPREAD = 0.4, 1.2
"""Of learning curves: median, and standard deviation of the logarithm."""


@dataclass(frozen=True)
class Points:
    """A metric, measured with several numbers of rows to learn from.

    Attributes:
        rows: `[points]`, no two alike.
        values: Of the metric, `[points]`.
        covariance: Of the noise that comes from the rows it was measured on, `[points, points]`.
        training_variance: That training adds at the most rows: other rows of the same kind, another seed. At fewer it
            is larger, as that of a mean of rows would be.
        freedom: Degrees of freedom by which that is known.
    """

    rows: Floats
    values: Floats
    covariance: Floats
    training_variance: float
    freedom: float

    @property
    def training(self) -> Floats:
        """Variance that training adds to each point, `[points]`."""
        variances: Floats = self.training_variance * self.rows.max() / self.rows
        return variances


@dataclass(frozen=True)
class Law:
    """Laws, `[fits]` of each parameter.

    Attributes:
        most: Rows of the largest point.
        a, b, c: See the module.
    """

    most: float
    a: Floats
    b: Floats
    c: Floats

    def at(self, rows: Floats) -> Floats:
        """The metric with so many rows, `[fits, rows]`."""
        values: Floats = self.a[:, None] - self.b[:, None] * (rows / self.most) ** -self.c[:, None]
        return values

    def gain(self, factor: float) -> Floats:
        """What so many times the most rows would add to what they reach, `[fits]`."""
        gains: Floats = self.b * (1 - factor**-self.c)
        return gains


def fit(points: Points) -> Law:
    """The law of these points, of which there are `FEWEST_POINTS` or more."""
    return _fit(points, points.values[None], np.array([USUAL_RATE]))


def _fit(points: Points, values: Floats, usual: Floats) -> Law:
    """The law of each of several `values` for the same rows, `[fits, points]`, each with its `usual` rate, `[fits]`."""
    whitened = np.linalg.inv(np.linalg.cholesky(points.covariance + np.diag(points.training)))
    bounded = points.values.min() >= 0 and points.values.max() <= 1
    most = points.rows.max()
    one, found = whitened.sum(1), values @ whitened.T
    tried = []
    for rate in RATES:
        fall = -whitened @ (points.rows / most) ** -rate
        a, b = _line(one, fall, found, bounded=bounded)
        off = ((found - a[:, None] * one - b[:, None] * fall) ** 2).sum(1)
        unusual = (np.log(rate / usual) / RATE_SPREAD) ** 2
        tried.append((off + unusual, a, b))
    costs, ends, amplitudes = (np.stack(column) for column in zip(*tried, strict=True))
    best, every = costs.argmin(0), np.arange(len(values))
    return Law(float(most), ends[best, every], amplitudes[best, every], RATES[best])


def _line(one: Floats, fall: Floats, found: Floats, *, bounded: bool) -> tuple[Floats, Floats]:
    """Least squares of `found = a * one + b * fall`, `[fits]` each; where bounded, with a in [0, 1]."""
    square, mixed, other = one @ one, one @ fall, fall @ fall
    with_one, with_fall = found @ one, found @ fall
    a = (other * with_one - mixed * with_fall) / (square * other - mixed**2)
    if bounded:
        a = a.clip(0, 1)
    return a, (with_fall - mixed * a) / other


def resample(points: Points, law: Law, resamples: int, seed: int) -> Law:
    """Laws that are as likely as not, given these points and what is usual: both are moved by their noise.

    The noise of training is known by few degrees of freedom, so it is drawn as well: about what was assumed, and more
    where the points lie farther off the law than that explains.

    Args:
        points: As they were measured.
        law: Their law.
        resamples: Fits.
        seed: Same seed, same laws.
    """
    rng = np.random.default_rng(seed)
    off = points.values - law.at(points.rows)[0]
    surprise = off @ np.linalg.solve(points.covariance + np.diag(points.training), off)
    freedom = points.freedom + len(points.rows) - PARAMETERS
    scales = (points.freedom + surprise) / rng.chisquare(freedom, resamples)
    measured = rng.multivariate_normal(np.zeros(len(off)), points.covariance, resamples, method="eigh")
    trained = rng.standard_normal(measured.shape) * np.sqrt(scales[:, None] * points.training)
    usual = USUAL_RATE * np.exp(RATE_SPREAD * rng.standard_normal(resamples))
    return _fit(points, points.values + measured + trained, usual)
