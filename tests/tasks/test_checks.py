from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import norm

from schemas.recipe import Evaluate, Gate, Threshold
from schemas.records import Check, Interval, Paired
from tasks import checks
from tasks.checks import Comparison, Evidence
from tasks.slices import Shortfall

EVALUATE = Evaluate(bootstrap_resamples=400)


def paired(low: float, high: float, **more: Any) -> Paired:
    gain = Interval(value=(low + high) / 2, low=low, high=high)
    return Paired(**{"gain": gain, "se": (high - low) / 3.92, "p": 0.04, "test": "paired bootstrap"} | more)


EVIDENCE = Evidence(
    metric="macro_f1",
    evaluate=EVALUATE,
    metrics={
        "macro_f1": 0.80, "macro_f1_low": 0.78, "macro_f1_high": 0.82,
        "accuracy": 0.81, "accuracy_low": 0.79, "accuracy_high": 0.83,
        "ece": 0.031, "ece_low": 0.02, "ece_high": 0.05, "f1/yes": 0.7,
    },
    baselines={"majority": {"macro_f1": 0.2}, "tfidf": {"macro_f1": 0.75}},
    gains={"majority": paired(0.5, 0.7), "tfidf": paired(0.02, 0.08)},
    rows=1000,
    speed={"latency_ms_p95": 12.5, "rows_per_second": 640.0, "size_mb": 90.9},
    shares={"quarantined": 0.123, "truncated": 0.0, "label_shift": 0.021},
)  # fmt: skip
NOTHING = Gate(beat_baseline=False, beat_champion="ignore")


def with_evidence(**more: Any) -> Evidence:
    return Evidence(**{**vars(EVIDENCE), **more})


def only(gate: Gate, evidence: Evidence = EVIDENCE) -> Check:
    (check,) = checks.judge(gate, evidence)
    return check


def threshold(**asked: Any) -> Check:
    return only(NOTHING.model_copy(update={"thresholds": (Threshold(**asked),)}))


def baseline(gain: Paired) -> Check:
    return only(Gate(beat_champion="ignore"), with_evidence(gains=EVIDENCE.gains | {"tfidf": gain}))


def champion(comparison: Comparison | None, beat: str = "not-worse") -> Check:
    asked = NOTHING.model_copy(update={"beat_champion": beat, "champion_margin": 0.01})
    return only(asked, with_evidence(champion=comparison))


def measured(low: float, high: float, **more: Any) -> Comparison:
    return Comparison(**{"version": "3", "rows": 500, "excluded": 12, "paired": paired(low, high)} | more)


def test_a_threshold_is_met_by_the_point_value_alone() -> None:
    assert threshold(metric="accuracy", at_least=0.81).passed
    assert not threshold(metric="accuracy", at_least=0.8101).passed
    assert threshold(metric="accuracy", at_least=0.78) == Check(
        name="threshold:accuracy",
        outcome="passed",
        rule="at least 0.78",
        found="0.8100 (95% interval 0.7900 to 0.8300)",
    )


def test_a_calibration_error_is_bounded_from_above() -> None:
    assert threshold(metric="ece", at_most=0.031).passed
    refused = threshold(metric="ece", at_most=0.03)
    assert (refused.outcome, refused.rule) == ("failed", "at most 0.03")


def test_a_single_labels_metric_can_be_bounded() -> None:
    assert threshold(metric="f1/yes", at_least=0.7).passed
    assert threshold(metric="f1/nobody", at_least=0.1).found == "this metric was not measured"


