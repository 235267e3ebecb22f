"""Pictures for reports and MLflow, drawn without a display and without matplotlib's global state.

Does not cover interactive charts: MLflow draws those from the metrics it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
INK = "#22303c"
FAINT = "#dde3e8"
LOSS_COLOUR = "#8a97a3"
METRIC_COLOUR = "#0b6e99"
MOST_LABELS_WITH_COUNTS = 24
"""With more labels, counts in the cells could not be read."""
MOST_LABELS_NAMED = 60
"""With more labels, only every n-th is named."""
LONGEST_NAME = 24
SMOOTHED_SHARE = 0.03
"""Window of the moving average through the training loss, as a share of its points."""


def confusion_matrix(predictions: pl.DataFrame, labels: Sequence[str], path: Path) -> Path:
    """Draw how often each label was taken for each: counts in the cells, colours by share of the true label's rows.

    Args:
        predictions: Columns truth and prediction.
        labels: All labels; rows and columns in this order.
        path: The PNG to write.
    """
    import numpy as np

    from tasks.classification import confusion

    counts = confusion(predictions, labels)
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    size = len(labels)
    names = [_shortened(label) for label in labels]
    side = min(16.0, max(3.4, 0.6 * size + 0.6))
    figure = _figure(side + 2, side + 1)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-size // MOST_LABELS_NAMED)
    axes.set_xticks(range(0, size, step), names[::step])
    if size > 6 or max(map(len, names)) > 10:
        for name in axes.get_xticklabels():
            name.set(rotation=45, ha="right", rotation_mode="anchor")
    with_rows = [f"{name}  ({count:,})" for name, count in zip(names, rows[:, 0], strict=True)]
    axes.set_yticks(range(0, size, step), with_rows[::step])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (rows)")
    if size <= MOST_LABELS_WITH_COUNTS:
        _write_counts(axes, counts, shares)
    _frame_cells(axes, size)
    beside = axes.inset_axes((1.03, 0, min(0.04, 0.16 / side), 1))
    bar = figure.colorbar(image, cax=beside, format=lambda share, _: f"{share:.0%}")
    bar.outline.set_visible(False)
    bar.set_label("share of the true label's rows")
    accuracy = np.trace(counts) / max(1, counts.sum())
    axes.set_title(f"{counts.sum():,} rows, {accuracy:.1%} right", loc="left")
    return _save(figure, path)


def learning_curve(history: Sequence[Mapping[str, Any]], metric: str, path: Path) -> Path:
    """Draw the training loss and the validation metric over the steps, one above the other.

    Args:
        history: Rows with `step` and, where known, `loss` and the metric under its name.
        metric: Name of the validation metric; its best value, the highest, is marked.
        path: The PNG to write.
    """
    from matplotlib.ticker import MaxNLocator

    losses = [(row["step"], row["loss"]) for row in history if row.get("loss") is not None]
    scores = [(row["step"], row[metric]) for row in history if row.get(metric) is not None]
    figure = _figure(7.2, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_losses(upper, losses)
    _draw_scores(lower, scores, metric)
    lower.set_xlabel("optimiser step")
    lower.set_xlim(0, max([1, *(row["step"] for row in history)]) * 1.02)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(figure, path)


def _draw_losses(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    import numpy as np

    _tidy(axes, "training loss")
    if not losses:
        _say(axes, "no training loss was recorded")
        return
    steps, values = np.array(losses, dtype=float).T
    window = max(1, round(SMOOTHED_SHARE * len(values)))
    axes.plot(steps, values, color=LOSS_COLOUR, linewidth=0.8, alpha=0.5 if window > 1 else 1)
    if window > 1:
        # Backward-looking: a point of the line knows only the steps before it.
        sums = np.cumsum(np.concatenate([[0.0], values]))
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(0, ends - window)
        axes.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=INK, linewidth=1.6)
    axes.set_ylim(bottom=0)


def _draw_scores(axes: Axes, scores: Sequence[tuple[int, float]], metric: str) -> None:
    _tidy(axes, f"validation {metric}")
    if not scores:
        _say(axes, "the model was not evaluated while training")
        return
    steps, values = zip(*scores, strict=True)
    axes.plot(steps, values, color=METRIC_COLOUR, linewidth=1.6, marker="o", markersize=4)
    best_step, best = max(scores, key=lambda point: point[1])
    axes.plot([best_step], [best], marker="o", markersize=9, markerfacecolor="none", color=METRIC_COLOUR)
    on_the_right = best_step > 0.6 * max(steps)
    axes.annotate(
        f"best {best:.4f} at step {best_step:,}",
        (best_step, best),
        xytext=(-4 if on_the_right else 4, 10),
        textcoords="offset points",
        ha="right" if on_the_right else "left",
        color=METRIC_COLOUR,
    )
    axes.margins(y=0.3)


def _write_counts(axes: Axes, counts: Any, shares: Any) -> None:
    """Counts in the cells, and shares below them where there is room; white on dark cells."""
    size = len(counts)
    with_share = size <= 8
    for (truth, predicted), count in ((place, counts[place]) for place in _places(size)):
        share = shares[truth, predicted]
        text = f"{count:,}\n{share:.0%}" if with_share and count else f"{count:,}" if count else "·"
        colour = "white" if share > 0.55 else INK if count else "#a8b3bd"
        axes.text(predicted, truth, text, ha="center", va="center", color=colour, fontsize=10 if size <= 12 else 8.5)


def _places(size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size) for column in range(size)]


def _frame_cells(axes: Axes, size: int) -> None:
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([i - 0.5 for i in range(1, size)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, size)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if size <= MOST_LABELS_WITH_COUNTS else 0.4)
    axes.tick_params(which="minor", length=0)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=LOSS_COLOUR)
    axes.set_yticks([])


def _shortened(label: str) -> str:
    short = label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$")  # matplotlib takes a pair of dollars for a formula


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG whose bytes depend on nothing but what is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return path
