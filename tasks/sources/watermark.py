"""Watermarks of tables that are only appended to: which ranges of a growing column were seen, and what is new.

A range is known by its bounds and its number of rows: when a row appears in an old range (a transaction that ended
late) or goes from it, that range is read again, and no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from schemas.errors import DataError, Problem
from tasks.digests import write_atomically

FIELD = "collect.source.watermark_column"
TYPES: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "int": (int, int),
    "float": (float, float),
    "text": (str, str),
    "datetime": (datetime, datetime.fromisoformat),
    "date": (date, date.fromisoformat),
    "decimal": (Decimal, Decimal),
}
"""Tag in the journal → type of a value, and how it comes back from JSON; a datetime is a date, too, so it is first."""

UP_TO = "COUNT(CASE WHEN {column} <= :hone_up_to THEN 1 END)"

Ask = Callable[[str, Mapping[str, Any]], Sequence[Any]]
"""Runs `SELECT <expressions of {column}> FROM <the query>` with values, and gives the one row."""


@dataclass(frozen=True)
class Range:
    """Rows whose watermark is above `above`, where there is a bound, and at most `up_to`."""

    above: Any
    up_to: Any
    rows: int

    def __str__(self) -> str:
        return f"<= {self.up_to}" if self.above is None else f"> {self.above}, <= {self.up_to}"

    def condition(self, column: str) -> tuple[str, dict[str, Any]]:
        """SQL that is true of its rows, and the values in it."""
        below = {"hone_up_to": self.up_to}
        if self.above is None:
            return f"{column} <= :hone_up_to", below
        return f"{column} > :hone_above AND {column} <= :hone_up_to", below | {"hone_above": self.above}

    def as_json(self) -> dict[str, Any]:
        """The range as JSON values, the bounds with their types."""
        return {"above": _tagged(self.above), "up_to": _tagged(self.up_to), "rows": self.rows}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Range:
        """The range that `as_json` described."""
        return Range(_untagged(data["above"]), _untagged(data["up_to"]), data["rows"])


def ranges(note: Path, column: str, ask: Ask) -> list[Range]:
    """The ranges of all rows there are now; what is new is one more, and is noted.

    Args:
        note: File of the journal that remembers them.
        column: The watermark's column, for errors.
        ask: Asks the database.

    Raises:
        DataError: Rows without a watermark, a column of another type, or a maximum that shrank.
    """
    seen = [Range.from_json(entry) for entry in json.loads(note.read_text())] if note.exists() else []
    last = seen[-1].up_to if seen else None
    counts = "COUNT(*), COUNT({column}), MAX({column})"
    if last is None:
        (rows, marked, maximum), reached, known = ask(counts, {}), 0, 0
    else:  # the database compares, because it alone knows the order of its texts
        reaching = "COUNT(CASE WHEN {column} >= :hone_last THEN 1 END)"
        asked = f"{counts}, {reaching}, {UP_TO.replace(':hone_up_to', ':hone_last')}"
        rows, marked, maximum, reached, known = ask(asked, {"hone_last": last})
    if marked < rows:
        rule = f"{rows - marked} of {rows} rows have none: no run would ever read them"
        raise _mistake(column, rule, "fill the column, or leave these rows out in the query")
    if last is not None and (not reached or _order(maximum) != _order(last)):
        rule = f"its maximum was {last!r} and is {maximum!r}: the table was not only appended to"
        raise _mistake(column, rule, f"to read it anew, delete {note}")
    now = seen if known == sum(one.rows for one in seen) else _recounted(seen, ask)
    if marked > known:
        if _tag(maximum) is None:
            rule = f"holds {type(maximum).__name__} values, whose order cannot be kept"
            raise _mistake(column, rule, "name a column of numbers, texts or times")
        now = [*now, Range(last, maximum, marked - known)]
    if now != seen:
        write_atomically(note, json.dumps([one.as_json() for one in now]))
    return now


def _recounted(seen: Sequence[Range], ask: Ask) -> list[Range]:
    """The ranges with the rows they have now, counted from the last one back until all before it are as they were."""

    def count(place: int) -> int:
        """Rows of this range and all before it."""
        return int(ask(UP_TO, {"hone_up_to": seen[place].up_to})[0]) if place >= 0 else 0

    now = list(seen)
    place, here = len(now) - 1, count(len(now) - 1)
    while here != sum(one.rows for one in seen[: place + 1]):
        before = count(place - 1)
        now[place] = replace(now[place], rows=here - before)
        place, here = place - 1, before
    return now


def _order(value: Any) -> str | None:
    """What a value can be compared with: all numbers are of one kind."""
    tag = _tag(value)
    return "number" if tag in {"int", "float", "decimal"} else tag


def _tag(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    return next((tag for tag, (kind, _) in TYPES.items() if isinstance(value, kind)), None)


def _tagged(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, int | float | str):
        return {"type": _tag(value), "value": value}
    return {"type": _tag(value), "value": value.isoformat() if isinstance(value, date) else str(value)}


def _untagged(data: Mapping[str, Any] | None) -> Any:
    return None if data is None else TYPES[data["type"]][1](data["value"])


def _mistake(column: str, rule: str, remedy: str) -> DataError:
    return DataError(Problem(FIELD, column, rule, remedy))
