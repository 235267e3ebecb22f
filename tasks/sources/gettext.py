"""gettext catalogs (.mo, .po): translations as rows, one for each form of a plural.

A catalog's header is no row; fuzzy and obsolete entries of a .po are no translations and left out. Catalogs are small:
one is held in memory as a whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

from schemas.errors import DataError, EnvironmentMistake, Problem
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Wanted, asked, require_columns
from tasks.sources.snapshot import numbered, text_frame

COLUMNS = ("source", "target", "context", "language", "catalog")
MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}
"""First bytes of a .mo → its byte order."""
CONTEXT_MARK = "\x04"
PO_LINE = re.compile(rb'\s*(#.*|(msg(id|id_plural|str|ctxt)(\[\d+\])?\s*)?"(\\.|[^"\\])*"\s*)?')
"""Any line of a .po: nothing, a comment, or a quoted text; polib would take the quotes for granted."""

Translation = tuple[str, str | None, str | None]
"""Source, target and context."""


def read(path: Path, field: str, wanted: Wanted) -> Iterator[Batch]:
    """The translations of a catalog.

    Args:
        path: A .mo (known by its first bytes) or .po file.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.

    Raises:
        DataError: It is no catalog, is damaged, or lacks a column.
        EnvironmentMistake: polib, which reads .po files, is not installed.
    """
    require_columns(wanted, COLUMNS, path.name)
    content = path.read_bytes()
    try:
        header, translations = _read_mo(content) if content[:4] in MAGIC else _read_po(path)
    except (OSError, ValueError, LookupError, struct.error) as error:
        reason = str(error).split("\n", 1)[0].replace(str(path), path.name)
        remedy = "name a whole .mo or .po file; msgfmt --check says what is wrong with a .po"
        raise DataError(Problem(field, str(path), f"is not a sound gettext catalog: {reason}", remedy)) from error
    language = _language_of(path) or HeaderParser().parsestr(header).get("Language", "").strip() or None
    names = asked(wanted)
    places = [COLUMNS.index(name) for name in names]
    rows = [[(*translation, language, path.stem)[place] for place in places] for translation in translations]
    frames = (text_frame(rows[at : at + BATCH_ROWS], names, field) for at in range(0, len(rows), BATCH_ROWS))
    yield from numbered(COLUMNS, frames, text_frame([], names, field))


def _language_of(path: Path) -> str | None:
    """The folder's name, for `<language>/LC_MESSAGES/<catalog>.mo`."""
    return path.parent.parent.name if path.parent.name == "LC_MESSAGES" else None


def _read_mo(content: bytes) -> tuple[str, list[Translation]]:
    """Header and translations of a compiled catalog.

    References:
        https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
    """
    order = MAGIC[content[:4]]
    version, count, ids, texts = struct.unpack_from(f"{order}4I", content, 4)
    if version >> 16 > 1:
        raise ValueError(f"format version {version >> 16} is unknown")

    def strings(table: int) -> Iterator[bytes]:
        for place in range(table, table + 8 * count, 8):
            length, start = struct.unpack_from(f"{order}2I", content, place)
            if start + length > len(content):
                raise ValueError("it ends before its last text")
            yield content[start : start + length]

    found = dict(zip(strings(ids), strings(texts), strict=True))
    raw_header = found.pop(b"", b"")
    charset = HeaderParser().parsestr(raw_header.decode("latin-1")).get_content_charset() or "utf-8"
    translations: list[Translation] = []
    for raw_id, raw_text in found.items():
        context, mark, sources = raw_id.decode(charset).rpartition(CONTEXT_MARK)
        forms = sources.split("\0")
        for form, target in enumerate(raw_text.decode(charset).split("\0")):
            translations.append((forms[min(form, len(forms) - 1)], target or None, context if mark else None))
    return raw_header.decode(charset), translations


def _read_po(path: Path) -> tuple[str, list[Translation]]:
    """Header and translations of a catalog's source text."""
    try:
        import polib
    except ModuleNotFoundError as error:
        problem = Problem("collect.source.kind", "gettext", ".po files take polib", "pip install 'hone[gettext]'")
        raise EnvironmentMistake(problem) from error
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not PO_LINE.fullmatch(line):
            raise ValueError(f"line {number} is neither a comment nor a quoted text")
    catalog = polib.pofile(str(path))
    translations: list[Translation] = []
    for entry in catalog:
        if entry.obsolete or "fuzzy" in entry.flags:
            continue
        if not entry.msgid_plural:
            translations.append((entry.msgid, entry.msgstr or None, entry.msgctxt))
            continue
        for form, target in sorted(entry.msgstr_plural.items()):
            translations.append((entry.msgid_plural if int(form) else entry.msgid, target or None, entry.msgctxt))
    return "".join(f"{name}: {value}\n" for name, value in catalog.metadata.items()), translations
