"""`hone curve`: the metric against the number of training rows, and what more of them would add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from flows.run import Runs, watched
from schemas.curve import MOST_SEEDS, SHARES, Curve, CurveVerdict
from schemas.errors import Problem, RecipeError
from schemas.loading import load_recipe

STYLES: dict[CurveVerdict, str] = {"rises": "bold green", "flat": "bold", "undecided": "bold yellow"}


def curve(path: Path, overrides: Sequence[str], *, shares: str | None, seeds: int, as_json: bool) -> int:
    """Draw a recipe's learning curve.

    Args:
        path: The recipe.
        overrides: Of its fields.
        shares: Of the training rows, with commas between them; default: `SHARES`.
        seeds: Trainings of each share.
        as_json: Print one JSON object.
    """
    recipe, asked = load_recipe(path, overrides), _asked(shares, seeds)

    def chosen() -> Runs:
        from flows.learning_curve import curve as flow

        return flow

    found: Curve = watched(path, recipe, chosen, *asked)
    if as_json:
        print(found.model_dump_json())
    else:
        _print(found)
    return 0


def _asked(shares: str | None, seeds: int) -> tuple[tuple[float, ...], int]:
    """The flow's parameters.

    Raises:
        RecipeError: A share is no number above 0 and up to 1, or there are too many seeds.
    """
    problems = []
    found = SHARES if shares is None else tuple(_number(share) for share in shares.split(","))
    if not all(0 < share <= 1 for share in found):
        rule = "must be numbers above 0 and up to 1, with commas between them"
        problems.append(Problem("--shares", shares, rule, "write them such as 0.05,0.1,0.25,0.5,1"))
    if not 1 <= seeds <= MOST_SEEDS:
        problems.append(Problem("--seeds", seeds, f"must be 1 to {MOST_SEEDS}", "three are a good start"))
    if problems:
        raise RecipeError(problems)
    return found, seeds


def _number(text: str) -> float:
    """The number that this is, or one that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _print(found: Curve) -> None:
    """The same as a person enjoys reading it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from tasks.curve import shown

    console = Console(highlight=False)
    points = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("share", "rows", "steps"):
        points.add_column(name, justify="right")
    points.add_column(f"validation {found.metric}")
    for point in found.points:
        points.add_row(f"{point.share:g}", f"{point.rows:,}", f"{point.steps:,}", shown(point.value))
    console.print(Padding(points, (1, 2, 0, 2)))
    more = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    more.add_column("with", justify="right")
    more.add_column(f"{found.metric} gained, as the curve foretells")
    for forecast in found.forecasts:
        more.add_row(f"{forecast.rows:,} rows", shown(forecast.gain, "+.3f"))
    if found.forecasts:
        console.print(Padding(more, (1, 2, 0, 2)))
    console.print(Padding(Text(found.told, style=STYLES[found.verdict]), (1, 2, 0, 2)))
    where = found.mlflow_url or found.mlflow_run_id
    about = f"on {found.validation_rows:,} validation rows; the test rows played no part"
    console.print(Padding(Text(f"{about}\n{found.seconds:.1f} s in all; MLflow run {where}", style="dim"), (1, 2)))
