"""What a search and a comparison end with alike: where the recipe goes that they found."""

from __future__ import annotations

from pathlib import Path

from schemas.comparison import Comparison
from schemas.errors import Problem, RecipeError
from schemas.tune import Tuned

FOLDER = "tuned"
"""Of the home: the recipes that were found."""
WIDTH = 112
"""Characters of a line where the output is no terminal: their tables are wide."""


def refuse_other_folder(path: Path, write: Path | None) -> None:
    """Raise RecipeError where a copy of a recipe would mean other files by its relative paths."""
    if write is not None and write.resolve().parent != path.resolve().parent:
        rule = f"must be in the folder of {path.name}: paths in a recipe are relative to it"
        raise RecipeError(Problem("--write", str(write), rule, f"write {path.parent / write.name}"))


def keep(found: Tuned | Comparison, path: Path, write: Path | None) -> Path:
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