def test_a_threshold_on_a_slice_looks_at_that_slice_alone() -> None:
    asked = NOTHING.model_copy(update={"thresholds": (Threshold(metric="accuracy", at_least=0.8, slice="source=web"),)})
    on_web = with_evidence(on_slices={("accuracy", "source=web"): Interval(value=0.7, low=0.6, high=0.8)})
    check = only(asked, on_web)
    assert (check.name, check.outcome) == ("threshold:accuracy[source=web]", "failed")
    assert only(asked).found == "this slice was not measured"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.001, 0.08, "passed"), (0.0, 0.08, "undecidable"), (-0.01, 0.11, "undecidable"), (-0.05, 0.0, "failed")],
)
def test_the_best_baseline_is_beaten_when_the_whole_interval_is_above_zero(
    low: float, high: float, outcome: str
) -> None:  # fmt: skip
    assert baseline(paired(low, high)).outcome == outcome


def test_the_baseline_check_names_the_best_one() -> None:
    found = baseline(paired(0.02, 0.08)).found
    assert found == "+0.0500 (95% interval +0.0200 to +0.0800) over tfidf (0.7500)"


def test_no_baseline_measured_is_no_baseline_beaten() -> None:
    check = only(Gate(beat_champion="ignore"), with_evidence(baselines={}, gains={}))
    assert (check.outcome, check.found) == ("failed", "no baseline was measured")


@pytest.mark.parametrize(
    ("beat", "low", "high", "outcome"),
    [
        ("better", 0.001, 0.05, "passed"),
        ("better", 0.0, 0.05, "not better"),  # above the margin, so surely not worse
        ("better", -0.009, 0.05, "not better"),
        ("better", -0.01, 0.05, "undecidable"),  # may be worse by more than the margin
        ("better", -0.05, -0.001, "failed"),
        ("not-worse", 0.001, 0.05, "passed"),
        ("not-worse", -0.009, 0.05, "passed"),
        ("not-worse", -0.01, 0.05, "undecidable"),
        ("not-worse", -0.05, -0.01, "failed"),
    ],
)
def test_the_interval_decides_against_the_champion(beat: str, low: float, high: float, outcome: str) -> None:
    assert champion(measured(low, high), beat).outcome == outcome


def test_the_comparison_with_the_champion_tells_its_ground() -> None:
    check = champion(measured(-0.004, 0.02))
    assert check.name == "champion:macro_f1"
    assert check.rule == "not worse than the champion: the interval of the gain lies above -0.01"
    assert check.found == (
        "+0.0080 (95% interval -0.0040 to +0.0200) over version 3 on 500 rows, paired bootstrap p = 0.04, "
        "12 left out because one of the two was trained on them"
    )


def test_rows_of_labels_that_the_champion_does_not_know_are_told() -> None:
    found = champion(measured(-0.004, 0.02, unknown_labels=7, note="labels new: maybe")).found
    assert found.endswith("7 because version 3 does not know their label; labels new: maybe")


@pytest.mark.parametrize(
    ("comparison", "outcome", "found"),
    [
        (None, "passed", "no champion yet"),
        (Comparison(version="3", same_model=True), "passed", "version 3 is this very model"),
        (
            Comparison(version="3", problem="its files are gone"),
            "undecidable",
            "version 3 could not be measured: its files are gone",
        ),
        (
            measured(0.1, 0.2, rows=29),
            "undecidable",
            "only 29 test rows are common ground with version 3, 12 left out because one of the two was trained on "
            "them; 30 are needed",
        ),
    ],
)
def test_a_champion_that_was_not_measured_is_told_and_never_skipped(
    comparison: Comparison | None, outcome: str, found: str
) -> None:
    check = champion(comparison)
    assert (check.outcome, check.found) == (outcome, found)


def test_an_undecidable_gain_says_how_many_rows_would_decide() -> None:
    close = paired(-0.02, 0.03)  # gain 0.005, half width 0.025: 0.015 above the margin of -0.01
    needed = checks.rows_that_decide(close, -0.01, 500, 0.95)
    reach = norm.ppf(0.975) * close.se
    exact = 500 * (reach / 0.015) ** 2
    assert needed is not None
    assert exact <= needed <= 1.1 * exact
    # With so many rows the same gain has an interval that clears the margin.
    shrunk = close.se * (500 / needed) ** 0.5
    assert close.gain.value - norm.ppf(0.975) * shrunk >= -0.01
    check = champion(measured(-0.02, 0.03))
    assert (check.outcome, check.rows_needed) == ("undecidable", needed)
    assert check.found.endswith(f"about {needed:,} test rows would decide")


