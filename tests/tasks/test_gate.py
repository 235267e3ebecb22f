from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.recipe import Evaluate, Gate, Threshold
from schemas.records import Check, Interval
from tasks import gate, held_out
from tasks.families.text_classification import TextClassificationTask
from tasks.gate import Comparison

EVALUATE = Evaluate(bootstrap_resamples=400)
META = {"labels": ["no", "yes"]}
SUMMARY: dict[str, Any] = {
    "metrics": {
        "macro_f1": 0.80, "macro_f1_low": 0.78, "macro_f1_high": 0.82,
        "accuracy": 0.81, "accuracy_low": 0.79, "accuracy_high": 0.83,
    },
    "baselines": {"majority": {"macro_f1": 0.2}, "tfidf": {"macro_f1": 0.75}},
    "gains": {
        "majority": {"value": 0.6, "low": 0.5, "high": 0.7, "mcnemar_p": 0.0},
        "tfidf": {"value": 0.05, "low": 0.02, "high": 0.08, "mcnemar_p": 0.001},
    },
}  # fmt: skip


def only(checks: tuple[Check, ...]) -> Check:
    assert len(checks) == 1
    return checks[0]


def threshold(at_least: float) -> Check:
    asked = Gate(
        thresholds=(Threshold(metric="accuracy", at_least=at_least),), beat_baseline=False, beat_champion="ignore"
    )
    return only(gate.judge(asked, EVALUATE, "macro_f1", SUMMARY, None))


def baseline(**gain: float) -> Check:
    summary = SUMMARY | {"gains": SUMMARY["gains"] | {"tfidf": gain | {"mcnemar_p": 0.5}}}
    return only(gate.judge(Gate(beat_champion="ignore"), EVALUATE, "macro_f1", summary, None))


def champion(comparison: Comparison | None, beat: str = "not-worse") -> Check:
    asked = Gate(beat_baseline=False, beat_champion=beat, champion_margin=0.01)  # type: ignore[arg-type]
    return only(gate.judge(asked, EVALUATE, "macro_f1", SUMMARY, comparison))


def measured(low: float, high: float, **more: Any) -> Comparison:
    gain = Interval(value=(low + high) / 2, low=low, high=high)
    return Comparison(**{"version": "3", "rows": 500, "excluded": 12, "gain": gain} | more)


def test_a_threshold_is_met_by_the_point_value_alone() -> None:
    assert threshold(0.81).passed
    assert not threshold(0.8101).passed
    assert threshold(0.78) == Check(
        name="threshold:accuracy",
        passed=True,
        rule="at least 0.78",
        found="0.8100 (95% interval 0.7900 to 0.8300)",
    )


def test_the_best_baseline_is_beaten_when_the_whole_interval_is_above_zero() -> None:
    passed = baseline(value=0.05, low=0.001, high=0.08)
    assert (passed.name, passed.passed) == ("baseline:macro_f1", True)
    assert passed.found == "+0.0500 (95% interval +0.0010 to +0.0800) over tfidf (0.7500)"
    assert not baseline(value=0.05, low=0.0, high=0.08).passed
    assert not baseline(value=0.05, low=-0.01, high=0.11).passed


def test_no_baseline_measured_is_no_baseline_beaten() -> None:
    summary = SUMMARY | {"baselines": {}, "gains": {}}
    check = only(gate.judge(Gate(beat_champion="ignore"), EVALUATE, "macro_f1", summary, None))
    assert (check.passed, check.found) == (False, "no baseline was measured")


@pytest.mark.parametrize(
    ("beat", "low", "passed"),
    [("better", 0.001, True), ("better", 0.0, False), ("better", -0.005, False),
     ("not-worse", 0.001, True), ("not-worse", -0.009, True), ("not-worse", -0.01, False), ("not-worse", -0.02, False)],
)  # fmt: skip
def test_the_lower_bound_decides_against_the_champion(beat: str, low: float, passed: bool) -> None:
    assert champion(measured(low, 0.05), beat).passed is passed


def test_the_comparison_with_the_champion_tells_its_ground() -> None:
    check = champion(measured(-0.004, 0.02))
    assert check.name == "champion:macro_f1"
    assert check.rule == "not worse than the champion: the interval of the gain lies above -0.01"
    assert check.found == (
        "+0.0080 (95% interval -0.0040 to +0.0200) over version 3 on 500 rows, "
        "12 left out because one of the two was trained on them"
    )


def test_the_first_model_has_no_champion_to_beat() -> None:
    assert champion(None) == Check(
        name="champion:macro_f1",
        passed=True,
        rule="not worse than the champion: the interval of the gain lies above -0.01",
        found="no champion yet",
    )


def test_a_champion_that_is_this_model_is_not_compared_with_itself() -> None:
    check = champion(Comparison(version="3", same_model=True))
    assert (check.passed, check.found) == (True, "version 3 is this very model")


def test_a_champion_that_cannot_be_measured_is_reported_and_closes_the_gate() -> None:
    check = champion(Comparison(version="3", problem="its files are gone"))
    assert (check.passed, check.found) == (False, "version 3 could not be measured: its files are gone")


