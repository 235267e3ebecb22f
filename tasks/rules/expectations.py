"""What the clean rows as a whole must look like: every expectation that is not met is a problem of its own."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.data import Expectations
from schemas.errors import Problem


def unmet(
    expect: Expectations, *, rows: int, labels: Mapping[str, int], lacking: Mapping[str, int], collected: int
) -> list[Problem]:
    """The expectations that are not met.

    Args:
        expect: The recipe's.
        rows: Rows kept.
        labels: Label → rows kept; none where the task has no labels.
        lacking: Column → collected rows that lack a value there.
        collected: Rows collected.
    """
    problems = []
    if rows < expect.min_rows:
        problems.append(
            Problem("clean.expect.min_rows", expect.min_rows, f"{rows:,} rows are left", "collect more, or lower it")
        )
    scarce = [f"{label} {count:,}" for label, count in sorted(labels.items()) if count < expect.min_rows_per_label]
    if scarce:
        rule = f"too few rows of {', '.join(scarce)}"
        problems.append(
            Problem(
                "clean.expect.min_rows_per_label", expect.min_rows_per_label, rule, "collect more of them, or lower it"
            )
        )
    return problems + _too_common(expect, rows, labels) + _too_often_missing(expect, lacking, collected)


def _too_common(expect: Expectations, rows: int, labels: Mapping[str, int]) -> list[Problem]:
    limit = expect.max_label_share
    if limit is None or not labels or not rows:
        return []
    return [
        Problem(
            "clean.expect.max_label_share", limit, f"{count / rows:.1%} of {rows:,} rows are {label}",
            "collect more of the others, or raise it",
        )
        for label, count in sorted(labels.items()) if count / rows > limit
    ]  # fmt: skip


def _too_often_missing(expect: Expectations, lacking: Mapping[str, int], collected: int) -> list[Problem]:
    problems = []
    for column, limit in sorted(expect.max_missing.items()):
        field = f"clean.expect.max_missing.{column}"
        count = lacking.get(column, lacking.get(f"meta.{column}"))
        if count is None:
            known = ", ".join(name.removeprefix("meta.") for name in sorted(lacking))
            problems.append(Problem(field, limit, "the rows have no such column", f"name one of {known}"))
        elif collected and count / collected > limit:
            rule = f"{count / collected:.1%} of {collected:,} rows lack a value"
            problems.append(Problem(field, limit, rule, "fill them in at the source, or raise it"))
    return problems
