"""Pieces of the sources made of files: one for each CSV, JSON lines, Parquet, SQuAD or CoNLL file or gettext catalog.

`tasks.sources.locations` says which files a location means and what their digests are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from schemas.errors import DataError, Fault, Problem
from schemas.sources import Source
from tasks.digests import content_digest
from tasks.home import Home
from tasks.sources import Batch, Piece, Wanted, refusal
from tasks.sources.locations import File, find

PACKED = (".gz", ".bz2", ".xz")
SUFFIXES = {
    "csv": tuple(s + packed for s in (".csv", ".tsv") for packed in ("", *PACKED)),
    "jsonl": tuple(s + packed for s in (".jsonl", ".ndjson") for packed in ("", *PACKED)),
    "parquet": (".parquet",),
    "squad": tuple(".json" + packed for packed in ("", *PACKED)),
    "gettext": (".mo", ".po"),
    "conll": tuple(s + packed for s in (".conll", ".conllu", ".bio", ".iob", ".iob2") for packed in ("", *PACKED)),
}
"""Kind → ends of the names of the files that are taken from a folder."""
SIDE_OF = {"path": "train", "validation_path": "validation", "test_path": "test"}
"""Field of a source → the side its rows are on, where sides come as files."""
LANGUAGE_PARTS = 3
"""Parts of a catalog's name: `de/LC_MESSAGES/django.mo` tells the language."""


def pieces(source: Source, home: Home) -> list[Piece]:
    """The source's files, in the order of its fields and locations.

    Raises:
        DataError: A location means no file that can be read, or two fields mean the same ones.
        EnvironmentMistake: The driver of a URL is not installed.
        Fault: A server did not answer.
    """
    found = _files(source, home)
    by_sides = len(found) > 1
    names = short_names(
        [file for files in found.values() for file in files], LANGUAGE_PARTS * (source.kind == "gettext")
    )
    return [
        _piece(
            source, file, names[file.place], f"collect.source.{name}", SIDE_OF[name] if by_sides else None, home=home
        )
        for name, files in found.items()
        for file in files
    ]


def _piece(source: Any, file: File, name: str, field: str, side: str | None, *, home: Home) -> Piece:
    from tasks.sources import conll

    digest = file.digest()

    def read(wanted: Wanted) -> Iterator[Batch]:
        path = file.fetch(digest)
        if source.kind == "conll":
            yield from conll.read(path, source, field, wanted, shown=file.shown)
        else:
            separator = getattr(source, "separator", ",")
            yield from read_file(path, source.kind, field, wanted, shown=file.shown, separator=separator)
        if path == Path(file.shown) and content_digest(path, home) != digest:
            raise Fault(f"{file.shown} changed while it was read")

    return Piece(name, digest, field, side, read)


def _files(source: Any, home: Home) -> dict[str, list[File]]:
    """Field → its files. One that is named as validation or test is not also read for training."""
    found: dict[str, list[File]] = {}
    problems: list[Problem] = []
    for name in SIDE_OF:
        named = getattr(source, name)
        if named:
            locations = (named,) if isinstance(named, str) else named
            try:
                found[name] = find(locations, SUFFIXES[source.kind], f"collect.source.{name}", home)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(problems)
    taken: dict[str, str] = {}
    for name in reversed(found):
        left = [file for file in found[name] if file.place not in taken]
        if not left:
            first = found[name][0]
            raise refusal(f"collect.source.{name}", first.shown, f"is also {taken[first.place]}", "name another file")
        taken |= {file.place: f"collect.source.{name}" for file in left}
        found[name] = left
    return found


def short_names(files: Sequence[File], least: int = 0) -> dict[str, str]:
    """Place of each file → its name, with as many folders above it as tell it from the others.

    Args:
        files: Files of different places.
        least: Fewest parts of a name.
    """
    parts = {file.place: max(least, len(PurePosixPath(file.name).parts)) for file in files}
    while True:
        names = {file.place: "/".join(file.shown.split("/")[-parts[file.place] :]) for file in files}
        count = Counter(names.values())
        alike = [place for place, name in names.items() if count[name] > 1]
        if not alike:
            return names
        parts |= {place: parts[place] + 1 for place in alike}


def read_file(
    path: Path, kind: str, field: str, wanted: Wanted, *, shown: str, separator: str = ","
) -> Iterator[Batch]:
    """The rows of one file.

    Args:
        path: Where it is.
        kind: csv, jsonl, parquet, squad or gettext.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.
        shown: Its location as errors show it.
        separator: The character between two fields of a CSV file.

    Raises:
        DataError: It is not of this kind, is damaged, or lacks a column.
    """
    from tasks.sources import formats, gettext, squad

    if kind == "csv":
        return formats.read_csv(path, field, wanted, shown=shown, separator=separator)
    if kind == "gettext":
        return gettext.read(path, field, wanted)
    read = {"jsonl": formats.read_jsonl, "parquet": formats.read_parquet, "squad": squad.read}[kind]
    return read(path, field, wanted, shown=shown)
