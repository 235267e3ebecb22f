from __future__ import annotations

import random
import warnings

import numpy as np
import polars as pl
import pytest
from seqeval import metrics as seqeval
from sklearn import metrics as sklearn

from tasks import entity_metrics, row_metrics

TYPES = ["X", "Y"]


def frame(pairs):
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(pairs))],
            "truth": [truth.split() for truth, _ in pairs],
            "prediction": pl.Series([prediction.split() for _, prediction in pairs], dtype=pl.List(pl.String)),
        }
    )


def score(pairs, types=TYPES, scheme="bio"):
    numbers = entity_metrics.numbers(frame(pairs), types, scheme)
    return row_metrics.score(numbers, lambda sums: entity_metrics.metrics_of(sums, types))


def test_a_case_by_hand():
    # X: one of two found, one predicted too long; Y: found, and once more where there is none.
    found = score([("B-X I-X O B-X", "B-X I-X I-X B-X"), ("O B-Y O", "B-Y B-Y O")])
    assert found["precision/X"] == found["recall/X"] == found["f1/X"] == 1 / 2
    assert (found["precision/Y"], found["recall/Y"], found["f1/Y"]) == (1 / 2, 1, pytest.approx(2 / 3))
    assert (found["precision"], found["recall"], found["f1"]) == (2 / 4, 2 / 3, pytest.approx(4 / 7))
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["accuracy"] == 5 / 7
    assert (found["support/X"], found["support/Y"]) == (2, 1)


def test_a_type_that_nobody_has_is_no_part_of_the_mean():
    assert score([("B-X", "B-X")])["macro_f1"] == 1.0
    assert score([("O", "O")])["f1"] == 0.0


def test_a_type_that_today_has_not_is_predicted_wrongly():
    found = score([("B-X O", "B-X B-OLD")])
    assert (found["precision"], found["recall"]) == (1 / 2, 1)


def test_a_word_without_an_answer_counts_as_outside():
    found = score([("B-X O O", "B-X"), ("O B-Y", "")])
    assert (found["recall"], found["accuracy"]) == (1 / 2, 4 / 5)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_metrics_are_those_of_seqeval(prefixes):
    draw = random.Random(1)
    tags = ["O", "O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in TYPES)]
    truth = [draw.choices(tags, k=draw.randint(1, 12)) for _ in range(200)]
    prediction = [[tag if draw.random() < 0.7 else draw.choice(tags) for tag in row] for row in truth]
    found = score([(" ".join(a), " ".join(b)) for a, b in zip(truth, prediction, strict=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = seqeval.classification_report(truth, prediction, output_dict=True)
    for kind in TYPES:
        assert found[f"f1/{kind}"] == pytest.approx(told[kind]["f1-score"])
        assert found[f"support/{kind}"] == told[kind]["support"]
    for name, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert found[name] == pytest.approx(told["micro avg"][theirs])
    assert found["macro_f1"] == pytest.approx(told["macro avg"]["f1-score"])
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, prediction))


def test_without_a_scheme_words_are_measured_as_scikit_learn_does():
    draw = random.Random(2)
    tags = ["NN", "VB", "O"]
    truth = [draw.choices(tags, k=5) for _ in range(50)]
    prediction = [[tag if draw.random() < 0.6 else draw.choice(tags) for tag in row] for row in truth]
    found = score([(" ".join(a), " ".join(b)) for a, b in zip(truth, prediction, strict=True)], tags, "none")
    flat = np.concatenate(truth), np.concatenate(prediction)
    assert found["accuracy"] == found["f1"] == pytest.approx(sklearn.accuracy_score(*flat))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(*flat, average="macro"))


def test_a_row_is_worth_the_f1_of_its_entities():
    rows = frame([("B-X O B-Y", "B-X O O"), ("O O", "O O"), ("O", "B-X"), ("B-X", "B-X")])
    scores = entity_metrics.row_scores(entity_metrics.numbers(rows, TYPES, "bio"))
    assert scores.tolist() == pytest.approx([2 / 3, 1, 0, 1])
