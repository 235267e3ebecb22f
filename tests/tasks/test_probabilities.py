from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from schemas.errors import DataError
from tasks import probabilities
from tasks.probabilities import Forecast


def forecast(truth: list[int], rows: list[list[float]]) -> Forecast:
    spread = np.array(rows, np.float32)
    return Forecast(np.array(truth), spread.argmax(1) == np.array(truth), spread)


def drawn(rows: int, labels: int, seed: int, *, skill: float = 1.5, prior: list[float] | None = None) -> Forecast:
    """Probabilities that are too sure by half."""
    rng = np.random.default_rng(seed)
    shares = np.array(prior or [1.0] * labels) / sum(prior or [1.0] * labels)
    truth = rng.choice(labels, rows, p=shares)
    logits = rng.normal(size=(rows, labels)) + np.log(shares)
    logits[np.arange(rows), truth] += skill
    powers = np.exp(1.5 * skill * logits)
    return forecast(truth.tolist(), (powers / powers.sum(1, keepdims=True)).tolist())


def errors(found: Forecast) -> float:
    """Expected calibration error, row by row."""
    top = found.probabilities.max(1).astype(float)
    total = 0.0
    for edge in range(15):
        inside = (top > edge / 15) & (top <= (edge + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(top[inside].mean() - found.right[inside].mean())
    return total / len(top)


def test_measures_worked_by_hand() -> None:
    found = probabilities.score(forecast([0, 0, 1, 1], [[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.5, 0.5]]))
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.4) + np.log(0.7) + np.log(0.5)) / 4, rel=1e-6)
    assert found["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.3**2 + 2 * 0.5**2) / 4, rel=1e-6)
    # Label 0 scores .8 .4 | .3 .5: of its four pairs .8 wins two, .4 one. Label 1 mirrors it.
    assert found["auroc"] == pytest.approx(3 / 4)
    # Label 0 in order: hit, miss, hit, miss. Label 1 (.7 .5 | .2 .6): hit, miss, hit, miss.
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    # Each row is alone in its bin: .5 (the first label wins) and .6 are wrong, .7 and .8 right.
    assert found["ece"] == pytest.approx((0.5 + 0.6 + 0.3 + 0.2) / 4, rel=1e-6)


def test_equal_scores_count_half() -> None:
    found = probabilities.score(forecast([0, 1, 1], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    assert found["auroc"] == pytest.approx(0.5)
    assert found["auprc"] == pytest.approx((1 / 3 + 2 / 3) / 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(1, 6), min_size=3, max_size=3)), min_size=6, max_size=40
    ).filter(lambda rows: {label for label, _ in rows} == {0, 1, 2})
)
def test_every_measure_agrees_with_scikit_learn(rows: list[tuple[int, list[int]]]) -> None:
    truth = [label for label, _ in rows]
    spread = np.array([weights for _, weights in rows], np.float64)  # many ties
    spread /= spread.sum(1, keepdims=True)
    ours = probabilities.score(forecast(truth, spread.tolist()))
    one_hot = np.eye(3)[truth]
    assert ours["auroc"] == pytest.approx(sk.roc_auc_score(truth, spread, multi_class="ovr", average="macro"), abs=1e-6)
    assert ours["auprc"] == pytest.approx(sk.average_precision_score(one_hot, spread, average="macro"), abs=1e-6)
    assert ours["log_loss"] == pytest.approx(sk.log_loss(truth, spread, labels=[0, 1, 2]), rel=1e-5)
    assert ours["brier"] == pytest.approx(((spread - one_hot) ** 2).sum(1).mean(), rel=1e-5)


def test_the_brier_score_of_two_labels_is_twice_that_of_one_probability() -> None:
    found = drawn(200, 2, 0)
    theirs = sk.brier_score_loss(found.truth, found.probabilities[:, 1], scale_by_half=True)
    assert probabilities.score(found)["brier"] == pytest.approx(2 * theirs, rel=1e-5)


def test_the_calibration_error_agrees_with_going_through_the_bins() -> None:
    for seed, labels in enumerate((2, 3, 7)):
        found = drawn(700, labels, seed)
        assert probabilities.score(found)["ece"] == pytest.approx(errors(found), rel=1e-6)


def test_bins_are_closed_above() -> None:
    bins = probabilities.binned(np.array([3 / 15, 3 / 15 + 1e-9, 1.0]), np.array([True, False, True]))
    assert bins.rows.tolist() == [0, 0, 1, 1, *[0] * 10, 1]
    assert bins.accuracy[[2, 3, 14]].tolist() == [1, 0, 1]
    assert bins.confidence[14] == 1


def test_a_label_that_no_row_or_every_row_has_is_left_out_of_the_areas() -> None:
    rows = [[0.7, 0.1, 0.2], [0.2, 0.6, 0.2], [0.6, 0.3, 0.1]]
    assert probabilities.score(forecast([0, 1, 1], rows))["auroc"] == pytest.approx(
        sk.roc_auc_score([1, 0, 0], [0.7, 0.2, 0.6]) / 2 + sk.roc_auc_score([0, 1, 1], [0.1, 0.6, 0.3]) / 2
    )
    alone = forecast([1, 1, 1], rows)
    assert set(probabilities.score(alone)) == {"log_loss", "brier", "ece"}
    assert set(probabilities.intervals(alone, resamples=200, confidence=0.95, seed=0)) == {"log_loss", "brier", "ece"}


def test_certainty_that_was_wrong_costs_a_bounded_amount() -> None:
    assert probabilities.score(forecast([1], [[1.0, 0.0]]))["log_loss"] == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize("measure", ["auroc", "auprc"])
