from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from schemas.errors import DataError
from schemas.records import Interval
from tasks import bootstrap, classification
from tasks.families.text_classification import TextClassificationTask

LABELS = ["negative", "neutral", "positive"]
FEW = {"resamples": 400, "confidence": 0.95, "seed": 7}


def gain(*predictions: Any, **options: Any) -> Interval:
    return classification.paired_test(*predictions, **options).gain


def frame(truth: list[str], prediction: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(truth))], "truth": truth, "prediction": prediction})


def from_confusion(counts: list[list[int]], labels: list[str] = LABELS) -> pl.DataFrame:
    pairs = [(labels[t], labels[p]) for t, row in enumerate(counts) for p, n in enumerate(row) for _ in range(n)]
    return frame([t for t, _ in pairs], [p for _, p in pairs])


def random_predictions(rows: int, labels: list[str], seed: int, accuracy: float = 0.6) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(labels), rows, p=np.arange(1, len(labels) + 1) / np.arange(1, len(labels) + 1).sum())
    prediction = np.where(rng.random(rows) < accuracy, truth, rng.integers(0, len(labels), rows))
    return frame([labels[i] for i in truth], [labels[i] for i in prediction])


def test_its_names_are_those_the_recipe_may_ask_for() -> None:
    scores = classification.score(from_confusion([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), LABELS)
    assert {name for name in scores if "/" not in name} == set(TextClassificationTask.metrics)
    with_probabilities = random_predictions(50, LABELS, seed=1).with_columns(probabilities=pl.lit([0.5, 0.25, 0.25]))
    scores = classification.score(with_probabilities, LABELS)
    asked = {*TextClassificationTask.metrics, *TextClassificationTask.measures}
    assert {name for name in scores if "/" not in name} == asked
    assert classification.intervals(with_probabilities, LABELS, **FEW).keys() == scores.keys()


def test_a_confusion_matrix_worked_by_hand() -> None:
    # 10 rows. negative: 3 of 4 found, 1 called neutral; neutral: 2 of 3 found, 1 called negative; positive: 1 of 3
    # found, 2 called negative. Predicted: negative 6, neutral 3, positive 1.
    scores = classification.score(from_confusion([[3, 1, 0], [1, 2, 0], [2, 0, 1]]), LABELS)
    assert scores["accuracy"] == pytest.approx(6 / 10)
    assert scores["micro_f1"] == pytest.approx(6 / 10)
    assert scores["precision/negative"] == pytest.approx(3 / 6)
    assert scores["recall/negative"] == pytest.approx(3 / 4)
    assert scores["f1/negative"] == pytest.approx(2 * 3 / (4 + 6))
    assert scores["f1/neutral"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["f1/positive"] == pytest.approx(2 * 1 / (3 + 1))
    assert scores["macro_f1"] == pytest.approx((6 / 10 + 4 / 6 + 2 / 4) / 3)
    assert scores["precision"] == pytest.approx((3 / 6 + 2 / 3 + 1 / 1) / 3)
    assert scores["recall"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert scores["weighted_f1"] == pytest.approx((4 * 6 / 10 + 3 * 4 / 6 + 3 * 2 / 4) / 10)
    assert [scores[f"support/{label}"] for label in LABELS] == [4, 3, 3]
    # Gorodkin: (c·s - Σ p·t) / √((s² - Σ p²)(s² - Σ t²)), c = 6, s = 10, p = (6, 3, 1), t = (4, 3, 3).
    assert scores["mcc"] == pytest.approx((60 - (24 + 9 + 3)) / ((100 - 46) * (100 - 34)) ** 0.5)


def test_what_cannot_be_divided_is_zero() -> None:
    scores = classification.score(frame(["negative", "neutral"], ["negative", "negative"]), LABELS)
    assert scores["precision/neutral"] == scores["recall/neutral"] == scores["f1/neutral"] == 0
    assert scores["precision/positive"] == scores["recall/positive"] == scores["f1/positive"] == 0
    assert scores["macro_f1"] == pytest.approx((2 / 3) / 3)
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["balanced_accuracy"] == pytest.approx(1 / 2)  # no row is positive
    assert classification.score(frame(["neutral"] * 3, ["neutral"] * 3), LABELS)["mcc"] == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_every_metric_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    labels = list("abcd")
    truth, prediction = [t for t, _ in pairs], [p for _, p in pairs]
    ours = classification.score(frame(truth, prediction), labels)
    options = {"labels": labels, "zero_division": 0}
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(truth, prediction))
    assert ours["micro_f1"] == pytest.approx(sk.f1_score(truth, prediction, average="micro", **options))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(truth, prediction, average="macro", **options))
    assert ours["precision"] == pytest.approx(sk.precision_score(truth, prediction, average="macro", **options))
    assert ours["recall"] == pytest.approx(sk.recall_score(truth, prediction, average="macro", **options))
    assert ours["weighted_f1"] == pytest.approx(sk.f1_score(truth, prediction, average="weighted", **options))
    with warnings.catch_warnings():  # they want to be told the labels, and cannot be
        warnings.simplefilter("ignore", UserWarning)
        assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, prediction))
        assert ours["mcc"] == pytest.approx(sk.matthews_corrcoef(truth, prediction), abs=1e-9)
    by_class = sk.precision_recall_fscore_support(truth, prediction, **options)
    for kind, values in zip(("precision", "recall", "f1", "support"), by_class, strict=True):
        assert [ours[f"{kind}/{label}"] for label in labels] == pytest.approx(values.tolist())


