"""Measures of single-label classification: point values, bootstrap intervals, paired gain of one model over another.

Everything is computed from counts of (truth, prediction) cells. Drawing rows with replacement draws those counts from a
multinomial distribution over the cells, so a resample costs as many numbers as there are non-empty cells, not rows.

Does not cover calibration, nor rows with several labels.

References:
    B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile intervals).
    J. Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient (MCC).
    Q. McNemar (1947), Note on the sampling error of the difference between correlated proportions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import DataError, Problem
from schemas.records import Interval

if TYPE_CHECKING:
    import polars as pl

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Ints = np.ndarray[Any, np.dtype[np.int64]]

AGGREGATES = ("accuracy", "macro_f1", "micro_f1", "precision", "recall", "mcc")
PER_CLASS = ("f1", "precision", "recall", "support")
CHUNK = 4_000_000
"""Most cell counts held at once while resampling: 32 MB."""


@dataclass(frozen=True)
class _Margins:
    """What every metric needs of a stack of confusion matrices, all `[resamples, labels]`.

    Attributes:
        hits: The diagonals: rows of each label that were predicted as such.
        truth: Rows that have each label.
        predicted: Rows predicted as each label.
    """

    hits: Floats
    truth: Floats
    predicted: Floats


def confusion(predictions: pl.DataFrame, labels: Sequence[str]) -> Ints:
    """Counts `[truth, prediction]`, in the order of `labels`.

    Raises:
        DataError: A truth or a prediction is none of the labels.
    """
    size = len(labels)
    cells = _indices(predictions, "truth", labels) * size + _indices(predictions, "prediction", labels)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def score(predictions: pl.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Every metric on these rows.

    Averages over classes are over all `labels`; a ratio whose denominator is zero counts as zero.

    Args:
        predictions: Columns truth and prediction.
        labels: All labels.

    Returns:
        `AGGREGATES`, and for each label `f1/<label>`, `precision/<label>`, `recall/<label>`, `support/<label>`.
    """
    counts = confusion(predictions, labels).astype(np.float64)
    margins = _Margins(np.diag(counts)[None], counts.sum(1)[None], counts.sum(0)[None])
    return dict(zip(metric_names(labels), _metrics(margins)[0].tolist(), strict=True))


