"""Several labels for each row: thresholds fitted on validation, point values, bootstrap intervals, paired tests.

What predicted sets are worth follows from sums over rows (`tasks.row_metrics`); what the scores are worth, label by
label, from ranks and likelihoods (`tasks.probabilities`).

References:
    Z. Lipton, C. Elkan, B. Naryanaswamy (2014), Optimal Thresholding of Classifiers to Maximize F1 Measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.records import Interval
from tasks import row_metrics
from tasks.bootstrap import interval, resampled_means
from tasks.probabilities import TINY, auprc, auroc, rank
from tasks.row_metrics import ratio

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats, Ints
    from tasks.probabilities import Booleans, Ranking, Singles

HALF = 0.5
"""The threshold of a label for which none was fitted."""
FEW_ROWS = 10
"""A label of fewer validation rows takes the threshold that fits all labels together: its own would be chance."""
PER_LABEL = ("f1", "precision", "recall", "support")


def marks(rows: pl.Series, labels: Sequence[str]) -> tuple[Booleans, Ints]:
    """Which labels each row has, `[rows, labels]`, and how many others, `[rows]`.

    Args:
        rows: Lists of labels.
        labels: In the order of the columns.
    """
    import polars as pl

    each = pl.DataFrame({"label": rows}).with_row_index("row").explode("label").drop_nulls("label")
    places = {label: place for place, label in enumerate(labels)}
    codes = each["label"].cast(pl.String).replace_strict(places, default=len(labels), return_dtype=pl.Int32)
    counts = np.zeros((len(rows), len(labels) + 1), np.int64)
    np.add.at(counts, (each["row"].to_numpy(), codes.to_numpy()), 1)
    return counts[:, :-1] > 0, counts[:, -1]


def sets(marked: Booleans, labels: Sequence[str]) -> pl.Series:
    """The labels of each row as lists, in the order of `labels`."""
    import polars as pl

    names = np.array(labels, dtype=object)
    return pl.Series([names[row].tolist() for row in marked], dtype=pl.List(pl.String))


def decided(scores: Floats | Singles, thresholds: Floats, labels: Sequence[str]) -> dict[str, pl.Series]:
    """`prediction`, the labels whose score reaches the threshold, and `margin`, how near the nearest one is to it.

    Args:
        scores: `[rows, labels]`.
        thresholds: `[labels]`.
        labels: Names.
    """
    import polars as pl

    wide = scores.astype(np.float64)
    return {
        "prediction": sets(wide >= thresholds, labels),
        "margin": pl.Series(np.abs(wide - thresholds).min(1, initial=1.0)),
    }


def matrix(predictions: pl.DataFrame, labels: int) -> Singles:
    """The column `scores` as `[rows, labels]`."""
    import polars as pl

    flat = predictions["scores"].explode(empty_as_null=False).cast(pl.Float32)
    return flat.to_numpy().reshape(-1, labels)


# Thresholds.


def fit(validation: pl.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """The threshold of each label that has the best F1 on these rows; rare labels share one.

    Args:
        validation: Columns truth, prediction and scores, as the model makes them.
        labels: In the order of the scores.

    Returns:
        `thresholds`: label → threshold; `rare`: labels that share the threshold of all labels together; `before` and
        `after`: macro F1 of these rows. Empty where there are no scores.
    """
    if "scores" not in validation.columns or validation.is_empty():
        return {}
    truth, _ = marks(validation["truth"], labels)
    scores = matrix(validation, len(labels))
    thresholds = thresholds_of(scores, truth)
    fitted = {"thresholds": dict(zip(labels, thresholds.tolist(), strict=True))}
    return {
        **fitted,
        "rare": [label for label, rows in zip(labels, truth.sum(0), strict=True) if rows < FEW_ROWS],
        "before": {"macro_f1": score(validation, labels)["macro_f1"]},
        "after": {"macro_f1": score(calibrated(validation, fitted), labels)["macro_f1"]},
    }


def thresholds_of(scores: Floats | Singles, truth: Booleans) -> Floats:
    """`[labels]`: of each label the threshold with the best F1; see `fit`.

    Args:
        scores: `[rows, labels]`.
        truth: Which labels are true.
    """
    shared = best_threshold(scores.ravel(), truth.ravel())
    own = [
        best_threshold(of_label, true) if true.sum() >= FEW_ROWS else shared
        for of_label, true in zip(scores.T, truth.T, strict=True)
    ]
    return np.array(own)


def best_threshold(scores: Floats | Singles, truth: Booleans) -> float:
    """Midway between the two scores that the cut with the best F1 lies between, the higher of equals; 0.5 without one.

    Args:
        scores: `[rows]`.
        truth: Whether the label is true.
    """
    if not truth.any():
        return HALF
    found = rank(scores.astype(np.float32), truth)
    f1 = 2 * found.hits / (found.hits + found.misses + truth.sum())
    best = int(f1.argmax())
    distinct = np.unique(scores.astype(np.float32))[::-1].astype(np.float64)
    below = distinct[best + 1] if best + 1 < len(distinct) else 0.0
    return float((distinct[best] + below) / 2)


def calibrated(predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
    """The predictions by the fitted thresholds; those given where there are none."""
    if not calibration or "scores" not in predictions.columns or predictions.is_empty():
        return predictions
    labels = list(calibration["thresholds"])
    thresholds = np.array([*calibration["thresholds"].values()])
    return predictions.with_columns(**decided(matrix(predictions, len(labels)), thresholds, labels))


def told(calibration: Mapping[str, Any]) -> list[str]:
    """Sentences on the thresholds."""
    if not calibration:
        return []
    each = ", ".join(f"{label} {value:.2f}" for label, value in calibration["thresholds"].items())
    sentences = [
        f"A label is predicted from a score on that was fitted on validation for the best F1: {each}. There it took "
        f"macro F1 from {calibration['before']['macro_f1']:.4f} to {calibration['after']['macro_f1']:.4f}."
    ]
    if calibration["rare"]:
        rare = ", ".join(calibration["rare"])
        sentences.append(
            f"Fewer than {FEW_ROWS} validation rows have {rare}: the score is that of all labels together."
        )
    return sentences


# Measures.


def score(predictions: pl.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Every measure of these rows.

    Macro averages are over all `labels`, weighted ones by their rows; `precision` and `recall` are macro averages. A
    ratio whose denominator is zero counts as zero. A predicted label that is none of `labels` is a wrong one.

    Args:
        predictions: Columns truth and prediction, lists of labels, and scores where they are known.
        labels: All labels, in the order of the scores.

    Returns:
        `macro_f1`, `micro_f1`, `weighted_f1`, `subset_accuracy` (rows whose whole set is right), `precision`, `recall`;
        for each label `f1/<label>` and so on; with scores `auroc` and `auprc`, averaged over the labels that some rows
        have and others do not, and `log_loss`, the mean over rows and labels, in nats.
    """
    sums = row_metrics.score(numbers(predictions, labels), lambda total: metrics_of(total, labels))
    areas, _, losses = _of_scores(predictions, labels)
    return sums | areas | ({"log_loss": float(losses.mean())} if len(losses) else {})