def test_intervals_agree_with_resampling_the_rows_themselves() -> None:
    predictions = random_predictions(300, LABELS, seed=1)
    resamples = 3000
    found = classification.intervals(predictions, LABELS, resamples=resamples, confidence=0.9, seed=0)
    rng = np.random.default_rng(5)
    drawn = [classification.score(predictions[rng.integers(0, 300, 300).tolist()], LABELS) for _ in range(resamples)]
    for name in ("macro_f1", "accuracy", "mcc", "recall/neutral", "precision", "f1/positive", "support/negative"):
        low, high = np.quantile([scores[name] for scores in drawn], [0.05, 0.95])
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.07 * width), name
        assert found[name].high == pytest.approx(high, abs=0.07 * width), name


def test_intervals_agree_with_scipy() -> None:
    predictions = random_predictions(400, LABELS, seed=2)
    right = (predictions["truth"] == predictions["prediction"]).to_numpy().astype(float)
    theirs = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    ours = classification.intervals(predictions, LABELS, resamples=9999, confidence=0.95, seed=0)["accuracy"]
    assert ours.value == pytest.approx(right.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_an_interval_holds_its_value_and_narrows_with_more_rows() -> None:
    counts = [[30, 5, 5], [5, 20, 5], [4, 6, 20]]
    few = classification.intervals(from_confusion(counts), LABELS, **FEW)["macro_f1"]
    many = classification.intervals(from_confusion([[100 * n for n in row] for row in counts]), LABELS, **FEW)[
        "macro_f1"
    ]
    assert few.low < few.value < few.high
    assert many.value == pytest.approx(few.value)
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 10, rel=0.25)


def test_the_same_seed_gives_the_same_interval_in_any_order_of_rows_and_any_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictions = random_predictions(200, LABELS, seed=3)
    first = classification.intervals(predictions, LABELS, **FEW)
    assert classification.intervals(predictions.reverse(), LABELS, **FEW) == first
    assert classification.intervals(predictions, LABELS, **FEW | {"seed": 8}) != first
    monkeypatch.setattr(bootstrap, "CHUNK", 50)
    assert classification.intervals(predictions, LABELS, **FEW) == first


def test_many_labels_stay_in_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"intent {i}" for i in range(150)]
    predictions = random_predictions(3000, labels, seed=4)
    sizes = []
    original = classification._margins
    monkeypatch.setattr(bootstrap, "CHUNK", 100_000)
    monkeypatch.setattr(
        classification, "_margins", lambda stack, *rest: (sizes.append(stack.size), original(stack, *rest))[1]
    )
    found = classification.intervals(predictions, labels, resamples=300, confidence=0.95, seed=0)
    assert len(sizes) > 1
    assert max(sizes) <= 100_000
    assert found["macro_f1"].low < found["macro_f1"].high