def test_too_few_common_rows_are_undecidable() -> None:
    check = champion(measured(0.1, 0.2, rows=29))
    assert not check.passed
    assert check.found == (
        "undecidable: only 29 test rows are common ground with version 3, "
        "12 left out because one of the two was trained on them; 30 are needed"
    )
    assert champion(measured(0.1, 0.2, rows=30)).passed


def test_what_the_recipe_does_not_ask_is_not_checked() -> None:
    assert gate.judge(Gate(beat_baseline=False, beat_champion="ignore"), EVALUATE, "macro_f1", SUMMARY, None) == ()
    full = Gate(thresholds=(Threshold(metric="accuracy", at_least=0.5), Threshold(metric="macro_f1", at_least=0.5)))
    names = [check.name for check in gate.judge(full, EVALUATE, "macro_f1", SUMMARY, None)]
    assert names == ["threshold:accuracy", "threshold:macro_f1", "baseline:macro_f1", "champion:macro_f1"]


def test_rows_that_either_model_was_trained_on_are_not_common_ground() -> None:
    hashes = {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert held_out.common_rows(hashes, ["2"], {"4"}) == (["a", "c"], 2)
    assert held_out.common_rows(hashes, [], []) == (["a", "b", "c", "d"], 0)


def predictions(n: int, wrong: int, swap: str = "no") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "truth": ["yes", "no"] * (n // 2),
            "prediction": [swap if i < wrong and i % 2 == 0 else ("yes", "no")[i % 2] for i in range(n)],
        }
    )


def compare(new: pl.DataFrame, old: pl.DataFrame, champion_rows: Any, metric: str = "accuracy") -> Comparison:
    hashes = {row: f"h{row}" for row in new["id"]}
    return gate.compare(
        TextClassificationTask(), META, new, old, evaluate=EVALUATE, metric=metric,
        version="3", hashes=hashes, trained_on_champion=champion_rows, trained_on_new=[],
    )  # fmt: skip


def test_what_the_champion_has_learnt_by_heart_does_not_count_for_it() -> None:
    # The champion is right everywhere; the challenger is wrong on r0, r2, …, r18, which the champion was trained on.
    new, old = predictions(100, 20), predictions(100, 0)
    honest = compare(new, old, [f"hr{i}" for i in range(20)])
    assert (honest.rows, honest.excluded) == (80, 20)
    assert honest.gain == Interval(value=0, low=0, high=0)
    naive = compare(new, old, [])
    assert naive.gain is not None
    assert naive.gain.value == pytest.approx(-0.1)


def test_rows_are_counted_where_both_models_have_predicted() -> None:
    found = compare(predictions(100, 0), predictions(60, 0), ["hr0"])
    assert (found.rows, found.excluded) == (59, 1)


def test_below_thirty_common_rows_nothing_is_measured() -> None:
    found = compare(predictions(40, 0), predictions(40, 0), [f"hr{i}" for i in range(11)])
    assert (found.rows, found.excluded, found.gain, found.problem) == (29, 11, None, None)


def test_a_champion_of_other_labels_is_a_problem_in_words() -> None:
    found = compare(predictions(40, 0), predictions(40, 10, swap="maybe"), [])
    assert found.gain is None
    assert found.problem is not None
    assert "'maybe': is none of the labels no, yes" in found.problem


def test_a_champion_of_unknown_origin_is_a_problem_in_words() -> None:
    assert compare(predictions(40, 0), predictions(40, 0), None).problem == "nobody knows which rows it was trained on"


def test_rows_are_known_by_their_normalised_text(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"text_column": "text"}))
    train = ["Good film!", "good FILM", "bad film"]
    pl.DataFrame({"id": ["a", "b", "c"], "text": train}).write_parquet(tmp_path / "train.parquet")
    pl.DataFrame({"id": ["d", "e"], "text": ["good, film", "new"]}).write_parquet(tmp_path / "test.parquet")
    trained, tested = held_out.training_hashes(tmp_path), held_out.test_hashes(tmp_path)
    assert trained == sorted(set(trained))
    assert len(trained) == 2
    assert all(len(known_by) == 16 and int(known_by, 16) >= 0 for known_by in trained)
    assert list(tested) == ["d", "e"]
    assert tested["d"] in trained
    assert tested["e"] not in trained


def test_the_verdict_is_told_in_a_word_and_check_by_check() -> None:
    checks = (
        Check(name="threshold:accuracy", passed=True, rule="at least 0.5", found="0.8"),
        Check(name="champion:accuracy", passed=False, rule="better", found="broken | line"),
    )
    told = gate.verdict_markdown(checks)
    assert told.startswith("**The gate is closed: 1 of 2 checks failed.**")
    assert "| ✅ | `threshold:accuracy` | at least 0.5 | 0.8 |" in told
    assert "| ❌ | `champion:accuracy` | better | broken \\| line |" in told
    assert gate.verdict_markdown(checks[:1]).startswith("**The gate is open.**")
    assert "no checks" in gate.verdict_markdown(())
