from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn import metrics

from tasks import label_sets

LABELS = ["a", "b", "c"]
HOW = {"resamples": 1_000, "confidence": 0.95, "seed": 0}


def frame(truth, prediction, **more):
    lists = pl.List(pl.String)
    columns = {"truth": pl.Series(truth, dtype=lists), "prediction": pl.Series(prediction, dtype=lists)}
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(truth))], **columns, **more})


def drawn(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    random = np.random.default_rng(seed)
    truth = random.random((rows, 3)) < [0.5, 0.2, 0.05]
    scores = np.clip(truth * 0.3 + random.random((rows, 3)) * 0.7, 0, 1).astype(np.float32)
    return truth, scores, pl.DataFrame(
        {
            "id": [str(i) for i in range(rows)],
            "truth": label_sets.sets(truth, LABELS),
            **label_sets.decided(scores, np.full(3, 0.5), LABELS),
            "scores": pl.Series(scores.tolist()),
        }
    )  # fmt: skip


def test_every_measure_is_that_of_scikit_learn():
    truth, scores, rows = drawn(400)
    found, predicted = label_sets.score(rows, LABELS), scores >= 0.5
    for average in ("macro", "micro", "weighted"):
        assert found[f"{average}_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average=average))
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found["precision"] == pytest.approx(metrics.precision_score(truth, predicted, average="macro"))
    assert found["recall/b"] == pytest.approx(metrics.recall_score(truth[:, 1], predicted[:, 1]))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["auprc"] == pytest.approx(metrics.average_precision_score(truth, scores))
    losses = [metrics.log_loss(truth[:, i], scores[:, i].astype(float)) for i in range(3)]
    assert found["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_measures_by_hand():
    rows = frame([["a", "b"], [], ["c"], ["a"]], [["a"], [], ["b"], ["a", "x"]])
    found = label_sets.score(rows, LABELS)
    # a: 2 of 2 found and true; b: 0 of 1, predicted once; c: missed. The unknown x is a wrong answer.
    assert (found["f1/a"], found["f1/b"], found["f1/c"]) == (1, 0, 0)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (4 + 4))
    assert found["subset_accuracy"] == 0.25
    assert found["support/a"] == 2
    assert label_sets.row_scores(rows).to_list() == pytest.approx([2 / 3, 1, 0, 2 / 3])


def test_intervals_hold_the_values_and_the_area_moves_as_resampled_rows_do():
    truth, scores, rows = drawn(500)
    found = label_sets.intervals(rows, LABELS, **HOW)
    points = label_sets.score(rows, LABELS)
    assert found.keys() == points.keys()
    assert all(interval.low <= points[name] <= interval.high for name, interval in found.items())
    random = np.random.default_rng(1)
    redrawn = [metrics.roc_auc_score(truth[d], scores[d]) for d in random.integers(0, 500, (400, 500))]
    width = np.diff(np.quantile(redrawn, [0.025, 0.975]))[0]
    assert found["auroc"].high - found["auroc"].low == pytest.approx(width, rel=0.2)


def test_the_threshold_is_the_cut_with_the_best_f1():
    scores = np.array([0.9, 0.7, 0.4, 0.3, 0.1])
    truth = np.array([True, True, True, False, False])
    assert label_sets.best_threshold(scores, truth) == pytest.approx(0.35)
    assert label_sets.best_threshold(scores, ~truth) == pytest.approx(0.05)  # all of them: F1 4 / 7
    assert label_sets.best_threshold(scores, truth & False) == 0.5


def test_a_rare_label_takes_the_threshold_of_all_together():
    truth, scores, rows = drawn(120)
    assert truth[:, 2].sum() < label_sets.FEW_ROWS <= truth[:, 1].sum()
    fitted = label_sets.fit(rows, LABELS)
    assert fitted["rare"] == ["c"]
    assert fitted["thresholds"]["c"] == label_sets.best_threshold(scores.ravel(), truth.ravel())
    assert fitted["thresholds"]["a"] == label_sets.best_threshold(scores[:, 0], truth[:, 0])
    assert fitted["after"]["macro_f1"] >= fitted["before"]["macro_f1"]
    calibrated = label_sets.calibrated(rows, fitted)
    expected = scores.astype(float) >= list(fitted["thresholds"].values())
    assert calibrated["prediction"].to_list() == label_sets.sets(expected, LABELS).to_list()
    assert "Fewer than 10 validation rows have c" in " ".join(label_sets.told(fitted))


def test_without_scores_there_is_nothing_to_fit():
    rows = frame([["a"]], [["b"]])
    assert label_sets.fit(rows, LABELS) == {}
    assert label_sets.calibrated(rows, {}).equals(rows)
    assert label_sets.told({}) == []
