"""Pictures of predicted values, in the style of `tasks.plots`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.plots import INK, LOSS_COLOUR, METRIC_COLOUR, new_figure, save, tidy

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

    from tasks.bootstrap import Floats

MOST_DOTS = 1_500
"""With more rows, a grid of hexagons says how many are where."""
GRID = 36
BINS = 48


def predicted_against_true(predictions: pl.DataFrame, path: Path) -> Path:
    """Draw what is predicted over what is true; on the line both are the same.

    Args:
        predictions: Columns truth and prediction, numbers.
        path: The PNG to write.
    """
    truth, found = predictions["truth"].to_numpy(), predictions["prediction"].to_numpy()
    figure = new_figure(5.4, 5.0)
    axes = figure.subplots()
    tidy(axes, f"predicted by true value, {len(truth):,} rows")
    _cloud(axes, truth, found)
    low, high = min(truth.min(), found.min()), max(truth.max(), found.max())
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return save(figure, path)


def residuals(predictions: pl.DataFrame, path: Path) -> Path:
    """Draw the errors over what is predicted, beside how many there are of each size.

    Args:
        predictions: Columns truth and prediction, numbers.
        path: The PNG to write.
    """
    import numpy as np

    found = predictions["prediction"].to_numpy()
    errors = found - predictions["truth"].to_numpy()
    figure = new_figure(7.4, 4.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    tidy(left, f"error by predicted value, mean error {errors.mean():+.4g}")
    tidy(right, "rows")
    _cloud(left, found, errors)
    left.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    left.set_xlabel("predicted")
    left.set_ylabel("predicted less true")
    counts, edges = np.histogram(errors, bins=BINS)
    right.stairs(counts, edges, orientation="horizontal", fill=True, color=METRIC_COLOUR)
    right.axhline(0, color=LOSS_COLOUR, linewidth=1)
    return save(figure, path)


def _cloud(axes: Axes, x: Floats, y: Floats) -> None:
    if len(x) <= MOST_DOTS:
        axes.scatter(x, y, s=9, color=METRIC_COLOUR, alpha=0.45, linewidths=0)
    else:
        axes.hexbin(x, y, gridsize=GRID, cmap="Blues", bins="log", mincnt=1, linewidths=0.2)