def intervals(
    predictions: pl.DataFrame, labels: Sequence[str], *, resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Every measure with its percentile bootstrap interval over rows; areas as in `tasks.probabilities.intervals`."""
    drawing: dict[str, Any] = {"resamples": resamples, "seed": seed}
    found = row_metrics.intervals(
        numbers(predictions, labels), lambda total: metrics_of(total, labels), confidence=confidence, **drawing
    )
    areas, influences, losses = _of_scores(predictions, labels)
    for name, value in areas.items():
        drawn = np.clip(value + resampled_means(influences[name], **drawing), 0, 1)
        found[name] = interval(value, drawn, confidence)
    if len(losses):
        found["log_loss"] = interval(float(losses.mean()), resampled_means(losses, **drawing), confidence)
    return found


def numbers(predictions: pl.DataFrame, labels: Sequence[str]) -> Floats:
    """Of each row 1, whether the set is right, predicted labels that are none, hits, predicted and true ones.

    `[rows, 3 + 3 labels]`.
    """
    truth, _ = marks(predictions["truth"], labels)
    found, others = marks(predictions["prediction"], labels)
    exact = (truth == found).all(1) & (others == 0)
    columns = [np.ones(len(truth)), exact, others, *(truth & found).T, *found.T, *truth.T]
    return np.stack(columns, axis=1).astype(np.float64)


def metrics_of(sums: Floats, labels: Sequence[str]) -> dict[str, Floats]:
    """Measures, `[…]`, of the numbers of several rows added up."""
    size = len(labels)
    rows, exact, others = (sums[..., place] for place in range(3))
    hits, found, true = (sums[..., 3 + place * size : 3 + (place + 1) * size] for place in range(3))
    f1, precision, recall = ratio(2 * hits, found + true), ratio(hits, found), ratio(hits, true)
    each = dict(zip(PER_LABEL, (f1, precision, recall, true), strict=True))
    return {
        "macro_f1": f1.mean(-1),
        "micro_f1": ratio(2 * hits.sum(-1), found.sum(-1) + others + true.sum(-1)),
        "weighted_f1": ratio((f1 * true).sum(-1), true.sum(-1)),
        "subset_accuracy": exact / rows,
        "precision": precision.mean(-1),
        "recall": recall.mean(-1),
        **{f"{kind}/{label}": of[..., place] for kind, of in each.items() for place, label in enumerate(labels)},
    }


def row_scores(predictions: pl.DataFrame) -> pl.Series:
    """F1 of each row's set: twice the labels in both by the labels of either; 1 where both are empty."""
    import polars as pl

    both = pl.col("truth").list.set_intersection("prediction").list.len()
    all_of_them = pl.col("truth").list.len() + pl.col("prediction").list.len()
    score = pl.when(all_of_them == 0).then(1.0).otherwise(2 * both / all_of_them)
    return predictions.select(score.cast(pl.Float64).alias("score")).to_series()


def rankings(predictions: pl.DataFrame, labels: Sequence[str]) -> list[tuple[str, Ranking, Booleans]]:
    """The rows by the score of each label that some have and others do not: label, ranking, which rows have it."""
    if "scores" not in predictions.columns or predictions.is_empty():
        return []
    truth, _ = marks(predictions["truth"], labels)
    scores = matrix(predictions, len(labels))
    return [
        (label, rank(scores[:, place], truth[:, place]), truth[:, place])
        for place, label in enumerate(labels)
        if 0 < truth[:, place].sum() < len(truth)
    ]


def _of_scores(predictions: pl.DataFrame, labels: Sequence[str]) -> tuple[dict[str, float], dict[str, Floats], Floats]:
    """Macro-averaged areas, each row's influence on them, and each row's log loss; empty where there are no scores."""
    if "scores" not in predictions.columns or predictions.is_empty():
        return {}, {}, np.empty(0)
    truth, _ = marks(predictions["truth"], labels)
    scores = matrix(predictions, len(labels)).astype(np.float64)
    of_truth = np.where(truth, scores, 1 - scores)
    losses = -np.log(np.maximum(of_truth, TINY)).mean(1)
    found = rankings(predictions, labels)
    areas: dict[str, float] = {}
    influences: dict[str, Floats] = {}
    for name, measure in (("auroc", auroc), ("auprc", auprc)) if found else ():
        measured = [(measure(ranking), ranking, true) for _, ranking, true in found]
        areas[name] = float(np.mean([area.value for area, _, _ in measured]))
        moved = [np.where(true, a.of_hits[ranking.place], a.of_misses[ranking.place]) for a, ranking, true in measured]
        influences[name] = np.mean(moved, axis=0)
    return areas, influences, losses
