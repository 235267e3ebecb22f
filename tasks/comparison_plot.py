"""The picture of a comparison: what candidates are worth by how fast they answer, in the style of `tasks.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schemas.comparison import Candidate
from tasks.plots import CURVE_COLOURS, FAINT, INK, LOSS_COLOUR, METRIC_COLOUR, new_figure, save, tidy


def metric_by_latency(
    candidates: Sequence[Candidate], chosen: str, *, metric: str, confidence: float, path: Path
) -> Path:  # fmt: skip
    """Draw each candidate with its interval, the front through those that nothing beats, and trivial models as lines.

    Args:
        candidates: At least one of them has a latency.
        chosen: Name of the one that is marked.
        metric: Its name.
        confidence: Of the intervals.
        path: The PNG to write.
    """
    figure = new_figure(8.6, 4.8)
    axes = figure.subplots()
    tidy(axes, f"validation {metric} by latency, {confidence:.0%} intervals")
    front = sorted(
        (one.latency_ms, one.value.value) for one in candidates if one.front and one.latency_ms and one.value
    )
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=FAINT, linewidth=5, zorder=0)
    place = 0
    for one in candidates:
        if one.value is None:
            continue
        if one.latency_ms is None:
            axes.axhline(one.value.value, color=LOSS_COLOUR, linewidth=1, linestyle="--", label=one.name)
            continue
        best = one.name == chosen
        errors = ([one.value.value - one.value.low], [one.value.high - one.value.value])
        colour = METRIC_COLOUR if best else CURVE_COLOURS[1 + place % (len(CURVE_COLOURS) - 1)]
        place += not best
        axes.errorbar(
            [one.latency_ms], [one.value.value], yerr=errors, fmt="D" if best else "o", color=colour, capsize=3,
            markersize=8 if best else 5, label=f"{one.name}{' (recommended)' if best else ''}",
        )  # fmt: skip
    axes.set_xlabel("ms a single request takes (median)", color=INK)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(figure, path)
