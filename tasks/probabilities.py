"""Measures of predicted probabilities, for rows with one label each: ranking, sharpness, calibration.

Does not cover fitting a calibration (`tasks.calibration`).

References:
    F. Jaeckel (1972), The Infinitesimal Jackknife; E. DeLong et al. (1988), Comparing the Areas under Two or More
        Correlated ROC Curves (the same for AUROC).
    G. Brier (1950), Verification of Forecasts Expressed in Terms of Probability.
    C. Guo et al. (2017), On Calibration of Modern Neural Networks (expected calibration error).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import DataError, Problem
from schemas.records import Interval
from tasks.bootstrap import interval, resampled, resampled_means

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats, Ints

    Codes = np.ndarray[Any, np.dtype[np.int32]]
    Singles = np.ndarray[Any, np.dtype[np.float32]]
    Booleans = np.ndarray[Any, np.dtype[np.bool_]]

MEASURES = ("auroc", "auprc", "log_loss", "brier", "ece")
TINY = 1e-12
"""A smaller probability counts as this much, so that one row costs at most 27.6 nats."""
BINS = 15
"""Equal-width bins of the top probability behind the calibration error, each open below and closed above."""
SPLIT = 4
"""Parts of a bin whose rows are resampled as one: within them confidence differs by 1 / 60 at most."""


@dataclass(frozen=True)
class Forecast:
    """Probabilities and what came true.

    Attributes:
        truth: Index of each row's label, `[rows]`, int32.
        right: Whether the prediction is the truth, `[rows]`.
        probabilities: `[rows, labels]`, float32.
    """

    truth: Codes
    right: Booleans
    probabilities: Singles


@dataclass(frozen=True)
class Ranking:
    """Rows in the order of one label's score, the highest first; rows of equal score share a place.

    Attributes:
        place: Of each row, `[rows]`.
        hits: Rows of the label at or before each place, `[places]`.
        misses: Other rows at or before each place, `[places]`.
    """

    place: Ints
    hits: Floats
    misses: Floats


@dataclass(frozen=True)
class Ranked:
    """A measure of a ranking, and how it moves with the rows.

    Attributes:
        value: The measure.
        of_hits: Derivative by the share of the rows that a row of the label at each place makes up, `[places]`.
        of_misses: The same of another row.
    """

    value: float
    of_hits: Floats
    of_misses: Floats


@dataclass(frozen=True)
class Bins:
    """Rows by top probability, `[BINS]` each; shares of empty bins are zero.

    Attributes:
        rows: How many.
        confidence: Mean top probability.
        accuracy: Share of right predictions.
    """

    rows: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: how far confidence and accuracy are apart, on the average over rows."""
        return float((np.abs(self.confidence - self.accuracy) * self.rows).sum() / max(1, self.rows.sum()))


def matrix(predictions: pl.DataFrame, labels: int) -> Singles:
    """The column `probabilities` as `[rows, labels]`.

    Raises:
        DataError: A row has another number of probabilities.
    """
    import polars as pl

    column = predictions["probabilities"]
    odd = column.filter((column.list.len() != labels).fill_null(value=True))
    if not odd.is_empty():
        rule = f"a row has other than {labels} probabilities, one for each label"
        raise DataError(Problem("probabilities", odd[:1].to_list()[0], rule, "predict and score with the same labels"))
    return column.explode(empty_as_null=False).cast(pl.Float32).to_numpy().reshape(-1, labels)


def score(found: Forecast) -> dict[str, float]:
    """Every measure that these rows have.

    Returns:
        `auroc` and `auprc`: areas under the ROC and the precision-recall curve (average precision) of each label
        against the rest, averaged over the labels that some rows have and others do not; missing where there are none.
        `log_loss` in nats. `brier`: squared errors, summed over labels, 0 to 2. `ece`: see `Bins`. The last three are
        better when lower.
    """
    return _areas(found)[0] | {
        "log_loss": log_loss(found),
        "brier": float(_squared_errors(found).mean()),
        "ece": binned(found.probabilities.max(1), found.right).error,
    }


def intervals(found: Forecast, *, resamples: int, confidence: float, seed: int) -> dict[str, Interval]:
    """Every measure of `score` with its percentile bootstrap interval over rows, each resampled on its own.

    `log_loss` and `brier` are means over rows, whose values are gathered in cells (`tasks.bootstrap.resampled_means`).

    `auroc` and `auprc` are resampled in their first-order expansion, a mean over rows too: the value plus the mean
    influence of the resampled rows (infinitesimal jackknife), that on all labels together. What is left out is of the
    order of one over the rows of the rarest label, mostly the bias that drawing a row twice brings with it.

    `ece` is resampled from counts of right and wrong rows of like confidence. It adds up distances, so that noise makes
    it larger, and drawing rows makes it larger once more: the resampled values are moved to have the value as mean.
    """
    drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}
    areas, influences = _areas(found)
    drawn = {name: np.clip(value + resampled_means(influences[name], **drawing), 0, 1) for name, value in areas.items()}
    losses, errors = _losses(found), _squared_errors(found)
    drawn |= {"log_loss": resampled_means(losses, **drawing), "brier": resampled_means(errors, **drawing)}
    ece, around = binned(found.probabilities.max(1), found.right).error, _resampled_errors(found, **drawing)
    drawn["ece"] = np.maximum(0, around + ece - around.mean())
    points = areas | {"log_loss": float(losses.mean()), "brier": float(errors.mean()), "ece": ece}
    return {name: interval(points[name], values, confidence) for name, values in drawn.items()}


