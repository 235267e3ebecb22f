"""Pictures of a data report, in the style of `tasks.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.data_profile import edges
from tasks.plots import FAINT, INK, LOSS_COLOUR, METRIC_COLOUR, new_figure, save, shortened, tidy

MOST_BARS = 15
OUTCOME_COLOURS = {"kept": METRIC_COLOUR, "quarantined": "#d98324", "leaked": INK}
SIDE_COLOURS = {"train": METRIC_COLOUR, "validation": "#7fb3cb", "test": INK}


def outcomes(sources: Mapping[str, Mapping[str, int]], path: Path) -> Path:
    """Draw the share of each source's rows by outcome, the largest sources first.

    Args:
        sources: Source → outcome → rows.
        path: The PNG to write.
    """
    shown = sorted(sources.items(), key=lambda item: (-sum(item[1].values()), item[0]))[:MOST_BARS]
    figure = new_figure(7.2, 1.2 + 0.34 * len(shown))
    axes = figure.subplots()
    left = [0.0] * len(shown)
    for outcome, colour in OUTCOME_COLOURS.items():
        shares = [rows.get(outcome, 0) / max(1, sum(rows.values())) for _, rows in shown]
        axes.barh(range(len(shown)), shares, left=left, color=colour, height=0.7, label=outcome)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    names = [f"{shortened(source)}  ({sum(rows.values()):,})" for source, rows in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    tidy(axes, "rows by source")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return save(figure, path)


def labels(shares: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Draw the share of each label on each side.

    Args:
        shares: Side → label → share of the side's rows.
        path: The PNG to write.
    """
    names = list(next(iter(shares.values())))
    names = sorted(names, key=lambda name: (-next(iter(shares.values()))[name], name))[:MOST_BARS]
    figure = new_figure(max(4.8, min(12.0, 1.2 * len(names) + 1)), 3.4)
    axes = figure.subplots()
    width = 0.8 / len(shares)
    for place, (side, found) in enumerate(shares.items()):
        left = [i + (place - (len(shares) - 1) / 2) * width for i in range(len(names))]
        axes.bar(left, [found.get(name, 0) for name in names], width * 0.92, color=SIDE_COLOURS[side], label=side)
    axes.set_xticks(range(len(names)), [shortened(name) for name in names])
    if len(names) > 6:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    tidy(axes, "labels by side")
    axes.legend(frameon=False)
    return save(figure, path)


def lengths(after: Sequence[int], before: Sequence[int] | None, path: Path) -> Path:
    """Draw the share of rows by number of characters, with the snapshot before as an outline.

    Args:
        after: Rows by bin of `tasks.data_profile.edges`.
        before: The same of the snapshot before.
        path: The PNG to write.
    """
    bounds, now = _coarse(after)
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    axes.stairs(now, bounds, fill=True, color=METRIC_COLOUR, alpha=0.85, label="this snapshot")
    if before is not None:
        axes.stairs(_coarse(before)[1], bounds, color=LOSS_COLOUR, linewidth=1.6, label="the one before")
        axes.legend(frameon=False)
    shown = [i for i, share in enumerate(now) if share]
    if shown:
        axes.set_xlim(max(1, bounds[shown[0]]), bounds[shown[-1] + 1])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda chars, _: f"{chars:,.0f}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("characters")
    tidy(axes, "rows by length")
    axes.tick_params(axis="x", color=FAINT)
    return save(figure, path)


def _coarse(counts: Sequence[int]) -> tuple[list[float], list[float]]:
    """Four bins for every doubling, as wide on the logarithmic axis as each other, and their shares of the rows."""
    import numpy as np

    starts = edges()
    bounds = np.unique(np.ceil(2 ** (np.arange(4 * 24 + 2) / 4)).astype(int))
    places = np.searchsorted(bounds, np.maximum(starts, 1), side="right") - 1
    summed = np.bincount(places, weights=np.asarray(counts, dtype=float), minlength=len(bounds))
    shares = summed / max(1.0, summed.sum())
    return [*bounds.tolist(), float(2 * bounds[-1])], shares.tolist()
