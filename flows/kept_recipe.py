"""What a search and a comparison end with alike: where the recipe goes that they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import Problem, RecipeError
from schemas.found import FoundRecipe

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = "tuned"
"""Of the home: the recipes that were found."""
WIDTH = 112
"""Characters of a line where the output is no terminal: their tables are wide."""


def refuse_other_folder(path: Path, write: Path | None) -> None:
    """Raise RecipeError where a copy of a recipe would mean other files by its relative paths."""
    if write is not None and write.resolve().parent != path.resolve().parent:
        rule = f"must be in the folder of {path.name}: paths in a recipe are relative to it"
        raise RecipeError(Problem("--write", str(write), rule, f"write {path.parent / write.name}"))


def keep(found: FoundRecipe, path: Path, write: Path | None) -> Path:
    """Write the recipe that was found: the file it began with, changed, to `write`; else a whole one into the home.

    Args:
        found: Says what changed.
        path: The recipe it began with.
        write: Where to; it may be the recipe itself.
    """
    from tasks.digests import write_atomically
    from tasks.home import Home
    from tasks.recipe_yaml import edited

    if write is not None:
        write_atomically(write, edited(path, found.changes))
        return write
    file = Home.open(path).root / FOLDER / f"{found.recipe}.yaml"
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, found.recipe_yaml)
    return file


def print_end(console: Console, found: FoundRecipe, file: Path, about: str = "") -> None:
    """The last lines for a person: on which rows, how long, where the recipe is, and what the pipeline made of it.

    Args:
        console: Where to.
        found: What was found.
        file: The recipe.
        about: What comes before the number of rows.
    """
    from rich.padding import Padding
    from rich.text import Text

    lines = [
        f"{about}on {found.validation_rows:,} validation rows; the test rows played no part",
        f"{found.seconds:.1f} s in all; MLflow run {found.mlflow_url or found.mlflow_run_id}",
        f"The recipe: {file}",
    ]
    if found.ran is not None:
        version = found.ran["model"]
        lines.append(f"Run: {version['name']} version {version['version']}, {found.ran['gate']['decision']}")
    console.print(Padding(Text("\n".join(lines), style="dim"), (1, 2)))