def test_the_gain_over_identical_predictions_is_exactly_zero() -> None:
    predictions = random_predictions(120, LABELS, seed=5)
    for metric in TextClassificationTask.metrics:
        found = gain(predictions, predictions.reverse(), LABELS, metric, **FEW)
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_gain_agrees_with_resampling_the_pairs_themselves() -> None:
    old = random_predictions(250, LABELS, seed=6, accuracy=0.5)
    rng = np.random.default_rng(6)
    better = [t if rng.random() < 0.4 else p for t, p in old.select("truth", "prediction").iter_rows()]
    new = old.with_columns(pl.Series("prediction", better))
    resamples = 1500
    found = gain(new, old, LABELS, "macro_f1", resamples=resamples, confidence=0.9, seed=0)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(0, 250, 250).tolist()
        drawn.append(
            classification.score(new[rows], LABELS)["macro_f1"] - classification.score(old[rows], LABELS)["macro_f1"]
        )
    low, high = np.quantile(drawn, [0.05, 0.95])
    assert found.value == pytest.approx(
        classification.score(new, LABELS)["macro_f1"] - classification.score(old, LABELS)["macro_f1"]
    )
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_pairing_tells_more_than_two_intervals_do() -> None:
    old = random_predictions(400, LABELS, seed=8, accuracy=0.5)
    fixed = [t if i % 10 == 0 else p for i, (t, p) in enumerate(old.select("truth", "prediction").iter_rows())]
    new = old.with_columns(pl.Series("prediction", fixed))
    alone_new, alone_old = (classification.intervals(side, LABELS, **FEW)["accuracy"] for side in (new, old))
    assert alone_new.low < alone_old.high
    assert gain(new, old, LABELS, "accuracy", **FEW).low > 0


def test_the_gain_is_measured_on_the_rows_both_have() -> None:
    truth = ["negative", "neutral", "positive", "negative"]
    new = frame(truth, truth)
    old = frame(truth, ["negative", "negative", "positive", "neutral"])[[2, 1, 0]]
    assert gain(new, old, LABELS, "accuracy", **FEW).value == pytest.approx(1 / 3)


def test_nothing_in_common_cannot_be_compared() -> None:
    one = frame(["negative"], ["negative"])
    with pytest.raises(DataError, match="no row in common"):
        gain(one, one.with_columns(id=pl.lit("other")), LABELS, "accuracy", **FEW)


def test_two_truths_of_one_row_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="another truth"):
        gain(frame(["negative"], ["negative"]), frame(["neutral"], ["negative"]), LABELS, "accuracy", **FEW)


def test_a_label_nobody_knows_is_named() -> None:
    with pytest.raises(DataError, match=r"prediction = 'angry': is none of the labels negative, neutral, positive"):
        classification.score(frame(["negative"], ["angry"]), LABELS)


def test_an_answer_outside_the_labels_is_a_wrong_one_and_no_class_of_its_own() -> None:
    truth = ["negative", "neutral", "positive", "negative", "positive"]
    answers = ["negative", "angry", "positive", "", "neutral"]
    found = classification.intervals(frame(truth, answers), LABELS, **FEW, others="(another)")
    expected = sk.f1_score(truth, answers, labels=LABELS, average="macro", zero_division=0)
    assert found["accuracy"].value == pytest.approx(2 / 5)
    assert found["macro_f1"].value == pytest.approx(expected)
    with pytest.raises(DataError, match="prediction = 'angry'"):
        classification.intervals(frame(truth, answers), LABELS, **FEW)
    with pytest.raises(ValueError, match="one of the labels"):
        classification.intervals(frame(truth, answers), LABELS, **FEW, others="neutral")


def test_no_rows_have_no_interval() -> None:
    with pytest.raises(DataError, match="no rows to measure"):
        classification.intervals(frame(["negative"], ["negative"]).clear(), LABELS, **FEW)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (3, 0, 2 * 0.5**3), (2, 2, 1.0), (5, 1, 2 * (1 + 6) * 0.5**6)],
)
def test_mcnemar_counts_only_rows_where_one_of_the_two_is_right(gained: int, lost: int, p: float) -> None:
    truth = ["positive"] * (gained + lost + 4)
    both = ["positive"] * 2 + ["negative"] * 2
    new = frame(truth, ["positive"] * gained + ["negative"] * lost + both)
    old = frame(truth, ["negative"] * gained + ["positive"] * lost + both)
    assert classification.mcnemar(classification.paired(new, old)) == pytest.approx(p)


def test_mcnemar_fits_shares_of_right_answers() -> None:
    old = random_predictions(300, LABELS, seed=9, accuracy=0.5)
    new = random_predictions(300, LABELS, seed=9, accuracy=0.6)
    for metric in ("accuracy", "micro_f1"):
        found = classification.paired_test(new, old, LABELS, metric, **FEW)
        assert (found.p, found.test) == (classification.mcnemar(classification.paired(new, old)), "exact McNemar")


