"""The gate's checks: what was measured against what the recipe asks. Pure: same numbers, same answer.

A check against another model has three ends: its interval lies on the good side, on the bad side, or on both, which the
test rows cannot decide; then it says how many rows would. Does not cover measuring (`tasks.evaluate`, `tasks.gate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Any

from schemas.recipe import Evaluate, Gate, Threshold
from schemas.records import Check, CheckOutcome, Decision, Interval, Paired, Record
from tasks.slices import Shortfall

MIN_COMMON_ROWS = 30
"""Fewer rows than this decide nothing between two models."""


class Comparison(Record):
    """A challenger measured against the champion on common ground.

    Attributes:
        version: The champion's, in the registry.
        rows: Test rows compared.
        excluded: Test rows left out, because one of the two was trained on them.
        unknown_labels: Test rows left out, because the champion does not know their label.
        paired: The challenger against the champion; none when it could not be measured.
        weaker_on: Slices on which the challenger is surely worse by more than the recipe's margin.
        slices: Slices compared.
        problem: Why the champion could not be measured, in words.
        same_model: The champion is this very model.
        note: What else is to be said, such as a changed set of labels.
    """

    version: str
    rows: int = 0
    excluded: int = 0
    unknown_labels: int = 0
    paired: Paired | None = None
    weaker_on: tuple[Shortfall, ...] = ()
    slices: int = 0
    problem: str | None = None
    same_model: bool = False
    note: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that the gate looks at.

    Attributes:
        metric: The metric that decides.
        evaluate: Confidence of intervals and tests.
        metrics: Flat, as the evaluation's summary has them.
        on_slices: (metric, slice) → interval, for thresholds on a slice; one that is not there was not measured.
        baselines: Baseline → its metrics, flat.
        gains: Baseline → the model against it.
        rows: Test rows.
        slices: Number of slices measured.
        below_floor: Slices that are surely below the recipe's floor.
        speed: See `tasks.evaluate.model_speed`.
        shares: `quarantined`, `truncated`, `label_shift`: of the data, 0 to 1.
        champion: The comparison with the serving model; none when nothing serves.
    """

    metric: str
    evaluate: Evaluate
    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gains: Mapping[str, Paired] = field(default_factory=dict)
    rows: int = 0
    on_slices: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    slices: int = 0
    below_floor: Sequence[Shortfall] = ()
    speed: Mapping[str, Any] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    champion: Comparison | None = None


def judge(gate: Gate, found: Evidence) -> tuple[Check, ...]:
    """All checks that the recipe asks for, in its order."""
    checks = [_threshold(threshold, found) for threshold in gate.thresholds]
    if gate.beat_baseline:
        checks.append(_baseline(found))
    if gate.beat_champion != "ignore":
        checks.append(_champion(gate, found))
    checks += _slices(gate, found)
    checks += _budgets(gate, found)
    checks += _data(gate, found)
    return tuple(checks)


def decide(checks: Sequence[Check]) -> tuple[Decision, int | None]:
    """The verdict, and how many test rows would decide an undecidable one; see `schemas.records.Verdict`."""
    outcomes = {check.outcome for check in checks}
    if "failed" in outcomes:
        return "reject", None
    if "undecidable" in outcomes:
        needed = [check.rows_needed for check in checks if check.rows_needed]
        return "undecidable", max(needed, default=None)
    return ("challenger" if "not better" in outcomes else "promote"), None


def shown(found: Interval, evaluate: Evaluate, *, signed: bool = False) -> str:
    """A value with its interval, in words."""
    form = "+.4f" if signed else ".4f"
    return f"{found.value:{form}} ({evaluate.confidence:.0%} interval {found.low:{form}} to {found.high:{form}})"


def rows_that_decide(paired: Paired, least: float, rows: int, confidence: float) -> int | None:
    """Test rows with which the interval would no longer hold `least`, if gain and spread stay what they are.

    The standard error shrinks with the root of the rows. None where the gain is as good as `least` itself.
    """
    from statistics import NormalDist

    distance = abs(paired.gain.value - least)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * paired.se
    needed = rows * (reach / distance) ** 2 if distance > 0 else float("inf")
    return max(rows + 1, _rounded_up(needed)) if isfinite(needed) and needed < 1e9 else None


