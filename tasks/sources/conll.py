"""CoNLL files: a token on each line, its columns between white space, a blank line after each sentence; one row each.

Columns of a row: `text` (the words, one space between two), `tags` (as many), `document`. A file with tabs is parted at
tabs alone. `-DOCSTART-` and comments are no tokens; nor are the lines of CoNLL-U for words written as one (`1-2`) and
words left out (`8.1`). A sentence with a broken line is set aside as a whole, with the number of that line: reasons
`missing_column`, `empty_word`, `empty_tag`, `space_in_word`, `space_in_tag`, `line_too_long`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.sources import ConllSource
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Wanted, asked, require_columns
from tasks.sources.text import MAX_RAW_CHARS, line_blocks, opened
from tasks.sources.word_lists import fault

COLUMNS = ("text", "tags", "document")
DOCUMENT = "-DOCSTART-"
NEW_DOCUMENT = re.compile(r"#\s*newdoc\b")
"""How CoNLL-U marks a document."""
NO_WORD = re.compile(r"\d+[-.]\d+")
"""Number of a line of CoNLL-U that is no word of the text."""
SPACES = re.compile("[ \t]+")
TOO_LONG = "line_too_long"


@dataclass
class _Sentence:
    """What was read of a sentence so far.

    Attributes:
        number: Of its first line.
        fault: Number and reason of its first broken line.
    """

    number: int = 0
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    fault: tuple[int, str] | None = None


class _Reader:
    """Sentences out of lines.

    Args:
        source: Which columns hold what.
        name: Of the file; part of the names of its documents.
    """

    def __init__(self, source: ConllSource, name: str) -> None:
        self._source, self._name = source, name
        self._documents, self._line = 0, 0
        self._sentence = _Sentence()
        self.rows: list[tuple[int, str, str, str | None]] = []
        self.unreadable: list[tuple[int, str, str]] = []

    def read(self, lines: Sequence[str], *, too_long: bool) -> None:
        """Take up lines that follow each other."""
        for line in lines:
            self._line += 1
            self._take(line.strip("\r\n"), too_long=too_long)

    def end(self) -> None:
        """A sentence is over, if there was one."""
        sentence, self._sentence = self._sentence, _Sentence()
        if not sentence.lines:
            return
        if sentence.fault:
            number, reason = sentence.fault
            self.unreadable.append((number, "\n".join(sentence.lines)[:MAX_RAW_CHARS], reason))
        elif sentence.words:
            document = f"{self._name}:{self._documents}" if self._documents else None
            self.rows.append((sentence.number, " ".join(sentence.words), " ".join(sentence.tags), document))

    def _take(self, line: str, *, too_long: bool) -> None:
        comment = self._source.comment
        if not line.strip():
            self.end()
        elif line.startswith(DOCUMENT):
            self.end()
            self._documents += 1
        elif comment and line.startswith(comment) and not self._sentence.lines:
            self._documents += NEW_DOCUMENT.match(line) is not None
        else:
            self._take_token(line, too_long=too_long)

    def _take_token(self, line: str, *, too_long: bool) -> None:
        source, sentence = self._source, self._sentence
        sentence.number = sentence.number or self._line
        sentence.lines.append(line)
        fields = line.split("\t") if "\t" in line.strip(" ") else SPACES.split(line.strip())
        if source.word_column > 1 and NO_WORD.fullmatch(fields[0]):
            return
        word, tag = (_column(fields, number) for number in (source.word_column, source.tag_column))
        reason = TOO_LONG if too_long else None
        if word is None or tag is None or len(fields) == 1:
            reason = reason or "missing_column"
        else:
            reason = reason or fault(word, "word") or fault(tag, "tag")
            sentence.words.append(word)
            sentence.tags.append(tag)
        if reason and not sentence.fault:
            sentence.fault = self._line, reason


def read(path: Path, source: ConllSource, field: str, wanted: Wanted, *, shown: str) -> Iterator[Batch]:
    """The sentences of a file, numbered by their first line.

    Args:
        path: Where it is.
        source: The recipe's.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.
        shown: Its location as errors show it.

    Raises:
        DataError: It is no text, or a column is asked for that sentences have not.
    """
    name = Path(shown).name
    require_columns(wanted, COLUMNS, name)
    reader = _Reader(source, name)
    with opened(path, "conll", field, shown) as file:
        for lines, too_long in line_blocks(file):
            reader.read(lines, too_long=too_long)
            if len(reader.rows) >= BATCH_ROWS:
                yield _batch(reader, wanted)
    reader.end()
    yield _batch(reader, wanted)


def _batch(reader: _Reader, wanted: Wanted) -> Batch:
    """What waits, handed on."""
    import numpy as np
    import polars as pl

    rows, unreadable = reader.rows, reader.unreadable
    reader.rows, reader.unreadable = [], []
    values = [pl.Series(name, [row[1 + COLUMNS.index(name)] for row in rows], pl.String) for name in asked(wanted)]
    return Batch(COLUMNS, np.array([number for number, *_ in rows], np.uint32), pl.DataFrame(values), unreadable)


def _column(fields: Sequence[str], number: int) -> str | None:
    """The field of this number from 1, or from -1 for the last one; none where there are too few."""
    place = number - 1 if number > 0 else len(fields) + number
    return fields[place].strip(" ") if 0 <= place < len(fields) else None
