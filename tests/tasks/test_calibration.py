from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import optimize, special, stats

from tasks import calibration, classification
from tasks.families.text_classification import TextClassification

LABELS = ["negative", "neutral", "positive"]
META = {"labels": LABELS}


def frame(truth: list[str], rows: Any, labels: list[str] = LABELS) -> pl.DataFrame:
    spread = np.asarray(rows, np.float32)
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(truth))],
            "truth": truth,
            "prediction": [labels[i] for i in spread.argmax(1)],
            "probabilities": pl.Series(spread).arr.to_list(),
        }
    )


def sure_by(factor: float, rows: int, seed: int = 0) -> pl.DataFrame:
    """Predictions whose logits are `factor` times what they should be."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(rows, 3))
    truth = [LABELS[rng.choice(3, p=p)] for p in special.softmax(logits, axis=1)]
    return frame(truth, special.softmax(factor * logits, axis=1))


def fit(rows: pl.DataFrame, labels: list[str] = LABELS, precision: float | None = None) -> dict[str, Any]:
    return calibration.fit(rows, labels, abstain_precision=precision, confidence=0.95)


def threshold(top: Any, right: Any, precision: float = 0.9) -> dict[str, Any]:
    return calibration.abstain_threshold(
        np.asarray(top, float), np.asarray(right, bool), precision=precision, confidence=0.95
    )


def test_what_is_fitted_is_plain_json_of_this_shape() -> None:
    found = fit(sure_by(2, 800), precision=0.8)
    assert json.loads(json.dumps(found)) == found
    assert {name: set(value) if isinstance(value, dict) else None for name, value in found.items()} == {
        "temperature": None,
        "before": {"log_loss", "ece"},
        "after": {"log_loss", "ece"},
        "abstain": {"precision", "threshold", "coverage", "validation_precision"},
    }
    assert fit(sure_by(2, 800))["abstain"] is None


def test_a_temperature_worked_by_hand() -> None:
    # Always 90% sure, right 7 times of 10: right would be 70%, so that ln 9 / T = ln(7 / 3).
    rows = frame((["yes"] * 7 + ["no"] * 3 + ["no"] * 7 + ["yes"] * 3) * 5,
                 ([[0.9, 0.1]] * 10 + [[0.1, 0.9]] * 10) * 5, ["yes", "no"])  # fmt: skip
    found = fit(rows, ["yes", "no"])
    assert found["temperature"] == pytest.approx(math.log(9) / math.log(7 / 3), abs=1e-4)
    assert found["before"]["ece"] == pytest.approx(0.2, abs=1e-6)
    assert found["after"]["ece"] == pytest.approx(0, abs=1e-4)
    assert found["after"]["log_loss"] == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)), abs=1e-6)


@pytest.mark.parametrize("factor", [0.4, 1, 2.5])
def test_the_temperature_has_the_least_log_loss(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "BATCH_ROWS", 700)
    rows = sure_by(factor, 4_000)
    logs = np.log(np.array(rows["probabilities"].to_list()))
    truth = [LABELS.index(label) for label in rows["truth"]]

    def loss(temperature: float) -> float:
        return -float(special.log_softmax(logs / temperature, axis=1)[np.arange(4_000), truth].mean())

    best = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
    found = fit(rows)
    assert found["temperature"] == pytest.approx(best.x, abs=2e-4)
    assert found["temperature"] == pytest.approx(factor, rel=0.1)
    assert found["after"]["log_loss"] == pytest.approx(best.fun, abs=1e-6)
    assert found["before"]["log_loss"] == pytest.approx(loss(1), abs=1e-5)


def test_the_temperature_is_bounded() -> None:
    hardly_sure = frame(["yes"] * 999 + ["no"], [[0.501, 0.499]] * 1_000, ["yes", "no"])
    assert fit(hardly_sure, ["yes", "no"])["temperature"] == 0.05
    worse_than_nothing = frame(["no"] * 90 + ["yes"] * 10, [[0.9, 0.1]] * 100, ["yes", "no"])
    assert fit(worse_than_nothing, ["yes", "no"])["temperature"] == 20


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (sure_by(2, 49), "49 validation rows are too few"),
        (sure_by(2, 200).with_columns(truth=pl.lit("neutral")), "have one label"),
        (sure_by(2, 200).with_columns(truth="prediction"), "predicted right"),
    ],
)
def test_rows_that_cannot_tell_leave_the_temperature_alone(
    rows: pl.DataFrame, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = fit(rows)
    assert found["temperature"] == 1
    assert found["after"] == pytest.approx(found["before"], abs=1e-6)
    assert said in caplog.text


def test_predictions_without_probabilities_have_nothing_to_fit() -> None:
    rows = sure_by(2, 100).drop("probabilities")
    assert fit(rows) == {}
    assert calibration.calibrated(rows, {}).equals(rows)
    assert calibration.abstention(rows, {}, confidence=0.95) == {}


def test_probabilities_are_the_softmax_of_their_cooled_logarithms() -> None:
    rows = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], np.float32)
    found = calibration.apply(rows, 2)
    assert found.dtype == np.float64
    assert found[0] == pytest.approx(np.sqrt([0.7, 0.2, 0.1]) / np.sqrt([0.7, 0.2, 0.1]).sum(), rel=1e-6)
    assert found[1] == pytest.approx([1 / (1 + 2e-6), 1e-6 / (1 + 2e-6), 1e-6 / (1 + 2e-6)])
    assert calibration.apply(rows, 1) == pytest.approx(rows, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1, 3.1, 20])
def test_the_order_of_the_labels_never_changes(temperature: float) -> None:
    rng = np.random.default_rng(1)
    close = np.full((200, 3), 1 / 3, np.float32)
    for row, column in enumerate(rng.integers(0, 3, 200)):
        close[row, column] = np.nextafter(close[row, column], np.float32(rng.integers(0, 2)))
    sure = np.stack([np.full(50, 1 - 2**-24), np.full(50, 2.0**-25), np.full(50, 2.0**-26)], 1).astype(np.float32)
    tied = np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], np.float32)
    rows = np.concatenate([close, sure, tied, rng.dirichlet(np.ones(3), 500).astype(np.float32)])
    found = calibration.apply(rows, temperature)
    assert (found.argmax(1) == rows.argmax(1)).all()
    assert (stats.rankdata(found, axis=1) == stats.rankdata(rows, axis=1))[-502:].all()


def test_calibrated_predictions_keep_everything_but_their_probabilities() -> None:
    rows = sure_by(2, 100)
    found = calibration.calibrated(rows, {"temperature": 2.0, "abstain": None})
    assert found.columns == rows.columns
    assert found.drop("probabilities").equals(rows.drop("probabilities"))
    assert found["probabilities"].dtype == pl.List(pl.Float64)
    wanted = special.softmax(np.log(np.array(rows["probabilities"].to_list())) / 2, axis=1)
    assert np.array(found["probabilities"].to_list()) == pytest.approx(wanted)
    assert calibration.calibrated(rows, {}).equals(rows)
    assert calibration.calibrated(rows.clear(), {"temperature": 2.0}).is_empty()


def test_the_smallest_threshold_that_holds_is_found() -> None:
    # 0.9 sure: 200 of 200 right. 0.6 sure: 100 of 200 right, and 300 of 400 with them.
    found = threshold([0.9] * 200 + [0.6] * 200, [True] * 200 + [True, False] * 100)
    assert found == {"precision": 0.9, "threshold": 0.61, "coverage": 0.5, "validation_precision": 1}


def test_a_model_that_is_good_enough_never_abstains() -> None:
    found = threshold(np.linspace(0.4, 1, 1_000), np.arange(1_000) % 50 > 0)
    assert found == {"precision": 0.9, "threshold": 0, "coverage": 1, "validation_precision": 0.98}


@pytest.mark.parametrize(("right", "passes"), [(29, True), (28, False)])
def test_so_few_rows_must_all_be_right(right: int, passes: bool) -> None:
    # 0.9 ** 29 = 0.0471 < 0.05 < 0.9 ** 28.
    rows = [True] * right + [False] * (29 - right)
    assert (threshold([0.8] * 29, rows)["threshold"] is not None) == passes
    assert threshold([0.8] * 28, [True] * 28)["threshold"] is None


def test_two_starts_share_the_chance_to_be_wrong() -> None:
    # 0.9 ** 36 = 0.0225 < 0.025 < 0.9 ** 35; with 4 * 36 rows there is a second start.
    for rows, passes in ((36, True), (35, False)):
        found = threshold([0.8] * rows + [0.5] * 200, [True] * rows + [False] * 200)
        assert found["threshold"] == (0.51 if passes else None)
    for wrong, passes in ((8, True), (9, False)):
        lower = stats.beta.ppf([0.025, 0.05], 160 - wrong, wrong + 1)
        assert (lower > 0.9).tolist() == [passes, True]
        found = threshold([0.8] * 160 + [0.5] * 100, [True] * (160 - wrong) + [False] * (wrong + 100))
        assert found["threshold"] == (0.51 if passes else None)


def test_no_threshold_may_reach_the_precision() -> None:
    found = threshold([0.99] * 500 + [0.5] * 500, [True, False] * 500)
    assert found == {"precision": 0.9, "threshold": None, "coverage": 0, "validation_precision": None}


def test_a_few_early_errors_do_not_end_the_search() -> None:
    # The 40 surest rows hold 4 errors and fail; the 160 surest hold no more, and 4 of 160 pass.
    right = np.ones(1_000, bool)
    right[[3, 10, 20, 30]] = False
    found = threshold(np.linspace(0.9999, 0.5, 1_000), right)
    assert found["threshold"] == 0
    assert stats.beta.ppf(0.025, 36, 5) < 0.9 < stats.beta.ppf(0.025, 156, 5)


def test_finer_thresholds_part_the_rows_of_a_sure_model() -> None:
    found = threshold([0.9995] * 300 + [0.9985] * 300, [True] * 300 + [True, False] * 150, precision=0.98)
    assert found["threshold"] == 0.9990


def test_the_precision_holds_as_often_as_was_asked_for() -> None:
    # As sure as right: among rows above t, (1 + t) / 2 are right. 90% is reached from 0.8 on.
    missed, coverage, trials = 0, [], 400
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        top = rng.uniform(0.5, 1, 1_500)
        found = threshold(top, rng.random(1_500) < top)
        missed += found["threshold"] is not None and found["threshold"] < 0.8
        coverage.append(found["coverage"])
    assert missed <= stats.binom.ppf(0.99, trials, 0.05)
    assert np.mean(coverage) > 0.25  # of the 0.4 that are possible


def test_rows_below_the_threshold_are_abstained_from() -> None:
    rows = frame(["negative"] * 3, [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1]])
    fitted = {"temperature": 1.0, "abstain": {"precision": 0.9, "threshold": 0.7, "coverage": 0.5}}
    rows = rows.with_columns(probabilities=pl.Series([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1]]))
    assert calibration.abstained(rows, fitted).to_list() == [False, True, False]
    assert calibration.abstained(rows, fitted | {"abstain": {"threshold": None}}).to_list() == [True] * 3
    assert calibration.abstained(rows, {"abstain": None}).to_list() == [False] * 3
    assert calibration.abstained(rows, {}).to_list() == [False] * 3


def test_what_abstaining_does_to_other_rows() -> None:
    rows = frame(["negative"] * 8 + ["neutral"] * 4, [[0.9, 0.05, 0.05]] * 10 + [[0.4, 0.3, 0.3]] * 2)
    fitted = {"temperature": 1.0, "abstain": {"precision": 0.7, "threshold": 0.5}}
    found = calibration.abstention(rows, fitted, confidence=0.95)
    # 10 of 12 are answered, 8 of them right.
    assert (found["rows"], found["answered"]) == (12, 10)
    assert found["coverage"] == pytest.approx(10 / 12)
    assert found["coverage_low"] == pytest.approx(stats.beta.ppf(0.025, 10, 3))
    assert found["coverage_high"] == pytest.approx(stats.beta.ppf(0.975, 11, 2))
    assert found["precision"] == pytest.approx(
        {"value": 0.8, "low": stats.beta.ppf(0.025, 8, 3), "high": stats.beta.ppf(0.975, 9, 2)}
    )
    nothing = calibration.abstention(rows, {"abstain": {"threshold": None}}, confidence=0.95)
    assert (nothing["coverage"], nothing["answered"], nothing["precision"]) == (0, 0, None)
    assert calibration.abstention(rows, {"abstain": None}, confidence=0.95) == {}


def test_the_family_hands_over_what_is_fitted_and_applied_here() -> None:
    family, rows = TextClassification(), sure_by(2, 1_500)
    fitted = family.calibrate(rows, META, abstain_precision=0.8, confidence=0.95)
    assert fitted == fit(rows, precision=0.8)
    other = sure_by(2, 1_500, seed=1)
    after = family.calibrated(other, fitted)
    assert after.equals(calibration.calibrated(other, fitted))
    assert family.abstention(after, fitted, confidence=0.9) == calibration.abstention(after, fitted, confidence=0.9)
    before, now = (family.score(side, META) for side in (other, after))
    assert now["log_loss"] < before["log_loss"]
    assert now["accuracy"] == before["accuracy"]
    scores = family.row_scores(after, META)
    assert scores.dtype == pl.Float64
    assert scores.mean() == pytest.approx(now["accuracy"])
    assert scores.to_list()[:3] == [float(t == p) for t, p in after.select("truth", "prediction").head(3).iter_rows()]


def test_two_models_may_know_other_labels() -> None:
    options: dict[str, Any] = {"resamples": 300, "confidence": 0.95, "seed": 0}
    new = sure_by(2, 200)
    old = new.with_columns(prediction=pl.lit("angry"))
    found = TextClassification().paired(new, old, META, "accuracy", **options)
    assert found.gain.value == pytest.approx(classification.score(new, LABELS)["accuracy"])
