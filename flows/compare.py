"""`hone compare`: which base model and which method to have."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.kept_recipe import WIDTH, keep, print_end, refuse_other_folder
from flows.run import Runs, watched
from schemas.comparison import Candidates, Comparison
from schemas.errors import Problem, RecipeError
from schemas.loading import load_recipe

OPTIONS = {"bases": "base", "methods": "method"}
"""Field → its option, where that is another word."""


def compare(
    path: Path, overrides: Sequence[str], candidates: Mapping[str, Any], *, write: Path | None, then_run: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Compare base models and methods on a recipe's rows.

    Args:
        path: The recipe.
        overrides: Of its fields.
        candidates: Fields of `schemas.comparison.Candidates`; the path of a base model is relative to the recipe.
        write: Where the recipe's own file goes, with what was chosen; default: a whole recipe in the home.
        then_run: Run the pipeline with what was chosen.
        as_json: Print one JSON object.
    """
    recipe, asked = load_recipe(path, overrides), _asked(candidates)
    refuse_other_folder(path, write)
    bases = tuple(load_recipe(path, [*overrides, f"model.base={base}"]).model.base for base in asked.bases)

    def chosen() -> Runs:
        from flows.comparing import compare as flow

        return flow

    found: Comparison = watched(path, recipe, chosen, asked.model_copy(update={"bases": bases}), then_run)
    file = keep(found, path, write)
    if as_json:
        print(found.model_dump_json())
    else:
        _print(found, file)
    return 0


def _asked(candidates: Mapping[str, Any]) -> Candidates:
    """What is compared.

    Raises:
        RecipeError: An option means nothing.
    """
    try:
        return Candidates.model_validate(candidates)
    except ValidationError as error:
        problems = [
            Problem(
                f"--{str(each['loc'][0]).removesuffix('s')}", each["input"], _lower(each["msg"]), "change it to fit"
            )
            for each in error.errors(include_url=False)
        ]
        raise RecipeError(problems) from error


def _lower(rule: str) -> str:
    return rule[:1].lower() + rule[1:]


def _print(found: Comparison, file: Path) -> None:
    """The same as a person enjoys reading it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from tasks.comparing import row_of
    from tasks.space import said

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", found.metric, "behind the best", "ms", "MB", "training s"):
        table.add_column(name, no_wrap=True, justify="left" if name in {"", found.metric} else "right")
    for one in found.candidates:
        name, value, behind, latency, _, size, _, seconds, *_ = row_of(one)
        style = "bold" if one.name == found.chosen else "dim" if one.trivial else ""
        table.add_row(name, "failed" if one.value is None else value, behind, latency, size, seconds, style=style)
    console.print(Padding(table, (1, 2, 0, 2)))
    for one in found.candidates:
        if one.value is None:
            console.print(Padding(Text(f"{one.name}: {one.told}", style="yellow"), (1, 2, 0, 2)))
    console.print(Padding(Text(found.told, style="bold green"), (1, 2, 0, 2)))
    for field, (before, after) in found.changes.items():
        console.print(Padding(Text(f"{field}: {said(before)} → {said(after)}"), (0, 2)))
    print_end(console, found, file)
