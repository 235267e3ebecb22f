"""Where rows come from. Every connector offers `pieces(source, home)`: what the source holds, in parts with a digest.

A piece is a file, a split of a data set, the rows of a query. What its content is known by (its digest) is found out
when the pieces are listed; the rows are read, batch by batch, only when no artifact of that digest is in the store.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Problem
from schemas.sources import Source
from tasks.home import Home

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Wanted = Mapping[str, str]
"""Recipe field, such as `task.text_column` → the source's column that it names."""

FILES = "tasks.sources.files"
CONNECTORS = {
    "csv": FILES,
    "jsonl": FILES,
    "parquet": FILES,
    "squad": FILES,
    "gettext": FILES,
    "conll": FILES,
    "hub": "tasks.sources.hub",
    "sql": "tasks.sources.sql",
    "python": "tasks.sources.python",
}
"""Kind of source → the module that lists its pieces."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a piece.

    Attributes:
        columns: Names of everything the source has.
        numbers: Number of each row in the piece, from 1; u32.
        values: The columns asked for and no others, each once, all of them text.
        unreadable: Row number, raw text and reason of what was met while reading this batch and is no row.
    """

    columns: Sequence[str]
    numbers: np.ndarray[Any, Any]
    values: pl.DataFrame
    unreadable: Sequence[tuple[int, str, str]] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read, and found again, as one.

    Attributes:
        name: What its rows' `source` says; short, and no other piece's.
        digest: What its content is known by: equal digests, equal rows.
        field: The recipe's field it comes from, for errors.
        side: The official side of all its rows, where it has one.
        read: Its rows in batches. What may change without the rows changing (paths, connections) is in the closure.
    """

    name: str
    digest: str
    field: str
    side: str | None
    read: Callable[[Wanted], Iterator[Batch]]


def pieces(source: Source, home: Home) -> list[Piece]:
    """What the source holds now, in an order that depends on nothing but names.

    Raises:
        DataError: The source is not there or not what the recipe says.
        EnvironmentMistake: What it takes to read it is not installed.
        Fault: It did not answer; worth another try.
    """
    found: list[Piece] = import_module(CONNECTORS[source.kind]).pieces(source, home)
    return found


def asked(wanted: Wanted) -> list[str]:
    """Names of the columns to read, each once."""
    return list(dict.fromkeys(wanted.values()))


def require_columns(wanted: Wanted, found: Sequence[str], name: str) -> None:
    """Check that each column wanted is there exactly once.

    Args:
        wanted: Recipe field → column.
        found: All columns of the source.
        name: The piece, for the error.

    Raises:
        DataError: Some are not; all of them are named.
    """
    problems = []
    for field, column in wanted.items():
        times = found.count(column)
        if times > 1:
            problems.append(Problem(field, column, f"{name} has {times} columns of this name", "rename all but one"))
        elif times == 0:
            rule = f"{name} has no such column, but {listed(repr(name) for name in found)}"
            problems.append(Problem(field, column, rule, _remedy_for_missing(column, found)))
    if problems:
        raise DataError(problems)


def refusal(field: str, location: str, rule: str, remedy: str) -> DataError:
    """The mistake that a location is."""
    return DataError(Problem(field, location, rule, remedy))


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _remedy_for_missing(column: str, found: Sequence[str]) -> str:
    folded = {name.strip().casefold(): name for name in found}
    close = difflib.get_close_matches(column.strip().casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else "name one of them"
