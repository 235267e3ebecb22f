"""The picture of a learning curve, in the style of `tasks.plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.curve import CurvePoint
from tasks.plots import INK, METRIC_COLOUR, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tasks.power_law import Law

FORETOLD = 4
"""Times the most rows up to which the law is drawn."""


def metric_by_rows(
    points: Sequence[CurvePoint], law: Law | None, laws: Law | None, *, metric: str, confidence: float, path: Path
) -> Path:
    """Draw the points with their intervals and, where there is one, the law through them and beyond.

    Args:
        points: Ascending.
        law: Through the points.
        laws: Others that are as likely, for the band.
        metric: Its name.
        confidence: Of intervals and band.
        path: The PNG to write.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    tidy(axes, f"validation {metric} by training rows")
    axes.set_xscale("log")
    if law is not None and laws is not None:
        _draw_law(axes, law, laws, float(points[0].rows), confidence)
    rows, values = [point.rows for point in points], [point.value.value for point in points]
    below = [point.value.value - point.value.low for point in points]
    above = [point.value.high - point.value.value for point in points]
    measured = f"measured, {confidence:.0%} intervals"
    axes.errorbar(
        rows, values, yerr=(below, above), fmt="o", color=INK, markersize=5, linewidth=1.2, capsize=3, label=measured
    )
    ticks = [*rows, *([FORETOLD // 2 * rows[-1], FORETOLD * rows[-1]] if law is not None else [])]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training rows")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return save(figure, path)


def _draw_law(axes: Axes, law: Law, laws: Law, fewest: float, confidence: float) -> None:
    """Solid as far as it was measured, dashed beyond."""
    import numpy as np

    from tasks.bootstrap import percentiles

    for begin, end, style, label in ((fewest, law.most, "-", None), (law.most, FORETOLD * law.most, "--", "foretold")):
        rows = np.geomspace(begin, end, 60)
        axes.plot(rows, law.at(rows)[0], color=METRIC_COLOUR, linewidth=1.6, linestyle=style, label=label)
        low, high = percentiles(laws.at(rows), confidence)
        axes.fill_between(rows, low, high, color=METRIC_COLOUR, alpha=0.15, linewidth=0)
