from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from schemas.errors import DataError, EnvironmentMistake
from tasks.sources.gettext import read

ALL = {f"task.{name}": name for name in ("source", "target", "context", "language", "catalog")}
PO = """\
# Comment.
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Language: de\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

msgid "Save"
msgstr "Speichern"

msgctxt "month"
msgid "May"
msgstr "Mai"

msgid "one file"
msgid_plural "%d files"
msgstr[0] "eine Datei"
msgstr[1] "%d Dateien"

msgid "Untranslated"
msgstr ""

#, fuzzy
msgid "Guess"
msgstr "Geraten"

msgid "two "
"lines"
msgstr "zwei\\n"
"Zeilen „ü“"

#~ msgid "Old"
#~ msgstr "Alt"
"""
EXPECTED = {
    ("Save", "Speichern", None),
    ("May", "Mai", "month"),
    ("one file", "eine Datei", None),
    ("%d files", "%d Dateien", None),
    ("two lines", "zwei\nZeilen „ü“", None),
}


def compiled(pairs: list[tuple[bytes, bytes]], order: str = "<") -> bytes:
    """A .mo file, laid out by hand."""
    table, data, start = b"", b"", 28 + 16 * len(pairs)
    tables = []
    for column in (0, 1):
        table = b""
        for pair in pairs:
            table += struct.pack(f"{order}2I", len(pair[column]), start + len(data))
            data += pair[column] + b"\0"
        tables.append(table)
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + tables[0] + tables[1] + data


def catalog(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, wanted: dict[str, str] = ALL) -> list[tuple]:
    batches = list(read(path, "collect.source.path", wanted))
    assert [n for b in batches for n in b.numbers.tolist()] == list(range(1, sum(b.values.height for b in batches) + 1))
    return [row for batch in batches for row in batch.values.rows()]


def test_a_po_gives_its_translations_without_header_fuzzy_and_obsolete_entries(tmp_path):
    found = rows(catalog(tmp_path, PO, "app.po"))
    assert {row[:3] for row in found} == EXPECTED | {("Untranslated", None, None)}
    assert {row[3:] for row in found} == {("de", "app")}
    assert len(found) == 6


def test_a_mo_gives_the_rows_that_polib_compiled_into_it(tmp_path):
    polib = pytest.importorskip("polib")
    path = tmp_path / "de_AT" / "LC_MESSAGES" / "shop.mo"
    path.parent.mkdir(parents=True)
    polib.pofile(str(catalog(tmp_path, PO, "app.po"))).save_as_mofile(str(path))
    found = rows(path)
    assert {row[:3] for row in found} == EXPECTED, "msgfmt and polib leave untranslated entries out"
    assert {row[3:] for row in found} == {("de_AT", "shop")}, "the folder's language comes before the header's"


@pytest.mark.parametrize("order", "<>")
def test_a_mo_is_read_in_both_byte_orders_and_in_its_own_charset(tmp_path, order):
    header = b"Content-Type: text/plain; charset=ISO-8859-1\nLanguage: fr\n"
    pairs = [(b"", header), (b"menu\x04Open\0Open all", b"Ouvrir\0\xc9tat\0Tous")]
    assert rows(catalog(tmp_path, compiled(pairs, order), "a.mo")) == [
        ("Open", "Ouvrir", "menu", "fr", "a"),
        ("Open all", "État", "menu", "fr", "a"),
        ("Open all", "Tous", "menu", "fr", "a"),
    ]


def test_only_the_columns_asked_for_come_each_once(tmp_path):
    wanted = {"task.text_column": "target", "collect.group_column": "catalog", "collect.keep": "catalog"}
    (batch,) = read(catalog(tmp_path, PO, "app.po"), "collect.source.path", wanted)
    assert batch.values.columns == ["target", "catalog"]
    assert list(batch.columns) == ["source", "target", "context", "language", "catalog"]


def test_a_catalog_without_translations_gives_no_rows_but_its_columns(tmp_path):
    (batch,) = read(catalog(tmp_path, PO.partition('msgid "Save"')[0], "app.po"), "collect.source.path", ALL)
    assert batch.values.height == 0
    assert batch.values.columns == list(ALL.values())


def test_a_column_that_catalogs_do_not_have_is_a_mistake(tmp_path):
    with pytest.raises(DataError, match=r"task\.text_column = 'sauce': .*did you mean 'source'"):
        rows(catalog(tmp_path, PO, "app.po"), {"task.text_column": "sauce"})


DAMAGED = {
    "cut short": compiled([(b"", b""), (b"Save", b"Speichern")])[:-8],
    "cut in its tables": compiled([(b"", b""), (b"Save", b"Speichern")])[:40],
    "of the future": compiled([(b"a", b"b")]).replace(b"\0\0\0\0\1\0\0\0", b"\0\0\7\0\1\0\0\0", 1),
    "not in its charset": compiled([(b"", b"Content-Type: text/plain; charset=utf-8\n"), (b"a", b"\xff")]),
    "of no charset": compiled([(b"", b"Content-Type: text/plain; charset=klingon\n"), (b"a", b"b")]),
    "no catalog": b"text,label\ngood,pos\n",
    "broken text": b'msgid "Save"\nmsgstr Speichern\n',
    "bytes of another kind": b"\x89PNG\r\n\x1a\n\0\0\0",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_catalog_is_one_line_that_names_it(tmp_path, what):
    path = catalog(tmp_path, DAMAGED[what], "app.mo")
    with pytest.raises(DataError, match="is not a sound gettext catalog") as caught:
        rows(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("collect.source.path = ")


def test_a_po_without_polib_names_the_extra_and_a_mo_needs_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "polib", None)
    with pytest.raises(EnvironmentMistake, match=r"hone\[gettext\]"):
        rows(catalog(tmp_path, PO, "app.po"))
    assert rows(catalog(tmp_path, compiled([(b"a", b"b")]), "x.mo")) == [("a", "b", None, None, "x")]
