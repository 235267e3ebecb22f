"""Corrections: files that put collected rows right by their id, label them late, or drop them.

A file has a column with the ids, any of the task's columns under their name in the source, and perhaps `drop`. A filled
cell replaces the row's value, an empty one leaves it; later lines and files win, cell by cell. Every row of the id is
corrected. All corrections are held in memory, as text and a digest of each id: about 100 bytes per late label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Problem
from tasks.home import Home
from tasks.sources import listed, refusal
from tasks.sources.files import SUFFIXES, read_file
from tasks.sources.locations import File, find

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

FIELD = "collect.corrections"
DROP = "drop"
ID = "id"
"""Column with the ids, where the recipe names no `id_column`."""
YES = ("true", "1", "yes")
NO = ("false", "0", "no")
SHOWN_IDS = 5
"""How many of the ids that name no row are shown."""


@dataclass(frozen=True)
class Corrections:
    """What the files say, one row per id.

    Attributes:
        rows: Columns `id`, those of the task's roles that are corrected (null: left as it is), and `drop`; ordered by
            the hash of the id.
        hashes: Hash of each id, ascending; it finds a row's correction and is kept nowhere.
        met: For each id whether a row had it.
    """

    rows: pl.DataFrame
    hashes: np.ndarray[Any, Any]
    met: np.ndarray[Any, Any] = field(repr=False)

    def concern(self, ids: pl.Series) -> bool:
        """Whether one of these rows is corrected; remembers which ids occurred."""
        places, there = self._places(ids)
        self.met[places[there]] = True
        return bool(there.any())

    def apply(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        """The rows put right, those to drop, as they were, and how many of the former have a correction."""
        import polars as pl

        places, there = self._places(rows["id"])
        found = self.rows[places].with_columns(pl.when(pl.Series(there)).then(pl.all()))
        roles = [name for name in self.rows.columns if name not in {ID, DROP}]
        dropped = found[DROP].fill_null(value=False)
        right = rows.with_columns(found[role].fill_null(rows[role]).alias(role) for role in roles)
        return right.filter(~dropped), rows.filter(dropped), int((~dropped & pl.Series(there)).sum())

    def _places(self, ids: pl.Series) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """For each row the place of its correction, and whether there is one."""
        import numpy as np

        if not len(self.hashes):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        places = np.searchsorted(self.hashes, ids.hash().to_numpy()).clip(max=len(self.hashes) - 1)
        same = self.rows[ID][places].rename("same") == ids
        return places, same.to_numpy().astype(bool)

    def summary(self) -> dict[str, Any]:
        """Number of ids, and which of them named no row: it may come later."""
        import polars as pl

        unmet = self.rows[ID].filter(pl.Series(~self.met)).sort()
        return {"ids": self.rows.height, "unknown_ids": len(unmet), "such_as": unmet.head(SHOWN_IDS).to_list()}


def correction_files(locations: Sequence[str], home: Home) -> dict[str, tuple[Path, str]]:
    """Digest of each file, in the order in which they apply → where it is on this machine, and its kind.

    Raises:
        DataError: A location means no file, or one that is neither CSV nor JSONL by its name.
    """
    suffixes = (*SUFFIXES["csv"], *SUFFIXES["jsonl"])
    found: dict[str, tuple[Path, str]] = {}
    for file in find(locations, suffixes, FIELD, home):
        digest = file.digest()
        found.pop(digest, None)  # of equal files the last one counts
        found[digest] = (file.fetch(digest), _kind(file))
    return found


def _kind(file: File) -> str:
    for kind in ("csv", "jsonl"):
        if file.name.lower().endswith(SUFFIXES[kind]):
            return kind
    raise refusal(FIELD, file.shown, "is neither CSV nor JSON lines", "name a .csv, .tsv, .jsonl or .ndjson file")


def load(files: Sequence[tuple[Path, str]], columns: Mapping[str, str], id_column: str | None) -> Corrections:
    """All corrections together.

    Args:
        files: Path and kind of each, in the order in which they apply.
        columns: Role → name of its column in the source.
        id_column: The recipe's; the files may call it `id` all the same.

    Raises:
        DataError: A file has a column that is no one's, a line that is no row, a row without an id, or a `drop` that
            is neither true nor false.
    """
    import numpy as np
    import polars as pl

    schema = pl.Schema({ID: pl.String, **dict.fromkeys(columns, pl.String), DROP: pl.Boolean})
    said = pl.concat([pl.DataFrame(schema=schema), *(_read(path, kind, columns, id_column) for path, kind in files)])
    values = [pl.col(name).drop_nulls().last() for name in schema if name != ID]
    rows = said.group_by(ID, maintain_order=True).agg(values)
    rows = rows.select(ID, *(name for name in columns if rows[name].count()), DROP)
    hashes = rows[ID].hash().to_numpy()
    order = np.argsort(hashes, kind="stable")
    return Corrections(rows[order], hashes[order], np.zeros(len(order), bool))


def _read(path: Path, kind: str, columns: Mapping[str, str], id_column: str | None) -> pl.DataFrame:
    """One file's rows, under the names of roles."""
    import polars as pl

    name_of_id, present = _columns_of(path, kind, columns, id_column)
    batches = _batches(path, kind, [name_of_id, *present])
    values = pl.concat([batch for _, batch in batches])
    filled = values.with_columns(pl.when(pl.all().str.strip_chars() != "").then(pl.all()))
    if filled[name_of_id].null_count():
        numbers = [number for batch_numbers, _ in batches for number in batch_numbers]
        number = numbers[filled[name_of_id].is_null().arg_true()[0]]
        raise refusal(FIELD, str(path), f"row {number} has no {name_of_id}", "name the row it corrects, or delete it")
    return filled.select(
        pl.col(name_of_id).str.strip_chars().alias(ID),
        *((pl.col(c) if c in present else pl.lit(None, pl.String)).alias(role) for role, c in columns.items()),
        _drops(filled[DROP], path) if DROP in present else pl.lit(None, pl.Boolean).alias(DROP),
    )