def log_loss(found: Forecast) -> float:
    """Mean negative logarithm of the probability of what came true, in nats."""
    return float(_losses(found).mean())


def binned(confidence: Floats | Singles, right: Booleans) -> Bins:
    """Rows by top probability.

    Args:
        confidence: Top probability of each row.
        right: Whether its prediction is the truth.
    """
    fine = _fine_bins(confidence)
    rows, sure, hits = (
        np.bincount(fine // SPLIT, weights, BINS).astype(np.float64)
        for weights in (None, confidence.astype(np.float64), right.astype(np.float64))
    )
    return Bins(rows.astype(np.int64), sure / np.maximum(1, rows), hits / np.maximum(1, rows))


def rank(scores: Singles, positive: Booleans) -> Ranking:
    """Put rows in the order of their score.

    Args:
        scores: Of one label, `[rows]`.
        positive: Whether a row has the label.
    """
    distinct, place = np.unique(-scores, return_inverse=True)
    hits = np.bincount(place, positive, len(distinct))
    return Ranking(place, np.cumsum(hits), np.cumsum(np.bincount(place, ~positive, len(distinct))))


def rankings(found: Forecast) -> Iterator[tuple[int, Ranking, Booleans]]:
    """The rows by the score of each label that some have and others do not: label, ranking, which rows have it."""
    for label, scores in enumerate(found.probabilities.T):
        positive = found.truth == label
        if positive.any() and not positive.all():
            yield label, rank(scores, positive), positive


def auroc(ranking: Ranking) -> Ranked:
    """Share of pairs of a row of the label and another row in which the former scores higher; equal scores count half.

    The influence of a row is the share of its own pairs, less the value.
    """
    all_hits, all_misses = ranking.hits[-1], ranking.misses[-1]
    hits, misses = np.diff(ranking.hits, prepend=0), np.diff(ranking.misses, prepend=0)
    above = (ranking.hits - hits / 2) / all_hits
    below = 1 - (ranking.misses - misses / 2) / all_misses
    value = float((misses * above).sum() / all_misses)
    rows = all_hits + all_misses
    return Ranked(value, rows / all_hits * (below - value), rows / all_misses * (above - value))


def auprc(ranking: Ranking) -> Ranked:
    """Average precision: the precision at every row of the label, averaged over these rows.

    A row moves the precision at its own place and at all that come after it, and, where it has the label, the number of
    rows that are averaged over.
    """
    all_hits, places = ranking.hits[-1], ranking.hits + ranking.misses
    hits = np.diff(ranking.hits, prepend=0)
    precision = ranking.hits / places
    value = float((hits * precision).sum() / all_hits)
    raised = np.cumsum((hits * ranking.misses / places**2)[::-1])[::-1]
    lowered = np.cumsum((hits * ranking.hits / places**2)[::-1])[::-1]
    share = places[-1] / all_hits
    return Ranked(value, share * (precision - value + raised), -share * lowered)


def _areas(found: Forecast) -> tuple[dict[str, float], dict[str, Floats]]:
    """Macro-averaged AUROC and AUPRC, and each row's influence on them, `[rows]`; empty without a label to rank."""
    values: dict[str, list[float]] = {"auroc": [], "auprc": []}
    sums = {name: np.zeros(len(found.truth)) for name in values}
    for _, ranking, positive in rankings(found):
        for name, measure in (("auroc", auroc(ranking)), ("auprc", auprc(ranking))):
            values[name].append(measure.value)
            sums[name] += np.where(positive, measure.of_hits[ranking.place], measure.of_misses[ranking.place])
    if not values["auroc"]:
        return {}, {}
    return {name: float(np.mean(areas)) for name, areas in values.items()}, {
        name: total / len(values[name]) for name, total in sums.items()
    }


def _losses(found: Forecast) -> Floats:
    of_truth = found.probabilities[np.arange(len(found.truth)), found.truth]
    return -np.log(np.maximum(of_truth.astype(np.float64), TINY))


def _squared_errors(found: Forecast) -> Floats:
    of_truth = found.probabilities[np.arange(len(found.truth)), found.truth].astype(np.float64)
    squares: Floats = np.einsum("ij,ij->i", found.probabilities, found.probabilities, dtype=np.float64)
    return squares - 2 * of_truth + 1


def _fine_bins(confidence: Floats | Singles) -> Ints:
    parts = BINS * SPLIT
    return np.clip(np.ceil(confidence.astype(np.float64) * parts).astype(np.int64) - 1, 0, parts - 1)


def _resampled_errors(found: Forecast, resamples: int, seed: int) -> Floats:
    """Expected calibration errors of resampled rows, `[resamples]`."""
    confidence = found.probabilities.max(1).astype(np.float64)
    codes = 2 * _fine_bins(confidence) + found.right
    cells, cell, counts = np.unique(codes, return_inverse=True, return_counts=True)
    gaps = np.bincount(cell, found.right - confidence) / counts
    by_bin = gaps[:, None] * np.eye(BINS)[cells // (2 * SPLIT)]
    drawn = [np.abs(stack @ by_bin).sum(1) for stack in resampled(counts, resamples, seed)]
    return np.concatenate(drawn) / len(confidence)