def intervals(
    predictions: pl.DataFrame, labels: Sequence[str], *, resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Every metric with its percentile bootstrap interval over rows.

    Args:
        predictions: Columns truth and prediction.
        labels: All labels.
        resamples: Resamples of the rows; memory grows with resamples times metrics, not with rows.
        confidence: Share of the resampled values between low and high.
        seed: Same seed, same interval, whatever the order of the rows.
    """
    points = score(predictions, labels)
    (truth, predicted), counts = _cells(predictions, ("truth", "prediction"), labels)
    drawn = np.concatenate(
        [_metrics(_margins(stack, truth, predicted, len(labels))) for stack in _resampled(counts, resamples, seed)]
    )
    low, high = _percentiles(drawn, confidence)
    return {
        name: Interval(value=value, low=float(low[i]), high=float(high[i]))
        for i, (name, value) in enumerate(points.items())
    }


def gain(
    new: pl.DataFrame,
    old: pl.DataFrame,
    labels: Sequence[str],
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Metric of `new` less that of `old` on the rows both have, with its paired percentile bootstrap interval.

    Args:
        new: Columns id, truth and prediction.
        old: The same of the other model.
        labels: All labels.
        metric: One of `metric_names(labels)`.
        resamples: Resamples of the common rows.
        confidence: Share of the resampled differences between low and high.
        seed: Same seed, same interval.

    Raises:
        DataError: No row in common, or the two disagree about what is true.
    """
    pairs = paired(new, old)
    column = metric_names(labels).index(metric)
    (truth, ours, theirs), counts = _cells(pairs, ("truth", "prediction", "prediction_old"), labels)

    def difference(stack: Floats) -> Floats:
        better, worse = (_metrics(_margins(stack, truth, side, len(labels)))[:, column] for side in (ours, theirs))
        return np.asarray(better - worse)

    low, high = _percentiles(
        np.concatenate([difference(stack) for stack in _resampled(counts, resamples, seed)]), confidence
    )
    return Interval(value=float(difference(counts[None].astype(np.float64))[0]), low=float(low), high=float(high))


def mcnemar(new: pl.DataFrame, old: pl.DataFrame) -> float:
    """Exact two-sided McNemar test of two models that are right equally often, on the rows both have.

    Right means that the prediction equals the truth, whatever the task.

    Args:
        new: Columns id, truth and prediction.
        old: The same of the other model.

    Returns:
        The p-value; 1 where the two are right and wrong on the same rows.
    """
    from scipy.stats import binomtest

    pairs = paired(new, old)
    right = (pairs["prediction"] == pairs["truth"]).to_numpy()
    old_right = (pairs["prediction_old"] == pairs["truth"]).to_numpy()
    gained, lost = int((right & ~old_right).sum()), int((old_right & ~right).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired(new: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
    """The rows both have: id, truth, prediction, and `prediction_old`.

    Raises:
        DataError: No row in common, or the two disagree about what is true.
    """
    pairs = new.select("id", "truth", "prediction").join(
        old.select("id", "truth", "prediction"), on="id", how="inner", suffix="_old", maintain_order="left"
    )
    if pairs.is_empty():
        raise DataError(
            Problem("id", None, "the two models have no row in common", "compare predictions of the same test rows")
        )
    disputed = pairs.filter(pairs["truth"] != pairs["truth_old"])
    if not disputed.is_empty():
        raise DataError(
            Problem(
                "truth", disputed["id"][0], f"{disputed.height} row(s) have another truth for each model",
                "predict the same version of the test rows with both",
            )
        )  # fmt: skip
    return pairs.drop("truth_old")


def metric_names(labels: Sequence[str]) -> list[str]:
    """Names of all metrics, in the order in which they are computed."""
    return [*AGGREGATES, *(f"{kind}/{label}" for kind in PER_CLASS for label in labels)]


def _metrics(margins: _Margins) -> Floats:
    """The one place where a metric is defined: `[resamples, metrics]`, in the order of `metric_names`."""
    hits, truth, predicted = margins.hits, margins.truth, margins.predicted
    rows, right = truth.sum(1), hits.sum(1)
    precision, recall = _ratio(hits, predicted), _ratio(hits, truth)
    f1 = _ratio(2 * hits, truth + predicted)
    accuracy = _ratio(right, rows)
    covariance = right * rows - (truth * predicted).sum(1)
    spread = (rows**2 - (predicted**2).sum(1)) * (rows**2 - (truth**2).sum(1))
    mcc = _ratio(covariance, np.sqrt(spread))
    # Every row has one label and one prediction, so that false positives and false negatives are equally many overall
    # and micro-averaged F1 is accuracy.
    aggregates = np.stack([accuracy, f1.mean(1), accuracy, precision.mean(1), recall.mean(1), mcc], axis=1)
    return np.concatenate([aggregates, f1, precision, recall, truth], axis=1)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _indices(predictions: pl.DataFrame, column: str, labels: Sequence[str]) -> Ints:
    import polars as pl

    places = {label: i for i, label in enumerate(labels)}
    found = predictions[column].replace_strict(places, default=None, return_dtype=pl.Int64)
    if found.null_count():
        unknown = predictions[column].filter(found.is_null())[0]
        raise DataError(
            Problem(
                column, unknown, f"is none of the labels {', '.join(labels)}", "predict and score with the same labels"
            )
        )
    return found.to_numpy()


def _cells(rows: pl.DataFrame, columns: Sequence[str], labels: Sequence[str]) -> tuple[tuple[Ints, ...], Ints]:
    """Non-empty cells, sorted: the label's index in each column, each `[cells]`, and how many rows a cell has."""
    if rows.is_empty():
        raise DataError(Problem("predictions", None, "there are no rows to measure", "give the split test rows"))
    shape = (len(labels),) * len(columns)
    codes = np.ravel_multi_index(tuple(_indices(rows, column, labels) for column in columns), shape)
    cells, counts = np.unique(codes, return_counts=True)
    return np.unravel_index(cells, shape), counts


def _resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Counts of resampled rows, `[chunk, cells]` at a time; the chunks' sizes do not change what is drawn."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK // len(counts))
    rows = int(counts.sum())
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        yield rng.multinomial(rows, counts / rows, size=size).astype(np.float64)


def _margins(stack: Floats, truth: Ints, predicted: Ints, size: int) -> _Margins:
    """Sums over cells: `[resamples, cells]` to three `[resamples, labels]`."""
    of_truth, of_predicted = np.eye(size)[truth], np.eye(size)[predicted]
    return _Margins(stack @ (of_truth * of_predicted), stack @ of_truth, stack @ of_predicted)


def _percentiles(drawn: Floats, confidence: float) -> Floats:
    tail = (1 - confidence) / 2
    return np.quantile(drawn, [tail, 1 - tail], axis=0)
