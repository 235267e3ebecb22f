"""The evaluation as a Markdown page: for MLflow, for Prefect, and beside the predictions in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.records import Interval, Paired, SliceScore
from tasks.markdown import plain, table

if TYPE_CHECKING:
    from tasks.evaluate import Measured

MOST_SLICES = 25
"""Weakest slices that the report shows."""


def report(found: Measured, pictures: Sequence[Path] = ()) -> str:
    """The evaluation as a Markdown page.

    Args:
        found: What to tell.
        pictures: Files beside the page.
    """
    confidence = f"{found.evaluate.confidence:.0%} interval"
    parts = [
        "# Evaluation",
        _headline(found),
        "## Metrics",
        table(("metric", "value", confidence), [(_code(n), *_shown(i)) for n, i in _overall(found.metrics).items()]),
        *_part_section(found, confidence),
        *_baseline_section(found, confidence),
        *_slice_section(found, confidence),
        *(["## Calibration", *found.calibration_told] if found.calibration_told else []),
        *found.sections,
        *_speed_section(found),
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures),
        f"Intervals: bootstrap, {found.evaluate.bootstrap_resamples:,} resamples of the rows. Gains are paired: both "
        "models on the same resampled rows.",
    ]
    return "\n\n".join(parts) + "\n"


def best_baseline(baselines: Mapping[str, Mapping[str, Interval]], metric: str) -> str:
    """Name of the strongest baseline."""
    return max(baselines, key=lambda name: baselines[name][metric].value)


def _headline(found: Measured) -> str:
    value, interval = _shown(found.metrics[found.metric])
    interval = f"{found.evaluate.confidence:.0%} interval {interval}"
    rows = f"{found.predictions.height:,} test rows that the model has never seen"
    line = f"**{found.metric} {value}** ({interval}) on {rows}."
    if not found.gains:
        return line
    best = best_baseline(found.baselines, found.metric)
    gain = found.gains[best].gain
    verdict = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not clearly different from"
    gained, gain_interval = _shown(gain, signed=True)
    return f"{line} It is {verdict} the best baseline, {best}: {gained} ({gain_interval})."


def _part_section(found: Measured, confidence: str) -> list[str]:
    """One row per label, or what else the family measures apart: the first measure with its interval."""
    by_part: dict[str, dict[str, Interval]] = {}
    for name, interval in found.metrics.items():
        kind, slash, part = name.partition("/")
        if slash:
            by_part.setdefault(part, {})[kind] = interval
    if not by_part:
        return []
    first, *others = next(iter(by_part.values()))
    rows = [
        (plain(part), *_shown(kinds[first]), *(_value(kind, kinds[kind].value) for kind in others))
        for part, kinds in by_part.items()
    ]
    return [f"## By {found.part}", table((found.part, first, confidence, *others), rows)]


def _baseline_section(found: Measured, confidence: str) -> list[str]:
    if not found.baselines:
        return []

    def row(name: str, paired: Paired) -> tuple[str, ...]:
        baseline = found.baselines[name][found.metric]
        return name, *_shown(baseline), *_shown(paired.gain, signed=True), f"{paired.p:.2g} ({paired.test})"

    head = ("baseline", _code(found.metric), confidence, "gain of the model", confidence, "p of no difference")
    return ["## Baselines", table(head, [row(name, paired) for name, paired in found.gains.items()])]


def _slice_section(found: Measured, confidence: str) -> list[str]:
    unlikely = 1 - found.evaluate.confidence
    # What the search found on validation and the test rows do not confirm was noise.
    slices = [part for part in found.slices if part.kind != "weak" or part.p_weaker < unlikely]
    if not slices:
        return []
    weakest = sorted(slices, key=lambda part: part.value)[:MOST_SLICES]
    weak = [plain(part.name) for part in slices if part.p_weaker < unlikely]
    told = (
        f"Surely weaker than the other rows: {', '.join(weak)}." if weak else "None is surely weaker than the others."
    )
    left_out = len(slices) - len(weakest)
    more = f" {left_out} stronger ones are left out." if left_out else ""
    return [
        "## Slices",
        f"{found.row_score.capitalize()} on parts of the test rows, the weakest first. {told} The chance is adjusted "
        f"for all {len(found.slices)} slices (Holm).{more}",
        table(("slice", "rows", "score", confidence, "chance"), [_slice_row(part, unlikely) for part in weakest]),
    ]


def _slice_row(part: SliceScore, unlikely: float) -> tuple[str, ...]:
    mark = "**" if part.p_weaker < unlikely else ""
    interval = Interval(value=part.value, low=part.low, high=part.high)
    value, bounds = _shown(interval)
    return f"{mark}{plain(part.name)}{mark}", f"{part.rows:,}", value, bounds, f"{part.p_weaker:.2g}"


def _speed_section(found: Measured) -> list[str]:
    speed = found.speed
    cores = f"{speed['machine']['cores']} cores" if not speed["machine"]["accelerators"] else "a GPU"
    return [
        "## Speed and size",
        f"From raw text to answer on {cores}: {speed['latency_ms_p50']:.1f} ms a request (95 of 100 within "
        f"{speed['latency_ms_p95']:.1f} ms), {speed['rows_per_second']:,.0f} rows a second in batches of 32. "
        f"{speed['size_mb']:,.1f} MB of files.",
    ]


def _overall(metrics: Mapping[str, Interval]) -> dict[str, Interval]:
    return {name: found for name, found in metrics.items() if "/" not in name}


def _shown(found: Interval, *, signed: bool = False) -> tuple[str, str]:
    form = "+.4f" if signed else ".4f"
    return f"{found.value:{form}}", f"{found.low:{form}} to {found.high:{form}}"


def _value(kind: str, value: float) -> str:
    return f"{value:,.0f}" if kind == "support" else f"{value:.4f}"


def _code(name: str) -> str:
    return f"`{name}`"
