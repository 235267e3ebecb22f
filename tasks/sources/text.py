"""Text files as blocks of lines: what is no text is refused with a name for what it is, gzip, bzip2 and xz are undone.

Bytes that are not UTF-8 become U+FFFD. Nothing longer than a block and one line is ever in memory, whatever the file.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tasks.sources import refusal

BLOCK_CHARS = 2**22
"""Length from which a block of lines is handed on: 40,000 lines of 100 characters."""
MAX_LINE_CHARS = 2**24
"""Longest line that is read as a row; a file without line ends may be all one."""
MAX_RAW_CHARS = 10_000
"""How much of an unreadable line is kept."""
SNIFFED_BYTES = 4096
CONTROL_BYTES = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})
UNTEXT_SHARE = 0.01
"""Share of control bytes from which a file is no text. UTF-16 has half; a stray one is cleaning's business."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
"""First bytes → module of the standard library that undoes it."""
FOREIGN = (
    (b"PAR1", "is Parquet", "set collect.source.kind to parquet"),
    (b"\x1f\x8b", "is gzip-compressed", "decompress it first: gunzip <file>"),
    (b"BZh", "is bzip2-compressed", "decompress it first: bunzip2 <file>"),
    (b"\xfd7zXZ\x00", "is xz-compressed", "decompress it first: unxz <file>"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed", "decompress it first: unzstd <file>"),
    (b"PK\x03\x04", "is a ZIP archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Excel workbook", "save the sheet as CSV"),
    (b"%PDF", "is a PDF document", "name the file that holds the rows"),
    (b"SQLite format 3\x00", "is an SQLite database", "set collect.source.kind to sql, or export the table as CSV"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file", "fetch the file: git lfs pull"),
    (b"<!DOCTYPE html", "is a web page", "download the file itself, not the page that shows it"),
    (b"<!doctype html", "is a web page", "download the file itself, not the page that shows it"),
    (b"<html", "is a web page", "download the file itself, not the page that shows it"),
    (b"\xff\xfe\x00\x00", "is UTF-32 text", "save it as UTF-8: iconv -f UTF-32 -t UTF-8 <file>"),
    (b"\xff\xfe", "is UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 <file>"),
    (b"\xfe\xff", "is UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 <file>"),
)
"""First bytes of what is often mistaken for text: what it is, and what to do."""


def refuse_foreign(head: bytes, kind: str, field: str, shown: str) -> None:
    """Check that a file which begins with `head` can be one of `kind`.

    Raises:
        DataError: It is something else, which the error names.
    """
    name = Path(shown).name
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic) and not (kind == "parquet" and magic == b"PAR1"):
            raise refusal(field, shown, f"{what}, not {kind}", remedy.replace("<file>", name))
    if kind == "parquet":
        if head and not head.startswith(b"PAR1"):
            raise refusal(
                field, shown, "is not Parquet", "set collect.source.kind to csv or jsonl, or name another file"
            )
    elif len(head) - len(head.translate(None, CONTROL_BYTES)) > UNTEXT_SHARE * len(head):
        raise refusal(field, shown, "is binary or UTF-16, not UTF-8 text", "save it as UTF-8 text")


@contextmanager
def opened(path: Path, kind: str, field: str, shown: str) -> Iterator[TextIO]:
    """The text of a file, decompressed if need be; line ends stay as they are.

    Args:
        path: Where it is.
        kind: What it is taken for, for errors.
        field: The recipe's field that names it.
        shown: Its location as errors show it.

    Raises:
        DataError: It is no text, or is damaged.
    """
    import lzma

    try:
        with path.open("rb") as raw, _decompressed(raw) as file:
            refuse_foreign(file.peek(SNIFFED_BYTES)[:SNIFFED_BYTES], kind, field, shown)
            yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="" if kind == "csv" else "\n")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise refusal(field, shown, f"cannot be read to its end: {error}", "fetch the whole file again") from error


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    from importlib import import_module

    head = raw.peek(8)
    module = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
    return io.BufferedReader(import_module(module).open(raw)) if module else raw


def line_blocks(file: TextIO) -> Iterator[tuple[list[str], bool]]:
    """Lines with their ends, and whether they are one line too long to be a row, cut short."""
    readline = file.readline
    block: list[str] = []
    size = 0
    while line := readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS:
            if block:
                yield block, False
            yield [line[:MAX_RAW_CHARS]], True
            while len(line) == MAX_LINE_CHARS and not line.endswith(("\n", "\r")):
                line = readline(MAX_LINE_CHARS)
            block, size = [], 0
            continue
        block.append(line)
        size += len(line)
        if size >= BLOCK_CHARS:
            yield block, False
            block, size = [], 0
    if block:
        yield block, False