def test_other_metrics_are_tested_by_the_paired_bootstrap() -> None:
    old = random_predictions(250, LABELS, seed=10, accuracy=0.5)
    new = random_predictions(250, LABELS, seed=10, accuracy=0.58)
    found = classification.paired_test(new, old, LABELS, "macro_f1", resamples=4000, confidence=0.9, seed=0)
    rng = np.random.default_rng(1)
    drawn = np.array(
        [
            classification.score(new[rows], LABELS)["macro_f1"] - classification.score(old[rows], LABELS)["macro_f1"]
            for rows in (rng.integers(0, 250, 250).tolist() for _ in range(1500))
        ]
    )
    assert found.test == "paired bootstrap"
    assert found.se == pytest.approx(drawn.std(), rel=0.08)
    assert found.p == pytest.approx(2 * min((drawn <= 0).mean(), (drawn >= 0).mean()), abs=0.03)
    back = classification.paired_test(old, new, LABELS, "macro_f1", resamples=4000, confidence=0.9, seed=0)
    assert (back.gain.value, back.p) == pytest.approx((-found.gain.value, found.p), abs=0.02)


def test_a_bootstrapped_chance_is_never_zero_and_one_for_the_same_predictions() -> None:
    truth = LABELS * 40
    perfect, wrong = frame(truth, truth), frame(truth, truth[1:] + truth[:1])
    assert classification.paired_test(perfect, wrong, LABELS, "macro_f1", **FEW).p == pytest.approx(2 / 401)
    same = classification.paired_test(wrong, wrong, LABELS, "macro_f1", **FEW)
    assert (same.p, same.se) == (1, 0)


def test_chances_of_equally_good_models_are_evenly_spread() -> None:
    found = []
    for seed in range(200):
        one, two = (random_predictions(300, LABELS, seed=seed), random_predictions(300, LABELS, seed=seed + 1000))
        two = one.with_columns(
            prediction=pl.when(two["truth"] == two["prediction"]).then("truth").otherwise("prediction")
        )
        three = random_predictions(300, LABELS, seed=seed + 2000)
        one = one.with_columns(
            prediction=pl.when(three["truth"] == three["prediction"]).then("truth").otherwise("prediction")
        )
        found.append(classification.paired_test(two, one, LABELS, "macro_f1", **FEW).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_label_that_only_the_other_model_knows_is_wrong_and_of_no_class() -> None:
    # negative 4, neutral 2. The old model calls two negatives "angry": found 2 of 4 and 2 of 2, none called wrongly.
    truth = ["negative"] * 4 + ["neutral"] * 2
    new = frame(truth, truth)
    old = frame(truth, ["angry"] * 2 + ["negative"] * 2 + ["neutral"] * 2)
    labels = LABELS[:2]
    with pytest.raises(DataError, match="angry"):
        gain(new, old, labels, "accuracy", **FEW)
    with pytest.raises(ValueError, match="one of the labels"):
        gain(new, old, labels, "accuracy", **FEW, others="neutral")

    def gained(metric: str) -> float:
        return gain(new, old, labels, metric, **FEW, others="another").value

    assert gained("accuracy") == pytest.approx(2 / 6)
    assert gained("macro_f1") == pytest.approx(1 - (2 * 2 / (4 + 2) + 1) / 2)
    assert gained("precision") == pytest.approx(0)
    assert gained("balanced_accuracy") == pytest.approx(1 - (2 / 4 + 1) / 2)
    with_angry = sk.matthews_corrcoef(old["truth"], old["prediction"])
    assert gained("mcc") == pytest.approx(1 - with_angry)
    found = classification.paired_test(old, new, labels, "accuracy", **FEW, others="another")
    assert (found.gain.value, found.p) == pytest.approx((-2 / 6, 2 * 0.5**2))


def test_what_is_true_is_never_another_label() -> None:
    angry = frame(["angry"], ["angry"])
    with pytest.raises(DataError, match="truth = 'angry'"):
        gain(angry, angry, LABELS, "accuracy", **FEW, others="another")


def test_probabilities_belong_to_the_labels() -> None:
    rows = random_predictions(5, LABELS, seed=1).with_columns(probabilities=pl.lit([0.5, 0.5]))
    with pytest.raises(DataError, match="other than 3 probabilities"):
        classification.score(rows, LABELS)
