"""Collect: the rows of the recipe's source, each with an id, its file and its number there; nothing is judged yet.

A line that cannot be read as a row goes to `quarantine.parquet` with its number and reason; a file without rows, or
without the columns that the recipe names, is a `DataError`. Does not cover sources behind the network. Files are read
record by record, but one run's rows are held in memory together.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import importlib.util
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TextIO

from schemas.base import PACKAGE_SCHEME
from schemas.errors import DataError, Problem
from schemas.records import Artifact
from schemas.sources import Source
from tasks.context import Context
from tasks.digests import content_digest
from tasks.home import Home
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

SIDE_OF = {"path": "train", "validation_path": "validation", "test_path": "test"}
"""Field of a source → the side its rows are on, where sides come as files."""
MAX_FIELD_CHARS = 2**24
"""Longest CSV field; Python's own limit of 131,072 is shorter than a long document."""
USUAL_SEPARATORS = (",", "\t", ";", "|")
SNIFFED_BYTES = 4096
CONTROL_BYTES = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})
UNTEXT_SHARE = 0.01
"""Share of control bytes from which a file is no text. UTF-16 has half; a stray one is cleaning's business."""
FOREIGN = (
    (b"PAR1", "is Parquet", "set collect.source.kind to parquet"),
    (b"\x1f\x8b", "is gzip-compressed", "decompress it first: gunzip <file>"),
    (b"BZh", "is bzip2-compressed", "decompress it first: bunzip2 <file>"),
    (b"\xfd7zXZ\x00", "is xz-compressed", "decompress it first: unxz <file>"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed", "decompress it first: unzstd <file>"),
    (b"PK\x03\x04", "is a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    (b"%PDF", "is a PDF document", "name the file that holds the rows"),
    (b"SQLite format 3\x00", "is an SQLite database", "export the table as CSV"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file", "fetch the file: git lfs pull"),
    (b"<!DOCTYPE html", "is a web page", "download the file itself, not the page that shows it"),
    (b"<!doctype html", "is a web page", "download the file itself, not the page that shows it"),
    (b"\xff\xfe", "is UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 <file>"),
    (b"\xfe\xff", "is UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 <file>"),
)
"""First bytes of what is often mistaken for text: what it is, and what to do."""


def locate(location: str, field: str = "collect.source.path") -> Path:
    """The file that a recipe's location means.

    Args:
        location: Local path, or `package://<package>/<file>`; the package is found but never imported.
        field: The recipe field it stands in, for the error.

    Raises:
        DataError: It is not there, cannot be read, is empty or is not a file.
    """
    path = locate_in_package(location, field) if location.startswith(PACKAGE_SCHEME) else Path(location).expanduser()
    try:
        if path.is_dir():
            raise _refusal(field, location, "is a folder", f"name a file in it{_some_of(path)}")
        if not path.exists():
            raise _refusal(field, location, "is not there", _what_is_near(path))
        if not path.is_file():
            raise _refusal(field, location, "is not a regular file", "name a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise _refusal(field, location, "is empty", "name a file with rows")
    except OSError as error:
        reason = error.strerror or str(error)
        raise _refusal(field, location, f"cannot be read: {reason}", "let this user read it") from error
    return path


def locate_in_package(location: str, field: str) -> Path:
    """Where `package://<package>/<path>` would be, there or not; nothing outside the package's folder.

    Raises:
        DataError: The package is not installed, or the path leaves it.
    """
    package, _, inside = location.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package.isidentifier():
        remedy = f"write {PACKAGE_SCHEME}{package.replace('-', '_')}/{inside}, the name it is imported by"
        raise _refusal(field, location, f"{package!r} is not the name of a Python package", remedy)
    parts = PurePosixPath(inside).parts
    if not parts or ".." in parts or inside.startswith("/"):
        remedy = f"write {PACKAGE_SCHEME}{package}/<path below the package's folder>"
        raise _refusal(field, location, "leaves the package's folder", remedy)
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        rule = f"package {package!r} {'has no folder' if spec else 'is not installed'}"
        raise _refusal(field, location, rule, f"pip install {package.replace('_', '-')}")
    candidates = [folder.joinpath(*parts) for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def source_paths(source: Source) -> dict[str, Path]:
    """Field of the source → the file it names, for every field that is set.

    Raises:
        DataError: A file cannot be used; all that cannot are named.
    """
    paths: dict[str, Path] = {}
    problems: list[Problem] = []
    for name in SIDE_OF:
        location = getattr(source, name)
        if location is not None:
            try:
                paths[name] = locate(location, f"collect.source.{name}")
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    return paths


def source_digest(source: Source, home: Home) -> dict[str, str]:
    """Field of the source → digest of its file's content: what the key of the rows is made of."""
    return {name: content_digest(path, home) for name, path in source_paths(source).items()}


def read_rows(
    source: Source,
    columns: dict[str, str],
    *,
    id_column: str | None,
    group_column: str | None,
    split_column: str | None,
    digests: dict[str, str],
    paths: dict[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Write `rows.parquet` (`schemas.frames.RawRows`) and `quarantine.parquet` (lines that are no rows).

    Args:
        source: How the files are read.
        columns: Role → column of the source. The first role is the row's text: its digest is the id of a row that
            brings none, numbered where the text occurs again.
        id_column: Column of the source that names each row.
        group_column: Column that names what stays together in the split.
        split_column: Column of the source's main file that names the side.
        digests: Field of the source → digest of its file.
        paths: Field of the source → its file.
        out: Where to write.

    Returns:
        Counts: `rows`, `files`, `unreadable` by reason, `columns` found, rows with a `replacement_character`.

    Raises:
        DataError: A file is not of the source's kind, has no rows, or lacks a column.
    """
    import polars as pl

    wanted = {f"task.{role}_column": column for role, column in columns.items()}
    wanted |= {"collect.id_column": id_column} if id_column else {}
    wanted |= {"collect.group_column": group_column} if group_column else {}
    official = {"collect.split_column": split_column} if split_column else {}
    names = _short_names(paths)
    tables = {
        name: _read_file(source, f"collect.source.{name}", path, wanted | (official if name == "path" else {}))
        for name, path in paths.items()
    }
    shaped = [
        _shape(
            table,
            names[name],
            columns | ({"group": group_column} if group_column else {}),
            id_column=id_column,
            split_column=split_column if name == "path" else None,
            side=SIDE_OF[name] if len(paths) > 1 else None,
        )
        for name, table in tables.items()
    ]
    rows = pl.concat(shaped, how="diagonal")
    unreadable = pl.concat([_unreadable_frame(names[name], table.unreadable) for name, table in tables.items()])
    if id_column:
        rows, unnamed = _set_aside_unnamed(rows)
        unreadable = pl.concat([unreadable, unnamed])
    else:
        rows = _with_digest_ids(
            rows, next(iter(columns)), [c for c in rows.columns if c not in {"id", "source", "row"}]
        )
    rows.write_parquet(out / "rows.parquet")
    unreadable.write_parquet(out / "quarantine.parquet")
    return {
        "rows": rows.height,
        "files": {
            names[name]: {"rows": len(table.numbers), "unreadable": len(table.unreadable), "sha256": digests.get(name)}
            for name, table in tables.items()
        },
        "unreadable": dict(sorted(unreadable["reason"].value_counts().iter_rows())),
        "columns": tables["path"].columns,
        "replacement_character": rows.filter(
            pl.any_horizontal(pl.col(role).str.contains("\ufffd", literal=True) for role in columns)
        ).height,
    }


@dataclass(frozen=True)
class _Table:
    """What one file holds.

    Attributes:
        columns: Names of all its columns.
        numbers: Number of each row in the file, from 1.
        values: The columns the recipe names, as text.
        unreadable: Number, raw text and reason of each line that is no row.
    """

    columns: list[str]
    numbers: Sequence[int]
    values: pl.DataFrame
    unreadable: list[tuple[int, str, str]]


def _read_file(source: Source, field: str, path: Path, wanted: Mapping[str, str]) -> _Table:
    _refuse_foreign_bytes(field, path, source.kind)
    if source.kind == "parquet":
        table = _read_parquet(field, path, wanted)
    else:
        read = partial(_read_csv, separator=source.separator) if source.kind == "csv" else _read_jsonl
        with path.open(encoding="utf-8-sig", errors="replace", newline="" if source.kind == "csv" else "\n") as file:
            table = read(field, path, wanted, file)
    if not table.numbers:
        found = f": {table.unreadable[0][2]} in row {table.unreadable[0][0]}" if table.unreadable else ""
        raise _refusal(field, str(path), f"holds no {source.kind} row{found}", "name a file with rows")
    return table


def _read_csv(field: str, path: Path, wanted: Mapping[str, str], file: TextIO, *, separator: str) -> _Table:
    import polars as pl

    records = _csv_records(file, separator)
    header = next((fields for fields, _ in records if fields != []), None)
    if header is None:
        raise _refusal(field, str(path), "has no header line", "write the names of the columns in the first line")
    _refuse_other_separator(header, separator)
    _require_columns(wanted, header, path)
    names = list(dict.fromkeys(wanted.values()))
    places = [header.index(name) for name in names]
    rows: list[list[str]] = []
    numbers: list[int] = []
    unreadable: list[tuple[int, str, str]] = []
    for number, (fields, lines) in enumerate(records, start=1):
        if fields is not None and len(fields) == len(header):
            rows.append([fields[place] for place in places])
            numbers.append(number)
        elif fields != []:  # a blank line is counted, so that numbers are those of a spreadsheet, and is no row
            reason = "broken_quotes" if fields is None else "ragged_row"
            unreadable.append((number, "".join(lines).rstrip("\r\n"), reason))
    values = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return _Table(header, numbers, values, unreadable)


def _csv_records(file: TextIO, separator: str) -> Iterator[tuple[list[str] | None, list[str]]]:
    """Fields (none: its quotes are broken) and lines of each record.

    A quote that is never closed costs its own line: what it swallowed is read again as records of their own.
    """
    waiting: deque[str] = deque()
    lines: list[str] = []

    def feed() -> Iterator[str]:
        while line := waiting.popleft() if waiting else next(file, ""):
            lines.append(line)
            yield line

    limit_before = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        while True:
            try:
                for fields in csv.reader(feed(), delimiter=separator, strict=True):
                    yield fields, lines
                    lines.clear()
            except csv.Error:
                waiting.extendleft(reversed(lines[1:]))
                yield None, lines[:1]
                lines.clear()
            else:
                return
    finally:
        csv.field_size_limit(limit_before)


def _read_jsonl(field: str, path: Path, wanted: Mapping[str, str], file: TextIO) -> _Table:
    import polars as pl

    names = list(dict.fromkeys(wanted.values()))
    found: dict[str, None] = {}
    values: dict[str, list[str | None]] = {name: [] for name in names}
    numbers: list[int] = []
    unreadable: list[tuple[int, str, str]] = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            unreadable.append((number, line.rstrip("\r\n"), "not_json"))
            continue
        if not isinstance(entry, dict):
            if not numbers and isinstance(entry, list):
                remedy = f"write each row on its own line: jq -c '.[]' {path.name}"
                raise _refusal(field, str(path), "is a JSON array, not one object per line", remedy)
            unreadable.append((number, line.rstrip("\r\n"), "not_an_object"))
            continue
        found |= dict.fromkeys(entry)
        numbers.append(number)
        for name in names:
            values[name].append(_as_text(entry.get(name)))
    if numbers:
        _require_columns(wanted, list(found), path)
    return _Table(list(found), numbers, pl.DataFrame(values, schema=dict.fromkeys(names, pl.String)), unreadable)


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can name half a surrogate pair, which no encoding can hold.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_parquet(field: str, path: Path, wanted: Mapping[str, str]) -> _Table:
    import polars as pl

    try:
        table = pl.scan_parquet(path, glob=False)
        schema = table.collect_schema()
        _require_columns(wanted, list(schema), path)
        names = list(dict.fromkeys(wanted.values()))
        problems = [
            Problem(key, name, f"column holds {schema[name]} in {path.name}", "name a column of text or numbers")
            for key, name in wanted.items()
            if schema[name].is_nested()
        ]
        if problems:
            raise DataError(problems)
        values = table.select(names).collect().select(_text_of(name, schema[name]) for name in names)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise _refusal(field, str(path), f"cannot be read as Parquet: {reason}", "write the file anew") from error
    return _Table(list(schema), range(1, values.height + 1), values, [])


def _text_of(name: str, dtype: pl.DataType) -> pl.Expr:
    import polars as pl

    if dtype != pl.Binary:
        return pl.col(name).cast(pl.String)
    return pl.col(name).map_elements(lambda value: value.decode(errors="replace"), return_dtype=pl.String)


def _refuse_foreign_bytes(field: str, path: Path, kind: str) -> None:
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic) and not (kind == "parquet" and magic == b"PAR1"):
            raise _refusal(field, str(path), f"{what}, not {kind}", remedy.replace("<file>", path.name))
    if kind == "parquet":
        if not head.startswith(b"PAR1"):
            raise _refusal(
                field, str(path), "is not Parquet", "set collect.source.kind to csv or jsonl, or name another file"
            )
    elif len(head) - len(head.translate(None, CONTROL_BYTES)) > UNTEXT_SHARE * len(head):
        raise _refusal(field, str(path), "is binary or UTF-16, not UTF-8 text", "save it as UTF-8 text")


def _require_columns(wanted: Mapping[str, str], found: Sequence[str], path: Path) -> None:
    problems = []
    for field, column in wanted.items():
        times = found.count(column)
        if times > 1:
            problems.append(
                Problem(field, column, f"{path.name} has {times} columns of this name", "rename all but one")
            )
        elif times == 0:
            rule = f"{path.name} has no such column, but {_listed(repr(name) for name in found)}"
            problems.append(Problem(field, column, rule, _remedy_for_missing(column, found)))
    if problems:
        raise DataError(problems)


def _refuse_other_separator(header: Sequence[str], separator: str) -> None:
    other = next((mark for mark in USUAL_SEPARATORS if mark in header[0]), None)
    if len(header) == 1 and other:
        rule = f"the header line {header[0]!r} has none"
        raise _refusal("collect.source.separator", separator, rule, f"set it to {other!r}")


def _remedy_for_missing(column: str, found: Sequence[str]) -> str:
    folded = {name.strip().casefold(): name for name in found}
    close = difflib.get_close_matches(column.strip().casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else "name one of them"


def _shape(
    table: _Table,
    source: str,
    columns: Mapping[str, str],
    *,
    id_column: str | None,
    split_column: str | None,
    side: str | None,
) -> pl.DataFrame:
    """The table's rows under the names of roles. An id, group or side of white space alone is none."""
    import polars as pl

    def name_of(column: str) -> pl.Expr:
        stripped = pl.col(column).str.strip_chars()
        return pl.when(stripped != "").then(stripped)

    rows = table.values.select(
        (name_of(id_column) if id_column else pl.lit(None, pl.String)).alias("id"),
        pl.lit(source).alias("source"),
        pl.Series("row", table.numbers, pl.UInt32),
        *((name_of(column) if role == "group" else pl.col(column)).alias(role) for role, column in columns.items()),
    )
    if split_column:
        return rows.with_columns(split=table.values.select(name_of(split_column)).to_series())
    return rows.with_columns(split=pl.lit(side)) if side else rows


def _with_digest_ids(rows: pl.DataFrame, text: str, content: list[str]) -> pl.DataFrame:
    """Ids from the text alone. Rows of one text are numbered in the order of their content, not of the file."""
    import polars as pl

    digests = [hashlib.blake2b((t or "").encode(), digest_size=8).hexdigest() for t in rows[text].to_list()]
    order = "__order"
    return (
        rows.with_columns(id=pl.Series(digests, dtype=pl.String))
        .with_row_index(order)
        .sort(*content, order, nulls_last=True)
        .with_columns(pl.int_range(pl.len()).over("id").alias("__occurrence"))
        .with_columns(
            id=pl.when(pl.col("__occurrence") == 0).then("id").otherwise(pl.format("{}-{}", "id", "__occurrence"))
        )
        .sort(order)
        .drop(order, "__occurrence")
    )


def _set_aside_unnamed(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows whose id is their own, and the others as unreadable ones: of rows with one id the first stays."""
    import polars as pl

    reason = (
        pl.when(pl.col("id").is_null()).then(pl.lit("missing_id"))
        .when(~pl.col("id").is_first_distinct()).then(pl.lit("duplicate_id"))
    )  # fmt: skip
    judged = rows.with_columns(reason=reason)
    fallen = judged.filter(pl.col("reason").is_not_null())
    raw = fallen.select(pl.struct(pl.exclude("source", "row", "reason")).struct.json_encode().alias("raw")).to_series()
    return judged.filter(pl.col("reason").is_null()).drop("reason"), fallen.select("source", "row", raw, "reason")


def _unreadable_frame(source: str, unreadable: list[tuple[int, str, str]]) -> pl.DataFrame:
    import polars as pl

    schema = {"row": pl.UInt32, "raw": pl.String, "reason": pl.String}
    frame = pl.DataFrame(unreadable, schema=schema, orient="row")
    return frame.select(pl.lit(source).alias("source"), "row", "raw", "reason")


def _short_names(paths: Mapping[str, Path]) -> dict[str, str]:
    """Field → name of its file, with the folder where two files have one name."""
    distinct = len({path.name for path in paths.values()}) == len(paths)
    return {field: path.name if distinct else f"{path.parent.name}/{path.name}" for field, path in paths.items()}


def _refusal(field: str, location: str, rule: str, remedy: str) -> DataError:
    return DataError(Problem(field, location, rule, remedy))


def _what_is_near(path: Path) -> str:
    folder = next(parent for parent in path.parents if parent.is_dir())
    if folder != path.parent:
        return f"the folder {path.parent} is not there either: name an existing file"
    close = difflib.get_close_matches(path.name, [other.name for other in folder.iterdir()], n=1)
    return f"did you mean {close[0]!r}?" if close else f"name a file in {folder}{_some_of(folder)}"


def _some_of(folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f", such as {_listed(files)}" if files else ""


def _listed(names: Iterable[str], most: int = 8) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


@stage_task
def collect(context: Context) -> Artifact:
    """Read the source's rows; their content decides the key, wherever the files lie."""
    asked = context.recipe.collect
    nowhere = dict.fromkeys(SIDE_OF) | {"path": ""}
    return context.artifact(
        "collect",
        read_rows,
        settings={
            "source": asked.source.model_copy(update=nowhere),
            "columns": context.recipe.task.columns(),
            "id_column": asked.id_column,
            "group_column": asked.group_column,
            "split_column": asked.split_column,
            "digests": source_digest(asked.source, context.home),
        },
        unkeyed={"paths": source_paths(asked.source)},
        libraries=("polars",),
    )
