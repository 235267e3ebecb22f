"""Pictures for reports and MLflow, drawn without a display and without matplotlib's global state.

Does not cover interactive charts: MLflow draws those from the metrics it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tasks.bootstrap import Floats
    from tasks.probabilities import Bins, Ranking

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
CURVE_COLOURS = (
    METRIC_COLOUR, "#d98324", "#3f9b63", "#b5434c", "#7a5ba6", "#8c6d3f", "#d36fa8", "#5c6b77", "#a8a32c", "#4bb3c9",
)  # fmt: skip
"""With more labels than colours, their curves are drawn as one."""
EXTREME_COLOURS = ("#3f9b63", "#b5434c")
UNCALIBRATED_COLOUR = "#d98324"
BAR_CONFIDENCE = 0.95
MOST_POINTS = 1_000
"""Of one curve."""
BAND = (0.1, 0.9)
"""Labels between which the band around an averaged curve lies, by their precision."""


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
    names = [shortened(label) for label in labels]
    side = min(16.0, max(3.4, 0.6 * size + 0.6))
    figure = new_figure(side + 2, side + 1)
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
    return save(figure, path)


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
    figure = new_figure(7.2, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_losses(upper, losses)
    _draw_scores(lower, scores, metric)
    lower.set_xlabel("optimiser step")
    lower.set_xlim(0, max([1, *(row["step"] for row in history)]) * 1.02)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save(figure, path)


def precision_recall(predictions: pl.DataFrame, labels: Sequence[str], path: Path) -> Path:
    """Draw precision against recall of each label against the rest; see `precision_recall_of`.

    Args:
        predictions: Columns truth, prediction and probabilities.
        labels: All labels, in the order of the probabilities.
        path: The PNG to write.
    """
    from tasks.classification import forecast
    from tasks.probabilities import rankings

    found = forecast(predictions, labels)
    ranked = () if found is None else rankings(found)
    return precision_recall_of([(labels[label], ranking) for label, ranking, _ in ranked], path)


def precision_recall_of(rankings: Sequence[tuple[str, Ranking]], path: Path) -> Path:
    """Draw precision against recall; with many labels their mean and a band around it.

    Args:
        rankings: Label, and the rows by its score.
        path: The PNG to write.
    """
    import numpy as np

    curves = _curves(rankings)
    figure = new_figure(7.4, 4.4)
    axes = figure.subplots()
    if not curves:
        tidy(axes, "precision by recall")
        _say(axes, "no label that some rows have and others do not")
        return save(figure, path)
    tidy(axes, f"precision by recall, AUPRC {np.mean([curve.area for curve in curves]):.3f}")
    if len(curves) <= len(CURVE_COLOURS):
        _draw_curves(axes, curves, CURVE_COLOURS)
    else:
        _draw_mean_curve(axes, curves)
    _percent_axes(axes)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, title="area below the curve", alignment="left")
    return save(figure, path)


def reliability(before: pl.DataFrame | None, after: pl.DataFrame, path: Path) -> Path:
    """Draw how often predictions of like top probability are right, above how many there are.

    Args:
        before: Predictions as the model makes them; none where only the others are known.
        after: The same rows, calibrated. Columns truth, prediction and probabilities.
        path: The PNG to write.
    """
    now, then = _binned(after), None if before is None else _binned(before)
    figure = new_figure(5.4, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error = f"{now.error:.3f}" if then is None else f"{then.error:.3f} before, {now.error:.3f} after calibration"
    tidy(upper, f"expected calibration error {error}")
    tidy(lower, "rows")
    upper.plot([0, 1], [0, 1], color=LOSS_COLOUR, linewidth=1, linestyle=(0, (4, 3)))
    if then is not None:
        _draw_bins(upper, lower, then, UNCALIBRATED_COLOUR, "before", surely=False)
    _draw_bins(upper, lower, now, METRIC_COLOUR, "all rows" if then is None else "after", surely=True)
    _percent_axes(upper)
    filled = now.rows > 0 if then is None else now.rows + then.rows > 0
    left = int(filled.argmax()) / len(filled)
    upper.set_xlim(left, 1 + (1 - left) / 60)
    upper.set_ylabel("share of right predictions")
    upper.legend(frameon=False, loc="lower right", fontsize=9)
    lower.yaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")
    lower.set_xlabel("probability of the predicted label")
    return save(figure, path)


@dataclass(frozen=True)
class _Curve:
    """Precision by recall of one label: at most `MOST_POINTS` points, recall rising to 1, and the area below all."""

    label: str
    recall: Floats
    precision: Floats
    area: float


def _curves(rankings: Sequence[tuple[str, Ranking]]) -> list[_Curve]:
    """Of each label, the largest area first."""
    import numpy as np

    from tasks.probabilities import auprc

    curves = []
    for label, ranking in rankings:
        recall = ranking.hits / ranking.hits[-1]
        places = np.arange(np.searchsorted(recall, 1) + 1)
        if len(places) > MOST_POINTS:
            places = np.unique(np.searchsorted(recall, np.linspace(0, 1, MOST_POINTS)))
        precision = ranking.hits[places] / (ranking.hits + ranking.misses)[places]
        curves.append(_Curve(label, recall[places], precision, auprc(ranking).value))
    return sorted(curves, key=lambda curve: -curve.area)


def _draw_curves(axes: Axes, curves: Sequence[_Curve], colours: Sequence[str]) -> None:
    for curve, colour in zip(curves, colours, strict=False):
        name = f"{curve.area:.3f}  {shortened(curve.label)}"
        recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]
        axes.plot(recall, precision, color=colour, linewidth=1.3, drawstyle="steps-pre", label=name)


def _draw_mean_curve(axes: Axes, curves: Sequence[_Curve]) -> None:
    """Mean precision over labels at every recall, where most labels are, and the best and the worst of them."""
    import numpy as np

    recall = np.linspace(0, 1, 201)
    precision = np.stack([curve.precision[np.searchsorted(curve.recall, recall)] for curve in curves])
    low, high = np.quantile(precision, BAND, axis=0)
    mean = float(np.mean([curve.area for curve in curves]))
    axes.plot(
        recall, precision.mean(0), color=METRIC_COLOUR, linewidth=1.8, label=f"{mean:.3f}  mean of {len(curves)} labels"
    )
    middle = f"{BAND[1] - BAND[0]:.0%} of the labels"
    axes.fill_between(recall, low, high, color=METRIC_COLOUR, alpha=0.15, linewidth=0, label=middle)
    _draw_curves(axes, [curves[0], curves[-1]], EXTREME_COLOURS)


def _binned(predictions: pl.DataFrame) -> Bins:
    import numpy as np

    from tasks.probabilities import binned

    confidence = predictions["probabilities"].list.max().to_numpy().astype(np.float64)
    return binned(confidence, (predictions["truth"] == predictions["prediction"]).to_numpy())


def _draw_bins(upper: Axes, lower: Axes, bins: Bins, colour: str, name: str, *, surely: bool) -> None:
    """Draw one model's bins; surely: with exact binomial intervals, and its rows as solid bars."""
    import numpy as np
    from scipy.stats import beta

    filled = bins.rows > 0
    rows, share, sure = bins.rows[filled], bins.accuracy[filled], bins.confidence[filled]
    upper.plot(sure, share, color=colour, marker="o", markersize=4, linewidth=1.4, label=name)
    if surely:
        right, tail = np.rint(rows * share), (1 - BAR_CONFIDENCE) / 2
        low = np.where(right > 0, beta.ppf(tail, np.maximum(right, 1), rows - right + 1), 0)
        high = np.where(right < rows, beta.ppf(1 - tail, right + 1, np.maximum(rows - right, 1)), 1)
        upper.vlines(sure, low, high, color=colour, linewidth=0.9, label=f"{BAR_CONFIDENCE:.0%} intervals")
    edges = np.linspace(0, 1, len(bins.rows) + 1)
    lower.stairs(bins.rows, edges, color=colour, fill=surely, linewidth=1.4, zorder=1 if surely else 2)


def _percent_axes(axes: Axes) -> None:
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.tick_params(axis="x", color=FAINT)


def _draw_losses(axes: Axes, losses: Sequence[tuple[int, float]]) -> None:
    import numpy as np

    tidy(axes, "training loss")
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
    tidy(axes, f"validation {metric}")
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


def tidy(axes: Axes, title: str) -> None:
    """Give a panel its title, and lines across at the ticks of the y axis in place of a frame."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=LOSS_COLOUR)
    axes.set_yticks([])


def shortened(label: str) -> str:
    """A label as it fits beside an axis."""
    short = label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$")  # matplotlib takes a pair of dollars for a formula


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG whose bytes depend on nothing but what is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return path
