"""What is said of a finished split: refused when a side cannot be used, measured, and warned about."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import ceil, sqrt

from schemas.data import Split
from schemas.errors import DataError, Problem

log = logging.getLogger(__name__)

FEW_TEST_ROWS = 200
UNLIKELY = 0.001
NOTABLE_SHIFT = 0.05
DIFFERING = 0.1
"""Share of the rows that only one of two models worth comparing gets right."""
Z_95, Z_80 = 1.959964, 0.841621
"""Quantiles of the normal distribution: two-sided confidence 95 %, power 80 %."""


def label_shift(labels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """How unlike the whole each side's labels are; nothing where rows have no labels.

    Args:
        labels: Side → label → rows.

    Returns:
        Side → `largest`: largest absolute difference of a label's share from the whole; `p`: of a chi-square test of
        this side against the others.
    """
    import numpy as np
    from scipy.special import chdtrc  # scipy.stats has the test whole, and takes a third of a second to import

    names = sorted({name for counts in labels.values() for name in counts})
    if len(names) < 2:
        return {}
    table = {side: np.array([counts.get(name, 0) for name in names]) for side, counts in labels.items()}
    whole = np.sum(list(table.values()), axis=0)
    shifts = {}
    for side, counts in table.items():
        if 0 < counts.sum() < whole.sum():
            share, of_whole = counts / counts.sum(), whole / whole.sum()
            # Both sides' squares: what the others lack, this one has.
            square = ((share - of_whole) ** 2 / of_whole).sum() * counts.sum() / (1 - counts.sum() / whole.sum())
            p = chdtrc(len(names) - 1, square)
            shifts[side] = {"largest": float(np.abs(share - of_whole).max()), "p": float(p)}
    return shifts


def smallest_visible_difference(rows: int, differing: float = DIFFERING) -> float:
    """The smallest gain in accuracy d that `rows` test rows show at 95 % confidence and 80 % power, both models paired.

    Solves n = (z₉₅ √ψ + z₈₀ √(ψ - d²))² / d² for d, with ψ the share of rows that only one of the models gets right:
    Connor, Sample size for testing differences in proportions for the paired-sample design, Biometrics 43 (1987).
    More than ψ means that no gain can be seen while so few rows differ. Where rows score between 0 and 1, ψ is the mean
    square of the differences between the models' scores: ψ - d² is their variance, as it is with right and wrong.

    Args:
        rows: Test rows.
        differing: ψ.
    """
    alpha, beta = Z_95**2 * differing, Z_80**2
    root = sqrt(max(alpha * rows - (rows + beta) * (alpha - beta * differing), 0.0))
    return (sqrt(alpha * rows) + root) / (rows + beta)


def rows_to_see(gain: float, differing: float = DIFFERING) -> int | None:
    """Test rows that show a gain in accuracy; see `smallest_visible_difference`. None where it is more than ψ."""
    if gain > differing:
        return None
    return ceil((Z_95 * sqrt(differing) + Z_80 * sqrt(differing - gain**2)) ** 2 / gain**2)


def refuse_unusable(
    split: Split, counts: Mapping[str, int], labels: Mapping[str, Mapping[str, int]], every_label: set[str]
) -> None:
    """Raise everything at once that keeps the split from being used.

    Args:
        split: How sides were decided, and what is asked of them.
        counts: Rows of each side, and `leaked`.
        labels: Every side → label → rows.
        every_label: Labels that the clean rows have.

    Raises:
        DataError: A side is empty or too small, or lacks a label.
    """
    empty = [side for side in labels if not counts[side]]
    lacking = sorted(every_label - set(labels["train"]))
    problems = [_empty(split, counts, side) for side in empty]
    if lacking and not empty:
        remedy = "remove the label or collect rows that have it"
        problems.append(Problem("task.labels", lacking, "no training row has this label", remedy))
    remedy = "collect more rows, or ask for fewer"
    for side in (side for side in labels if side not in empty):
        if counts[side] < split.min_rows:
            problems.append(Problem("split.min_rows", split.min_rows, f"{side} has {counts[side]:,} rows", remedy))
        few = [
            f"{labels[side].get(label, 0):,} of {label!r}"
            for label in sorted(every_label)
            if labels[side].get(label, 0) < split.min_rows_per_label and not (side == "train" and label in lacking)
        ]
        if few:
            rule = f"{side} has {', '.join(few)}"
            problems.append(Problem("split.min_rows_per_label", split.min_rows_per_label, rule, remedy))
    if problems:
        raise DataError(problems)


def warn(test_rows: int, visible: float, shifts: Mapping[str, Mapping[str, float]]) -> None:
    """Warn of sides unlike the whole, and of a test too small to decide much."""
    for side, shift in shifts.items():
        if shift["p"] < UNLIKELY and shift["largest"] > NOTABLE_SHIFT:
            points = 100 * shift["largest"]
            log.warning("labels of %s are unlike the whole: a share is off by %.1f points", side, points)
    if test_rows < FEW_TEST_ROWS:
        log.warning(
            "the test has %s rows: differences below %.1f points cannot be seen", f"{test_rows:,}", 100 * visible
        )


def _empty(split: Split, counts: Mapping[str, int], side: str) -> Problem:
    taken = f" after {counts['leaked']} that leaked were taken" if counts["leaked"] else ""
    remedy = {
        "hash": "collect more rows, or give this side a larger share",
        "official": "name its source",
        "time": "move the boundaries, or collect rows of its time",
    }[split.kind]
    return Problem("split", split.kind, f"none of {sum(counts.values()):,} rows is for {side}{taken}", remedy)
