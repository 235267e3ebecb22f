"""CSV, JSON lines and Parquet, read in batches; a line that is no row is set aside with its number and reason.

Reasons: `ragged_row` (more or fewer fields than the header), `broken_quotes`, `not_json`, `not_an_object`, and
`line_too_long` (more than `tasks.sources.text.MAX_LINE_CHARS`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from schemas.errors import DataError
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Wanted, asked, refusal, require_columns
from tasks.sources.snapshot import as_text
from tasks.sources.text import MAX_LINE_CHARS, MAX_RAW_CHARS, SNIFFED_BYTES, line_blocks, opened, refuse_foreign

if TYPE_CHECKING:
    import polars as pl

USUAL_SEPARATORS = (",", "\t", ";", "|")
Record = list[str] | str
"""Fields of a record, or the reason why its line is none."""


def read_csv(path: Path, field: str, wanted: Wanted, *, shown: str, separator: str) -> Iterator[Batch]:
    """The rows of a CSV file with a header line. Blank lines are counted, as a spreadsheet does, and are no rows.

    Args:
        path: Where it is.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.
        shown: Its location as errors show it.
        separator: The character between two fields.

    Raises:
        DataError: It is no CSV file, has no header, or lacks a column.
    """
    import numpy as np
    import polars as pl

    with opened(path, "csv", field, shown) as file:
        header: list[str] | None = None
        names = asked(wanted)
        before = 0
        for records, lines, ends in _csv_blocks(file, separator):
            if header is None:
                first = next((i for i, record in enumerate(records) if record), None)
                if first is None:
                    continue
                header = _header(records[first], wanted, field, shown, separator)
                places = [header.index(name) for name in names]
                before -= first + 1
            skipped = max(0, -before)
            good, bad = _sorted_out(records, skipped, len(header))
            kept = records if len(good) == len(records) else [records[i] for i in good]
            values = pl.DataFrame(
                [
                    pl.Series(name, [record[place] for record in kept], pl.String)
                    for name, place in zip(names, places, strict=True)
                ]
            )
            unreadable = [
                (before + i + 1, "".join(lines[ends[i - 1] if i else 0 : ends[i]]).rstrip("\r\n"), reason)
                for i, reason in bad
            ]
            numbers = (np.array(good, np.int64) + (before + 1)).astype(np.uint32)
            before += len(records)
            yield Batch(header, numbers, values, [(n, raw[:MAX_RAW_CHARS], why) for n, raw, why in unreadable])
        if header is None and path.stat().st_size:
            raise _no_header(field, shown)


def _header(record: Record, wanted: Wanted, field: str, shown: str, separator: str) -> list[str]:
    if isinstance(record, str):
        raise _no_header(field, shown)
    other = next((mark for mark in USUAL_SEPARATORS if mark in record[0]), None)
    if len(record) == 1 and other:
        rule = f"the header line {record[0]!r} has none"
        raise refusal("collect.source.separator", separator, rule, f"set it to {other!r}")
    require_columns(wanted, record, Path(shown).name)
    return record


def _no_header(field: str, shown: str) -> DataError:
    return refusal(field, shown, "has no header line", "write the names of the columns in the first line")


def _sorted_out(records: Sequence[Record], skipped: int, width: int) -> tuple[list[int], list[tuple[int, str]]]:
    """Places of the rows, and of the records that are none with the reason."""
    places = range(skipped, len(records))
    good = [i for i in places if len(records[i]) == width and not isinstance(records[i], str)]
    if len(good) == len(places):
        return good, []
    bad: list[tuple[int, str]] = []
    for i in places:
        record = records[i]
        if isinstance(record, str):
            bad.append((i, record))
        elif record and len(record) != width:
            bad.append((i, "ragged_row"))
    return good, bad


def _csv_blocks(file: TextIO, separator: str) -> Iterator[tuple[list[Record], list[str], Sequence[int]]]:
    """Records, the lines they are made of, and for each record the number of lines up to its end.

    A quote that is never closed costs its own line: what it swallowed is read again as records of their own.
    """
    waiting: list[str] = []
    enough = 0
    for lines, too_long in line_blocks(file):
        if too_long:
            if waiting:
                yield _parsed(waiting, separator, final=True)
                waiting = []
            yield ["line_too_long"], lines, [1]
            continue
        waiting += lines
        if len(waiting) < enough:
            continue
        records, parsed, ends = _parsed(waiting, separator, final=False)
        waiting = parsed[ends[-1] if ends else 0 :]
        enough = 2 * len(waiting)  # the end of an open quote is looked for in twice as many lines each time
        if records:
            yield records, parsed, ends
    if waiting:
        yield _parsed(waiting, separator, final=True)


def _parsed(lines: list[str], separator: str, *, final: bool) -> tuple[list[Record], list[str], Sequence[int]]:
    """As much as can be told of `lines`: unless they are final, an open quote at their end waits for more."""
    limit_before = csv.field_size_limit(MAX_LINE_CHARS)
    try:
        try:
            records: list[Record] = list(csv.reader(lines, delimiter=separator, strict=True))
        except csv.Error:
            records = []
        if len(records) == len(lines):
            return records, lines, range(1, len(lines) + 1)
        return _parsed_carefully(lines, separator, final=final)
    finally:
        csv.field_size_limit(limit_before)


def _parsed_carefully(
    lines: list[str], separator: str, *, final: bool
) -> tuple[list[Record], list[str], Sequence[int]]:
    records: list[Record] = []
    ends: list[int] = []
    begin = 0
    while begin < len(lines):
        reader = csv.reader(map(lines.__getitem__, range(begin, len(lines))), delimiter=separator, strict=True)
        offset = begin
        try:
            for fields in reader:
                begin = offset + reader.line_num
                records.append(fields)
                ends.append(begin)
        except csv.Error as error:
            if not final and "unexpected end of data" in str(error):
                break
            begin += 1
            records.append("broken_quotes")
            ends.append(begin)
    return records, lines, ends


def read_jsonl(path: Path, field: str, wanted: Wanted, *, shown: str) -> Iterator[Batch]:
    """The rows of a file with one JSON object per line; values that are no text become JSON.

    Args:
        path: Where it is.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column; every one must occur in some row.
        shown: Its location as errors show it.

    Raises:
        DataError: It is no such file, or no row has a column.
    """
    found: dict[str, None] = {}
    names = asked(wanted)
    rows = before = 0
    begun = False
    with opened(path, "jsonl", field, shown) as file:
        for lines, too_long in line_blocks(file):
            if not begun and (first := next((line for line in lines if line.strip()), "")):
                begun = True
                if first.startswith("["):
                    remedy = f"write each row on its own line: jq -c '.[]' {Path(shown).name}"
                    raise refusal(field, shown, "is a JSON array, not one object per line", remedy)
            entries: list[dict[str, object]] = []
            numbers: list[int] = []
            if too_long:
                unreadable = [(before + 1, lines[0], "line_too_long")]
            else:
                entries, numbers, unreadable = _objects(lines, before)
            for entry in entries:
                if not entry.keys() <= found.keys():
                    found |= dict.fromkeys(entry)
            rows += len(entries)
            before += len(lines)
            yield _jsonl_batch(entries, numbers, found, names, unreadable)
    if rows:
        require_columns(wanted, list(found), Path(shown).name)


def _objects(
    lines: Sequence[str], before: int
) -> tuple[list[dict[str, object]], list[int], list[tuple[int, str, str]]]:
    """The objects, the numbers of their lines, and the lines that are none."""
    entries: list[dict[str, object]] = []
    numbers: list[int] = []
    unreadable: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines, start=before + 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if line.strip():
                unreadable.append((number, line.rstrip("\r\n")[:MAX_RAW_CHARS], "not_json"))
            continue
        if isinstance(entry, dict):
            entries.append(entry)
            numbers.append(number)
        else:
            unreadable.append((number, line.rstrip("\r\n")[:MAX_RAW_CHARS], "not_an_object"))
    return entries, numbers, unreadable


def _jsonl_batch(
    entries: Sequence[dict[str, object]],
    numbers: Sequence[int],
    found: dict[str, None],
    names: Sequence[str],
    unreadable: Sequence[tuple[int, str, str]],
) -> Batch:
    import numpy as np
    import polars as pl

    columns = [pl.Series(name, [_as_text(entry.get(name)) for entry in entries], pl.String) for name in names]
    return Batch(list(found), np.array(numbers, np.uint32), pl.DataFrame(columns), unreadable)


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can name half a surrogate pair, which no encoding can hold.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_parquet(path: Path, field: str, wanted: Wanted, *, shown: str) -> Iterator[Batch]:
    """The rows of a Parquet file; numbers, dates and categories become text, lists and structs JSON, bytes are UTF-8.

    Args:
        path: Where it is.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.
        shown: Its location as errors show it.

    Raises:
        DataError: It is no Parquet file, is damaged, or lacks a column.
    """
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = Path(shown).name
    names = asked(wanted)
    before = 0
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
        if not head:
            return
        refuse_foreign(head, "parquet", field, shown)
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            require_columns(wanted, columns, name)
            empty = pl.DataFrame(pa.schema([file.schema_arrow.field(column) for column in names]).empty_table())
            yield Batch(columns, np.empty(0, np.uint32), _as_texts(empty, names, field))
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                frame = pl.DataFrame(batch)
                numbers = np.arange(before + 1, before + 1 + frame.height, dtype=np.uint32)
                before += frame.height
                yield Batch(columns, numbers, _as_texts(frame, names, field))
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise refusal(field, shown, f"cannot be read as Parquet: {reason}", "write the file anew") from error


def _as_texts(frame: pl.DataFrame, names: Sequence[str], field: str) -> pl.DataFrame:
    import polars as pl

    def text_of(name: str) -> pl.Series:
        values = frame[name]
        if values.dtype.is_nested() or values.dtype == pl.Binary:
            return pl.Series(name, [as_text(value, name, field) for value in values.to_list()], pl.String)
        return values.cast(pl.String)

    return pl.DataFrame([text_of(name) for name in names])
