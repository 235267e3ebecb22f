"""Pictures of a search, in the style of `tasks.plots`: what matters, what goes together, and how trials went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.tune import Range, Space, Trial
from tasks.plots import INK, METRIC_COLOUR, new_figure, save, tidy
from tasks.space import said

FEWEST = 2
"""Trials and fields below which nothing goes together with anything."""


def draw(
    trials: Sequence[Trial], space: Space, importance: Mapping[str, float], *, metric: str, out: Path
) -> dict[str, str]:  # fmt: skip
    """Draw what there is enough of.

    Args:
        trials: All.
        space: What was tried.
        importance: Field → share of the variation.
        metric: Its name.
        out: Where to write.

    Returns:
        Name of each file → its title.
    """
    pictures = {}
    if importance:
        _importance(importance, metric, out / "importance.png")
        pictures["importance.png"] = "What explains the variation"
    complete = [trial for trial in trials if trial.state == "complete" and trial.values]
    if len(complete) >= FEWEST and len(space) >= FEWEST:
        _parallel(complete, space, metric, out / "parallel.png")
        pictures["parallel.png"] = "Each line is a trial"
    if any(trial.course for trial in trials):
        _courses(trials, metric, out / "trials.png")
        pictures["trials.png"] = "The trials as they learnt"
    return pictures


def _importance(importance: Mapping[str, float], metric: str, path: Path) -> None:
    """A bar for each field, the longest on top."""
    fields = sorted(importance, key=importance.__getitem__)
    figure = new_figure(7.2, 1.0 + 0.34 * len(fields))
    axes = figure.subplots()
    tidy(axes, f"what explains the variation of {metric}")
    axes.barh(range(len(fields)), [importance[field] for field in fields], color=METRIC_COLOUR, height=0.6)
    axes.set_yticks(range(len(fields)), fields)
    axes.set_xlim(0, 1)
    save(figure, path)


def _parallel(trials: Sequence[Trial], space: Space, metric: str, path: Path) -> None:
    """An axis for each field and one for the metric; a line through all of them for each trial, the best ones dark."""
    from matplotlib import colormaps

    fields = [field for field in space if any(field in trial.values for trial in trials)]
    values = sorted(trial.value for trial in trials if trial.value is not None)
    low, high = values[0], values[-1]
    figure = new_figure(max(7.2, 1.25 * (len(fields) + 1)), 4.4)
    axes = figure.subplots()
    tidy(axes, f"each line is a trial; dark ones have the best {metric}")
    colours = colormaps["viridis_r"]
    for trial in sorted(trials, key=lambda one: one.value or 0.0):
        assert trial.value is not None
        good = (trial.value - low) / (high - low) if high > low else 1.0
        heights = [_height(space[field], trial.values.get(field)) for field in fields]
        axes.plot(range(len(fields) + 1), [*heights, good], color=colours(0.1 + 0.9 * good), alpha=0.75, linewidth=1.3)
    for place, field in enumerate(fields):
        for height, text in _ticks(space[field]):
            axes.annotate(text, (place, height), fontsize=7, color=INK, xytext=(3, 0), textcoords="offset points")
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4f}", (len(fields), height), fontsize=7, xytext=(3, 0), textcoords="offset points")
    for place in range(len(fields) + 1):
        axes.axvline(place, color=INK, linewidth=0.6, alpha=0.5)
    names = [field.rpartition(".")[2] for field in fields]
    axes.set_xticks(range(len(fields) + 1), [*names, metric], rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    save(figure, path)


def _courses(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """The metric on validation as each trial learnt; given up ones end early."""
    figure = new_figure(7.2, 4.0)
    axes = figure.subplots()
    tidy(axes, f"validation {metric} of each trial as it learnt")
    best = max((t for t in trials if t.state == "complete"), key=lambda t: t.value or 0.0, default=None)
    for trial in trials:
        shares = sorted(trial.course)
        ahead = trial is best
        given_up = trial.state == "pruned"
        axes.plot(
            shares, [trial.course[share] for share in shares], marker="x" if given_up else "o", markersize=4,
            color=METRIC_COLOUR if ahead else INK, alpha=1.0 if ahead else 0.35, linewidth=2.0 if ahead else 1.0,
            label=f"trial {trial.number}" if ahead else None,
        )  # fmt: skip
    axes.set_xlabel("share of the training; crosses: given up")
    if best is not None:
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    save(figure, path)


def _height(dimension: Any, value: Any) -> float:
    """Where on its axis a value lies, 0 to 1; a field that the trial did not have lies in the middle."""
    from math import log

    if not isinstance(dimension, Range):
        return list(dimension).index(value) / (len(dimension) - 1) if value in dimension else 0.5
    if value is None:
        return 0.5
    low, high, at = (log(v) for v in (dimension.low, dimension.high, value)) if dimension.log else (
        dimension.low, dimension.high, value,
    )  # fmt: skip
    return float((at - low) / (high - low))


def _ticks(dimension: Any) -> list[tuple[float, str]]:
    if isinstance(dimension, Range):
        return [(0.0, f"{dimension.low:.3g}"), (1.0, f"{dimension.high:.3g}")]
    return [(place / (len(dimension) - 1), said(choice)) for place, choice in enumerate(dimension)]
