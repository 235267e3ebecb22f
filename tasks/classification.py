"""Measures of single-label classification: point values, bootstrap intervals, paired tests of two models.

What predictions are worth is computed from counts of (truth, prediction) cells, see `tasks.bootstrap`; what the
probabilities are worth, in `tasks.probabilities`.

Does not cover rows with several labels.

References:
    J. Gorodkin (2004), Comparing two K-category assignments by a K-category correlation coefficient (MCC).
    Q. McNemar (1947), Note on the sampling error of the difference between correlated proportions.
    B. Phipson, G. Smyth (2010), Permutation P-values Should Never Be Zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.errors import DataError, Problem
from schemas.records import Interval, Paired
from tasks import probabilities
from tasks.bootstrap import interval, percentiles, resampled

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats, Ints
    from tasks.probabilities import Codes

AGGREGATES = (
    "accuracy", "macro_f1", "micro_f1", "precision", "recall", "mcc", "balanced_accuracy", "weighted_f1",
)  # fmt: skip
PER_CLASS = ("f1", "precision", "recall", "support")
SHARES = ("accuracy", "micro_f1")
"""Metrics that are the share of right answers: McNemar's test fits them."""


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
    cells = codes(predictions, "truth", labels) * size + codes(predictions, "prediction", labels)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def codes(predictions: pl.DataFrame, column: str, labels: Sequence[str], others: str | None = None) -> Codes:
    """Index of each row's label in `labels`, int32; that of a value that `others` stands for is the next one.

    Raises:
        DataError: A value is none of the labels, and `others` is not given.
    """
    import polars as pl

    places = {label: i for i, label in enumerate(labels)}
    found = predictions[column].replace_strict(places, default=None, return_dtype=pl.Int32)
    if others is not None:
        found = found.fill_null(len(labels))
    if found.null_count():
        unknown = predictions[column].filter(found.is_null())[0]
        raise DataError(
            Problem(
                column, unknown, f"is none of the labels {', '.join(labels)}", "predict and score with the same labels"
            )
        )
    return found.to_numpy()


def forecast(predictions: pl.DataFrame, labels: Sequence[str]) -> probabilities.Forecast | None:
    """The probabilities and what came true, as arrays; none where there are no probabilities or no rows.

    Raises:
        DataError: A truth is none of the labels, or a row has another number of probabilities.
    """
    if "probabilities" not in predictions.columns or predictions.is_empty():
        return None
    return probabilities.Forecast(
        truth=codes(predictions, "truth", labels),
        right=(predictions["truth"] == predictions["prediction"]).to_numpy(),
        probabilities=probabilities.matrix(predictions, len(labels)),
    )