def _rounded_up(number: float) -> int:
    """To two digits: an estimate should look like one."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return ceil(number / unit) * unit


def _threshold(threshold: Threshold, found: Evidence) -> Check:
    name = f"threshold:{threshold.metric}" + (f"[{threshold.slice}]" if threshold.slice else "")
    low, high = threshold.at_least, threshold.at_most
    rule = f"at least {low:g}" if low is not None else f"at most {high:g}"
    measured = _measured(threshold, found)
    if measured is None:
        known = "this slice was not measured" if threshold.slice else "this metric was not measured"
        return Check(name=name, outcome="failed", rule=rule, found=known)
    good = measured.value >= low if low is not None else high is not None and measured.value <= high
    return Check(name=name, outcome=_outcome(good), rule=rule, found=shown(measured, found.evaluate))


def _measured(threshold: Threshold, found: Evidence) -> Interval | None:
    name = threshold.metric
    if threshold.slice is not None:
        return found.on_slices.get((name, threshold.slice))
    if name not in found.metrics:
        return None
    value = found.metrics[name]
    return Interval(
        value=value, low=found.metrics.get(f"{name}_low", value), high=found.metrics.get(f"{name}_high", value)
    )


def _baseline(found: Evidence) -> Check:
    name, rule = f"baseline:{found.metric}", "better than the best baseline: the interval of the gain lies above 0"
    if not found.baselines:
        return Check(name=name, outcome="failed", rule=rule, found="no baseline was measured")
    best = max(found.baselines, key=lambda baseline: found.baselines[baseline][found.metric])
    paired = found.gains[best]
    words = f"{shown(paired.gain, found.evaluate, signed=True)} over {best} ({found.baselines[best][found.metric]:.4f})"
    check = Check(name=name, outcome="passed", rule=rule, found=words)
    return _against(check, paired, 0.0, found.rows, found.evaluate)


def _champion(gate: Gate, found: Evidence) -> Check:
    name, margin = f"champion:{found.metric}", gate.champion_margin
    better = gate.beat_champion == "better"
    rule = (
        "better than the champion: the interval of the gain lies above 0"
        if better
        else f"not worse than the champion: the interval of the gain lies above {-margin:g}"
    )
    settled = _without_measuring(name, rule, found.champion)
    if settled is not None:
        return settled
    comparison = found.champion
    assert comparison is not None
    assert comparison.paired is not None
    paired = comparison.paired
    words = (
        f"{shown(paired.gain, found.evaluate, signed=True)} over version {comparison.version} on "
        f"{comparison.rows:,} rows, {paired.test} p = {paired.p:.2g}, {_left_out(comparison)}"
    )
    if better and paired.gain.low <= 0 < paired.gain.high and paired.gain.low > -margin:
        words += f"; not worse by more than {margin:g}, and not shown to be better"
        return Check(name=name, outcome="not better", rule=rule, found=words)
    check = Check(name=name, outcome="passed", rule=rule, found=words)
    return _against(check, paired, 0.0 if better else -margin, comparison.rows, found.evaluate)


def _without_measuring(name: str, rule: str, champion: Comparison | None) -> Check | None:
    """The check where there is nothing to measure, or where it could not be measured."""

    def check(outcome: CheckOutcome, words: str) -> Check:
        return Check(name=name, outcome=outcome, rule=rule, found=words)

    if champion is None:
        return check("passed", "no champion yet")
    if champion.same_model:
        return check("passed", f"version {champion.version} is this very model")
    if champion.problem is not None:
        return check("undecidable", f"version {champion.version} could not be measured: {champion.problem}")
    if champion.paired is None or champion.rows < MIN_COMMON_ROWS:
        few = f"only {champion.rows:,} test rows are common ground with version {champion.version}"
        return check("undecidable", f"{few}, {_left_out(champion)}; {MIN_COMMON_ROWS} are needed")
    return None


def _left_out(comparison: Comparison) -> str:
    parts = [f"{comparison.excluded or 'none'} left out because one of the two was trained on them"]
    if comparison.unknown_labels:
        parts.append(f"{comparison.unknown_labels:,} because version {comparison.version} does not know their label")
    return "; ".join([", ".join(parts), *([comparison.note] if comparison.note else [])])


def _against(check: Check, paired: Paired, least: float, rows: int, evaluate: Evaluate) -> Check:
    """The check passed when the whole interval is above `least`, failed when none of it is, else undecidable."""
    if paired.gain.low > least:
        return check
    if paired.gain.high <= least:
        return check.model_copy(update={"outcome": "failed"})
    needed = rows_that_decide(paired, least, rows, evaluate.confidence)
    told = f"about {needed:,} test rows would decide" if needed else "the two are too alike for any number of rows"
    words = f"{check.found}; {told}"
    return check.model_copy(update={"outcome": "undecidable", "found": words, "rows_needed": needed})


def _slices(gate: Gate, found: Evidence) -> list[Check]:
    checks = []
    confidence = f"{found.evaluate.confidence:.0%}"
    if gate.slice_floor is not None:
        rule = f"no slice surely below {gate.slice_floor:g} right ({confidence} sure over all slices together)"
        checks.append(_weak("slices:floor", rule, found.below_floor, found.slices, signed=False))
    if gate.slice_margin is not None:
        rule = f"on no slice surely worse than the champion by more than {gate.slice_margin:g} ({confidence} sure)"
        champion = found.champion
        settled = _without_measuring("slices:champion", rule, champion)
        if settled is None:
            assert champion is not None
            settled = _weak("slices:champion", rule, champion.weaker_on, champion.slices, signed=True)
        checks.append(settled)
    return checks


def _weak(name: str, rule: str, weak: Sequence[Shortfall], measured: int, *, signed: bool) -> Check:
    if not weak:
        return Check(name=name, outcome="passed", rule=rule, found=f"none of {measured}")
    form = "+.3f" if signed else ".3f"
    told = "; ".join(f"{part.name}: {part.value:{form}} on {part.rows:,} rows (p = {part.p:.2g})" for part in weak)
    return Check(name=name, outcome="failed", rule=rule, found=f"{len(weak)} of {measured}: {told}")


def _budgets(gate: Gate, found: Evidence) -> list[Check]:
    """What the model may cost where it was timed."""
    asked = [
        ("latency", gate.max_latency_ms, "latency_ms_p95", "95 of 100 requests within {:g} ms", "{:.1f} ms", False),
        ("throughput", gate.min_rows_per_second, "rows_per_second", "at least {:g} rows a second", "{:,.0f}", True),
        ("size", gate.max_size_mb, "size_mb", "at most {:g} MB", "{:,.1f} MB", False),
    ]
    checks = []
    for name, bound, measure, rule, form, higher in asked:
        if bound is None:
            continue
        value = float(found.speed[measure])
        good = value >= bound if higher else value <= bound
        words = form.format(value)
        checks.append(Check(name=f"budget:{name}", outcome=_outcome(good), rule=rule.format(bound), found=words))
    return checks


def _data(gate: Gate, found: Evidence) -> list[Check]:
    """What the data must be like for the numbers to mean something."""
    asked = [
        ("quarantined", gate.max_quarantined, "of the collected rows set aside"),
        ("truncated", gate.max_truncated, "of the test rows cut"),
        ("label_shift", gate.max_label_shift, "difference of a label's share between test and training rows"),
    ]
    return [
        Check(
            name=f"data:{name}",
            outcome=_outcome(found.shares[name] <= bound),
            rule=f"at most {bound:.1%} {what}",
            found=f"{found.shares[name]:.1%}",
        )
        for name, bound, what in asked
        if bound is not None
    ]


def _outcome(good: bool) -> CheckOutcome:
    return "passed" if good else "failed"