def test_a_rows_influence_is_what_the_area_gains_by_a_little_more_of_it(measure: str) -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(40) < 0.4
    scores = np.round(rng.random(40) + 0.5 * positive, 1).astype(np.float32)  # with ties
    ranking = probabilities.rank(scores, positive)
    ours = getattr(probabilities, measure)(ranking)
    theirs = {"auroc": sk.roc_auc_score, "auprc": sk.average_precision_score}[measure]
    influence = np.where(positive, ours.of_hits[ranking.place], ours.of_misses[ranking.place])
    assert ours.value == pytest.approx(theirs(positive, scores))
    for row in range(40):
        more, less = np.ones(40), np.ones(40)
        more[row], less[row] = 1 + 1e-4, 1 - 1e-4
        slope = (theirs(positive, scores, sample_weight=more) - theirs(positive, scores, sample_weight=less)) / 2e-4
        assert influence[row] / 40 == pytest.approx(slope, abs=1e-7)


def resampled(found: Forecast, resamples: int) -> dict[str, np.ndarray]:
    """Measures of resampled rows, as scipy draws them."""

    def measures(rows: np.ndarray) -> np.ndarray:
        again = Forecast(found.truth[rows], found.right[rows], found.probabilities[rows])
        return np.array([probabilities.score(again)[name] for name in probabilities.MEASURES])

    rows = np.arange(len(found.truth))
    drawn = stats.bootstrap((rows,), measures, n_resamples=resamples, method="percentile", vectorized=False, rng=3)
    return dict(zip(probabilities.MEASURES, drawn.bootstrap_distribution, strict=True))


@pytest.mark.parametrize(("rows", "labels", "prior"), [(400, 3, None), (300, 2, [3.0, 1.0])])
def test_intervals_agree_with_scipy(rows: int, labels: int, prior: list[float] | None) -> None:
    found = drawn(rows, labels, rows, prior=prior)
    theirs = resampled(found, 1_500)
    theirs["ece"] += probabilities.score(found)["ece"] - theirs["ece"].mean()
    ours = probabilities.intervals(found, resamples=20_000, confidence=0.9, seed=0)
    for name, values in theirs.items():
        low, high = np.quantile(values, [0.05, 0.95])
        # 1,500 resamples place a percentile to 2% of the width (one standard error).
        assert ours[name].low == pytest.approx(low, abs=0.08 * (high - low)), name
        assert ours[name].high == pytest.approx(high, abs=0.08 * (high - low)), name


def test_the_areas_of_all_labels_are_resampled_together() -> None:
    # The areas of two labels are one and the same: on their own, their mean would vary by a root of two too little.
    found = drawn(600, 2, 1)
    theirs = resampled(found, 600)["auroc"].std()
    ours = probabilities.intervals(found, resamples=5_000, confidence=0.6827, seed=0)["auroc"]
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs, rel=0.1)


def test_intervals_hold_their_value_within_the_bounds_of_the_measure() -> None:
    well = drawn(60, 3, 2, skill=4)
    for name, found in probabilities.intervals(well, resamples=500, confidence=0.95, seed=0).items():
        assert 0 <= found.low <= found.value <= found.high, name
        assert found.high <= {"auroc": 1, "auprc": 1, "brier": 2, "ece": 1}.get(name, 30)


def test_the_calibration_error_of_a_calibrated_model_is_within_its_interval() -> None:
    rng = np.random.default_rng(5)
    top = rng.uniform(0.5, 1, 2_000)
    truth = (rng.random(2_000) > top).astype(int)  # label 0 as often as it is said to be
    found = probabilities.intervals(
        forecast(truth.tolist(), np.stack([top, 1 - top], 1).tolist()), resamples=1_000, confidence=0.95, seed=0
    )["ece"]
    assert found.low < found.value < found.high


def test_the_same_rows_in_any_order_have_the_same_intervals() -> None:
    found = drawn(300, 3, 6)
    turned = Forecast(found.truth[::-1], found.right[::-1], found.probabilities[::-1])
    options = {"resamples": 300, "confidence": 0.9, "seed": 4}
    ours, theirs = (probabilities.intervals(rows, **options) for rows in (found, turned))
    for name, interval in ours.items():
        assert interval.model_dump() == pytest.approx(theirs[name].model_dump(), abs=1e-9), name
    assert probabilities.intervals(found, **options | {"seed": 5}) != ours


def test_probabilities_are_read_as_one_array() -> None:
    rows = [[0.1, 0.9], [0.4, 0.6]]
    for kind in (pl.Float32, pl.Float64):
        frame = pl.DataFrame({"probabilities": pl.Series(rows, dtype=pl.List(kind))})
        found = probabilities.matrix(frame, 2)
        assert found.dtype == np.float32
        assert found == pytest.approx(np.array(rows))
    sliced = pl.DataFrame({"probabilities": rows})[1:]
    assert probabilities.matrix(sliced, 2) == pytest.approx(np.array([[0.4, 0.6]]))


@pytest.mark.parametrize("odd", [[0.2, 0.3, 0.5], [1.0], [], None])
def test_a_row_with_other_labels_is_named(odd: list[float] | None) -> None:
    frame = pl.DataFrame({"probabilities": pl.Series([[0.5, 0.5], odd], dtype=pl.List(pl.Float64))})
    with pytest.raises(DataError, match="other than 2 probabilities, one for each label"):
        probabilities.matrix(frame, 2)