def test_models_that_are_exactly_as_good_are_never_decided() -> None:
    assert checks.rows_that_decide(paired(-0.02, 0.02), 0.0, 500, 0.95) is None


def test_a_slice_surely_below_the_floor_fails_by_name() -> None:
    asked = NOTHING.model_copy(update={"slice_floor": 0.6})
    assert only(asked, with_evidence(slices=9)).found == "none of 9"
    weak = only(asked, with_evidence(slices=9, below_floor=[Shortfall("source=web", 80, 0.4, 0.002)]))
    assert (weak.name, weak.outcome) == ("slices:floor", "failed")
    assert weak.found == "1 of 9: source=web: 0.400 on 80 rows (p = 0.002)"


def test_a_slice_surely_worse_than_the_champion_fails_by_name() -> None:
    asked = NOTHING.model_copy(update={"slice_margin": 0.02})
    worse = measured(-0.001, 0.03, slices=4, weaker_on=(Shortfall("label=no", 90, -0.2, 0.01),))
    check = only(asked, with_evidence(champion=worse))
    assert (check.name, check.outcome) == ("slices:champion", "failed")
    assert check.found == "1 of 4: label=no: -0.200 on 90 rows (p = 0.01)"
    assert only(asked, with_evidence(champion=None)).found == "no champion yet"


@pytest.mark.parametrize(
    ("asked", "name", "passed"),
    [
        ({"max_latency_ms": 12.5}, "budget:latency", True),
        ({"max_latency_ms": 12.4}, "budget:latency", False),
        ({"min_rows_per_second": 640}, "budget:throughput", True),
        ({"min_rows_per_second": 641}, "budget:throughput", False),
        ({"max_size_mb": 91}, "budget:size", True),
        ({"max_size_mb": 90}, "budget:size", False),
        ({"max_quarantined": 0.123}, "data:quarantined", True),
        ({"max_quarantined": 0.12}, "data:quarantined", False),
        ({"max_truncated": 0.0}, "data:truncated", True),
        ({"max_label_shift": 0.03}, "data:label_shift", True),
        ({"max_label_shift": 0.02}, "data:label_shift", False),
    ],
)
def test_budgets_and_data_are_bounded(asked: dict[str, float], name: str, passed: bool) -> None:
    check = only(NOTHING.model_copy(update=asked))
    assert (check.name, check.passed) == (name, passed)


def test_what_the_recipe_does_not_ask_is_not_checked() -> None:
    assert checks.judge(NOTHING, EVIDENCE) == ()
    full = Gate(thresholds=(Threshold(metric="accuracy", at_least=0.5),), slice_floor=0.5, max_size_mb=100)
    names = [check.name for check in checks.judge(full, EVIDENCE)]
    assert names == ["threshold:accuracy", "baseline:macro_f1", "champion:macro_f1", "slices:floor", "budget:size"]


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        ([], "promote"),
        (["passed", "passed"], "promote"),
        (["passed", "not better"], "challenger"),
        (["undecidable", "not better"], "undecidable"),
        (["undecidable", "failed", "not better"], "reject"),
    ],
)
def test_the_worst_check_decides(outcomes: list[Any], decision: str) -> None:
    found = [Check(name="c", outcome=outcome, rule="", found="") for outcome in outcomes]
    assert checks.decide(found)[0] == decision


def test_the_most_rows_that_any_check_needs_are_told() -> None:
    found = [
        Check(name=str(i), outcome="undecidable", rule="", found="", rows_needed=rows)
        for i, rows in enumerate((None, 700, 300))
    ]
    assert checks.decide(found) == ("undecidable", 700)