def score(predictions: pl.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Every metric on these rows.

    Averages over classes are over all `labels`; a ratio whose denominator is zero counts as zero. Balanced accuracy is
    the mean recall of the labels that some row has; weighted F1 weighs each label by its rows.

    Args:
        predictions: Columns truth and prediction, and probabilities where they are known.
        labels: All labels, in the order of the probabilities.

    Returns:
        `AGGREGATES`, for each label `f1/<label>`, `precision/<label>`, `recall/<label>`, `support/<label>`, and, where
        probabilities are known, `tasks.probabilities.score`.
    """
    counts = confusion(predictions, labels).astype(np.float64)
    margins = _Margins(np.diag(counts)[None], counts.sum(1)[None], counts.sum(0)[None])
    points = dict(zip(metric_names(labels), _metrics(margins, len(labels))[0].tolist(), strict=True))
    found = forecast(predictions, labels)
    return points if found is None else points | probabilities.score(found)


def intervals(
    predictions: pl.DataFrame,
    labels: Sequence[str],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    others: str | None = None,
) -> dict[str, Interval]:
    """Every metric with its percentile bootstrap interval over rows.

    Args:
        predictions: Columns truth and prediction, and probabilities where they are known.
        labels: All labels, in the order of the probabilities.
        resamples: Resamples of the rows; memory grows with resamples times metrics, not with resamples times rows.
        confidence: Share of the resampled values between low and high.
        seed: Same seed, same interval, whatever the order of the rows.
        others: What a prediction outside `labels` is taken for; see `paired_test`.

    Raises:
        DataError: There are no rows, or a label is unknown.
        ValueError: `others` is one of the labels.
    """
    _refuse_ambiguous(others, labels)
    size, classes = len(labels), len(labels) + (others is not None)
    (truth, predicted), counts = _cells(predictions, ("truth", "prediction"), labels, others)
    points = _metrics(_margins(counts[None].astype(np.float64), truth, predicted, classes), size)[0]
    drawn = np.concatenate(
        [_metrics(_margins(stack, truth, predicted, classes), size) for stack in resampled(counts, resamples, seed)]
    )
    low, high = percentiles(drawn, confidence)
    by_name = {
        name: Interval(value=float(points[i]), low=float(low[i]), high=float(high[i]))
        for i, name in enumerate(metric_names(labels))
    }
    found = forecast(predictions, labels)
    if found is None:
        return by_name
    return by_name | probabilities.intervals(found, resamples=resamples, confidence=confidence, seed=seed)


def paired_test(
    new: pl.DataFrame,
    old: pl.DataFrame,
    labels: Sequence[str],
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    others: str | None = None,
) -> Paired:
    """The gain of `new` over `old`, its standard error, and the p-value of the test that fits the metric.

    Shares of right answers are tested by McNemar's exact test. For other metrics, p is twice the share of resampled
    differences on the smaller side of zero, the measured one counted among them, so that it is never zero.

    Args:
        new: Columns id, truth and prediction.
        old: The same of the other model.
        labels: All labels.
        metric: One of `metric_names(labels)`.
        resamples: Resamples of the rows both have.
        confidence: Share of the resampled differences between low and high of the gain.
        seed: Same seed, same interval.
        others: What a prediction outside `labels` is taken for, as a model makes them that knows other labels: a wrong
            answer, and of no class that is averaged over. Default: it is an error.

    Raises:
        DataError: No row in common, the two disagree about what is true, or a label is unknown.
        ValueError: `others` is one of the labels.
    """
    pairs = paired(new, old)
    value, drawn = _differences(pairs, labels, metric, others, resamples=resamples, seed=seed)
    if metric in SHARES:
        p, test = mcnemar(pairs), "exact McNemar"
    else:
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p, test = min(1.0, 2 * (beyond + 1) / (resamples + 1)), "paired bootstrap"
    return Paired(gain=interval(value, drawn, confidence), se=float(drawn.std(ddof=1)), p=p, test=test)


def mcnemar(pairs: pl.DataFrame) -> float:
    """P-value of the exact two-sided McNemar test: two models are right equally often. See `paired` for the rows."""
    from scipy.stats import binomtest

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
    """Names of the metrics that two models are compared by, in the order in which they are computed."""
    return [*AGGREGATES, *(f"{kind}/{label}" for kind in PER_CLASS for label in labels)]


def _metrics(margins: _Margins, size: int) -> Floats:
    """The one place where a metric is defined: `[resamples, metrics]`, in the order of `metric_names`.

    Args:
        margins: Of `size` labels, or of one more that stands for all others.
        size: Labels that are averaged over.
    """
    hits, truth, predicted = margins.hits, margins.truth, margins.predicted
    rows, right = truth.sum(1), hits.sum(1)
    accuracy = _ratio(right, rows)
    covariance = right * rows - (truth * predicted).sum(1)
    spread = (rows**2 - (predicted**2).sum(1)) * (rows**2 - (truth**2).sum(1))
    mcc = _ratio(covariance, np.sqrt(spread))
    hits, truth, predicted = hits[:, :size], truth[:, :size], predicted[:, :size]
    precision, recall = _ratio(hits, predicted), _ratio(hits, truth)
    f1 = _ratio(2 * hits, truth + predicted)
    balanced, weighted = _ratio(recall.sum(1), (truth > 0).sum(1)), _ratio((f1 * truth).sum(1), rows)
    # Every row has one label and one prediction, so that false positives and false negatives are equally many overall
    # and micro-averaged F1 is accuracy.
    means = accuracy, f1.mean(1), accuracy, precision.mean(1), recall.mean(1), mcc, balanced, weighted
    return np.concatenate([np.stack(means, axis=1), f1, precision, recall, truth], axis=1)


def _ratio(numerator: Floats, denominator: Floats | Ints) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _cells(
    rows: pl.DataFrame, columns: Sequence[str], labels: Sequence[str], others: str | None = None
) -> tuple[tuple[Ints, ...], Ints]:
    """Non-empty cells, sorted: the label's index in each column, each `[cells]`, and how many rows a cell has."""
    if rows.is_empty():
        raise DataError(Problem("predictions", None, "there are no rows to measure", "give the split test rows"))
    shape = (len(labels) + (others is not None),) * len(columns)
    # Only a prediction may be another label: what is true is known.
    indices = [codes(rows, column, labels, None if column == "truth" else others) for column in columns]
    cells, counts = np.unique(np.ravel_multi_index(tuple(indices), shape), return_counts=True)
    return np.unravel_index(cells, shape), counts


def _margins(stack: Floats, truth: Ints, predicted: Ints, size: int) -> _Margins:
    """Sums over cells: `[resamples, cells]` to three `[resamples, labels]`."""
    of_truth, of_predicted = np.eye(size)[truth], np.eye(size)[predicted]
    return _Margins(stack @ (of_truth * of_predicted), stack @ of_truth, stack @ of_predicted)


def _refuse_ambiguous(others: str | None, labels: Sequence[str]) -> None:
    if others in labels:
        raise ValueError(f"others is {others!r}, which is one of the labels")


def _differences(
    pairs: pl.DataFrame, labels: Sequence[str], metric: str, others: str | None, *, resamples: int, seed: int
) -> tuple[float, Floats]:
    """Metric of the new model less that of the old one: on these rows, and on resampled ones, `[resamples]`."""
    _refuse_ambiguous(others, labels)
    size, column = len(labels), metric_names(labels).index(metric)
    (truth, ours, theirs), counts = _cells(pairs, ("truth", "prediction", "prediction_old"), labels, others)

    def difference(stack: Floats) -> Floats:
        margins = (_margins(stack, truth, side, size + (others is not None)) for side in (ours, theirs))
        better, worse = (_metrics(of_side, size)[:, column] for of_side in margins)
        return better - worse

    drawn = np.concatenate([difference(stack) for stack in resampled(counts, resamples, seed)])
    return float(difference(counts[None].astype(np.float64))[0]), drawn