def _columns_of(path: Path, kind: str, columns: Mapping[str, str], id_column: str | None) -> tuple[str, list[str]]:
    """The file's column of ids, and its other ones."""
    found = [name for batch in _raw_batches(path, kind, []) for name in batch.columns]
    found = list(dict.fromkeys(found))
    name_of_id = id_column if id_column and id_column in found else ID
    known = [*dict.fromkeys(columns.values()), DROP]
    unknown = [name for name in found if name not in {*known, name_of_id}]
    if name_of_id not in found:
        rule = f"{path.name} has no such column, but {listed(map(repr, found))}"
        raise DataError(Problem(FIELD, id_column or ID, rule, "name the column with the ids of the rows so"))
    if unknown:
        remedy = f"name columns of the task ({listed(map(repr, known))}) or leave them out"
        raise refusal(FIELD, str(path), f"has columns that correct nothing: {listed(map(repr, unknown))}", remedy)
    return name_of_id, [name for name in known if name in found]


def _batches(path: Path, kind: str, wanted: Sequence[str]) -> list[tuple[Sequence[int], pl.DataFrame]]:
    found = []
    for batch in _raw_batches(path, kind, wanted):
        for number, raw, reason in batch.unreadable:
            remedy = "put the line right, or delete it"
            raise refusal(FIELD, str(path), f"row {number} is none: {reason}: {raw[:80]!r}", remedy)
        found.append((batch.numbers, batch.values))
    return found


def _raw_batches(path: Path, kind: str, wanted: Sequence[str]) -> Any:
    separator = "\t" if ".tsv" in path.name.lower() else ","
    fields = {f"{FIELD}.{name}": name for name in wanted}
    return read_file(path, kind, FIELD, fields, shown=str(path), separator=separator)


def _drops(said: pl.Series, path: Path) -> pl.Series:
    folded = said.str.strip_chars().str.to_lowercase()
    odd = said.filter(folded.is_not_null() & ~folded.is_in([*YES, *NO]))
    if len(odd):
        raise refusal(FIELD, str(path), f"drop is {odd[0]!r}", "write true or false, or leave it empty")
    return folded.is_in(YES).alias(DROP)
