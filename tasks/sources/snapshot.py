"""Snapshots of sources that cannot say cheaply whether they changed: their rows are read, digested and kept as Parquet.

An unchanged source gives the same digest, so that nothing after the reading is done again.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Problem
from tasks.home import Home
from tasks.rows import Writer, batches
from tasks.sources import Batch, Wanted, asked, require_columns

if TYPE_CHECKING:
    import polars as pl

FOLDER = Path("cache", "snapshots")
KEPT_S = 3 * 24 * 3600
"""How long a snapshot that no run made or met again is kept; one is read minutes after it was made."""


def snapshot(home: Home, frames: Iterable[pl.DataFrame]) -> tuple[Path, str]:
    """Keep the rows of `frames` as one Parquet file below the home, named by its content.

    Args:
        home: Where it is kept.
        frames: The rows in order, all columns text; a column that comes later is null before.

    Returns:
        The file, and the digest of the columns' names and values in order: not of the cuts, and not of the file.
    """
    folder = home.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{uuid.uuid4().hex[:12]}"
    try:
        digest = _write(draft, frames)
        path = folder / f"{digest}.parquet"
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _forget_old(folder)
    return path, digest


def read(path: Path, name: str, wanted: Wanted) -> Iterator[Batch]:
    """The rows of a snapshot.

    Args:
        path: The snapshot.
        name: The piece, for errors.
        wanted: Recipe field → column.

    Raises:
        DataError: A column is not there.
    """
    import polars as pl
    import pyarrow.parquet as pq

    columns = list(pq.read_schema(path).names)
    require_columns(wanted, columns, name)
    # Without a column of its own a Parquet batch would not know its number of rows.
    frames = (frame.select(asked(wanted)) for frame in batches([path], asked(wanted) or columns[:1]))
    empty = pl.DataFrame(schema=dict.fromkeys(asked(wanted), pl.String))
    yield from numbered(columns, frames, empty)


def numbered(columns: Sequence[str], frames: Iterable[pl.DataFrame], empty: pl.DataFrame) -> Iterator[Batch]:
    """Batches of `frames`, rows numbered through; `empty` where there are none, so that the columns are known."""
    import numpy as np

    done = 0
    for frame in frames:
        yield Batch(columns, np.arange(done + 1, done + 1 + frame.height, dtype=np.uint32), frame)
        done += frame.height
    if not done:
        yield Batch(columns, np.empty(0, dtype=np.uint32), empty)


def text_frame(rows: Sequence[Sequence[Any]], columns: Sequence[str], field: str) -> pl.DataFrame:
    """Rows of Python values as a frame of text.

    Args:
        rows: Values in the order of `columns`.
        columns: Names, each once.
        field: The recipe's field they come from, for errors.

    Raises:
        DataError: A value has no text that is the same in every run.
    """
    import polars as pl

    values = zip(*rows, strict=True) if rows else ((),) * len(columns)
    texts = {
        name: [as_text(value, name, field) for value in column] for name, column in zip(columns, values, strict=True)
    }
    return pl.DataFrame(texts, schema=dict.fromkeys(columns, pl.String))


def as_text(value: object, column: str, field: str) -> str | None:
    """A value as text: text as it is, times in ISO 8601, what JSON knows as JSON, others by their own `str`."""
    if value is None:
        return None
    plain = value if isinstance(value, str) else _plain(value, column, field)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    # JSON and Python can hold half a surrogate pair, which no encoding can.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: object, column: str, field: str) -> Any:  # noqa: PLR0911  one for each kind of value
    """The value in JSON's types."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="replace")
    if isinstance(value, Mapping):
        return {str(_plain(k, column, field)): _plain(v, column, field) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, column, field) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, column, field) for item in value), key=json.dumps)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist(), column, field)
    if type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__:
        rule = f"column {column!r} holds {type(value).__name__} objects, whose text differs from run to run"
        raise DataError(Problem(field, None, rule, "give text, a number, a time, a list or a dictionary"))
    return str(value)


def _forget_old(folder: Path) -> None:
    for old in folder.iterdir():
        with suppress(FileNotFoundError):  # another run was faster
            if time.time() - old.stat().st_mtime > KEPT_S:
                old.unlink()


def _write(path: Path, frames: Iterable[pl.DataFrame]) -> str:
    """Write the rows, and digest each column apart, so that the order in which batches cut them does not matter."""
    import polars as pl

    columns: dict[str, _ColumnDigest] = {}
    writer = Writer(path)
    try:
        for frame in frames:
            new = [name for name in frame.columns if name not in columns]
            if new and columns:
                writer.__exit__(None, None, None)
                writer = _with_columns(path, new)
            for name in new:
                columns[name] = _ColumnDigest(writer.rows)
            whole = frame.with_columns(pl.lit(None, pl.String).alias(name) for name in columns.keys() - frame.columns)
            for name, digest in columns.items():
                digest.update(whole[name])
            writer.write(whole.select(*columns))
        if not columns:
            writer.write(pl.DataFrame())
    finally:
        writer.__exit__(None, None, None)
    content = [(name, digest.hexdigest()) for name, digest in columns.items()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _with_columns(path: Path, new: Sequence[str]) -> Writer:
    """A writer to go on with, after what is at `path` was written again with more columns, null so far."""
    import polars as pl

    narrow = path.with_name(f"{path.name}.narrow")
    path.replace(narrow)
    writer = Writer(path)
    for frame in batches([narrow]):
        writer.write(frame.with_columns(pl.lit(None, pl.String).alias(name) for name in new))
    narrow.unlink()
    return writer


class _ColumnDigest:
    """Digest of a column's values: of their lengths, -1 for null, and of all their bytes."""

    def __init__(self, nulls: int) -> None:
        self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256()
        for _ in range(nulls):
            self._lengths.update(b"\xff" * 8)

    def update(self, values: pl.Series) -> None:
        self._lengths.update(values.str.len_bytes().cast(int).fill_null(-1).to_numpy().astype("<i8").tobytes())
        self._bytes.update((values.drop_nulls().str.join("").item() or "").encode())

    def hexdigest(self) -> str:
        return self._lengths.hexdigest() + self._bytes.hexdigest()
