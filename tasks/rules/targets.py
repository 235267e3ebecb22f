"""Rules that put a target right: white space around it, and other spellings of a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from schemas.errors import Problem, RecipeError

if TYPE_CHECKING:
    import polars as pl


def strip(targets: pl.Series) -> pl.Series:
    """Each target without white space around it."""
    return targets.str.strip_chars()


def folded(aliases: Mapping[str, str]) -> dict[str, str]:
    """The recipe's `label_aliases` by what they are compared by.

    Raises:
        RecipeError: Two spellings that are compared as one mean two labels.
    """
    meant: dict[str, str] = {}
    for spelling, label in aliases.items():
        if meant.setdefault(_comparable(spelling), label) != label:
            rule = f"means {meant[_comparable(spelling)]!r} too: case and outer white space do not count"
            raise RecipeError(Problem("clean.label_aliases", spelling, rule, "remove one of them"))
    return meant


def replace_aliases(targets: pl.Series, aliases: Mapping[str, str]) -> pl.Series:
    """Each target by its proper name.

    Args:
        targets: Labels.
        aliases: What `folded` made of the recipe's.
    """
    import polars as pl

    spellings = targets.drop_nulls().unique().to_list()
    proper = {spelling: aliases.get(_comparable(spelling), spelling) for spelling in spellings}
    changed = {spelling: label for spelling, label in proper.items() if spelling != label}
    return targets.replace(changed) if changed else targets.cast(pl.String)


def _comparable(spelling: str) -> str:
    return spelling.strip().casefold()
