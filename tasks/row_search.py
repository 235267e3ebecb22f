"""Search for rows by id or text in whatever may hold them: tables by their columns, everything else by its characters.

A text is found however it is written: case, punctuation, links and mentions do not count. Tables (Parquet, Arrow) are
searched exactly. In other files a text is found between any two others, and an id as a whole word, unless they are so
short that they would be found everywhere. Does not look into pictures, weights and other files that are no text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any

from tasks.forgotten import likenesses
from tasks.rows import BATCH_ROWS

if TYPE_CHECKING:
    import polars as pl

TWIN = "twin"
"""Column with the id of the row that another one resembles."""
NO_TEXT = frozenset({"id", TWIN, "raw", "source", "reason", "side"})
RAW = "raw"
"""Column with a row as it stood in the source, or as JSON."""
TELLING_ID, TELLING_TEXT = 8, 10
"""Fewest characters by which an id or a text is looked for outside of tables."""
BLOCK_CHARS = 1 << 20
SNIFFED_BYTES = 4096
STRUCTURE = re.compile(r'([",;|\t{}\[\]])')
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Terms:
    """What is looked for.

    Attributes:
        ids: Of the rows.
        texts: Their normalised texts.
    """

    ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    def telling(self) -> Terms:
        """Those that mean a row wherever they stand; a short number or a single word means many things."""
        return Terms(
            frozenset(one for one in self.ids if len(one) >= TELLING_ID),
            frozenset(one for one in self.texts if len(one) >= TELLING_TEXT),
        )


@dataclass
class Hits:
    """What was found.

    Attributes:
        rows: Rows of tables, or 1 for a file of another kind.
        ids: Ids of these rows.
        texts: Their normalised texts, where the table has them.
        raws: Those of the whole rows, where they were kept as they stood in the source.
    """

    rows: int = 0
    ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    raws: set[str] = field(default_factory=set)

    def __iadd__(self, other: Hits) -> Hits:
        self.rows += other.rows
        self.ids |= other.ids
        self.texts |= other.texts
        self.raws |= other.raws
        return self


def search_file(file: IO[bytes], name: str, terms: Terms, text_columns: Collection[str] | None = None) -> Hits:
    """Look for the terms in one file.

    Args:
        file: Opened, seekable.
        name: Its name; the end of it says of what kind it is.
        terms: What is looked for.
        text_columns: Columns of a table that hold texts; default: any may.
    """
    found = Hits()
    if PurePath(name).suffix in {".parquet", ".arrow"}:
        for frame in _parquet(file) if name.endswith(".parquet") else _arrow(file):
            found += search_rows(frame, terms, text_columns)
    elif _in_characters(file, name, terms):
        found.rows = 1
    return found


def search_rows(rows: pl.DataFrame, terms: Terms, text_columns: Collection[str] | None = None) -> Hits:
    """Look for the terms in the rows of a table.

    A row that names another one (`twin`), or holds a line that quotes one (`raw`), is counted but is not that row: its
    own id and text are not handed back.
    """
    import polars as pl

    def named_by(column: str) -> pl.Series:
        if column not in rows.columns:
            return pl.repeat(False, rows.height, eager=True)
        return rows[column].cast(pl.String).is_in(pl.Series(sorted(terms.ids), dtype=pl.String)).fill_null(value=False)

    strings = [name for name, kind in rows.schema.items() if kind == pl.String and name not in NO_TEXT]
    texts = [name for name in strings if text_columns is None or name in text_columns]
    own = named_by("id")
    for column in texts:
        own |= _matches(rows[column], terms)
    quoting = _quoting(rows[RAW], terms) if RAW in rows.columns else pl.repeat(False, rows.height, eager=True)
    hit = rows.filter(own)
    return Hits(
        rows=int((own | quoting | named_by(TWIN)).sum()),
        ids=set(hit["id"].cast(pl.String).drop_nulls()) if "id" in rows.columns else set(),
        texts=_likenesses_of(hit, texts),
        raws=_likenesses_of(rows.filter(quoting & ~own), [RAW]),
    )


def _likenesses_of(rows: pl.DataFrame, columns: Iterable[str]) -> set[str]:
    return {text for column in columns if column in rows.columns for text in likenesses(rows[column]).drop_nulls()}


def _matches(texts: pl.Series, terms: Terms) -> pl.Series:
    """Whether each text is one of those looked for; only texts that have a telling word are normalised."""
    import polars as pl

    if not terms.texts:
        return pl.Series([False]).new_from_index(0, len(texts))
    words = sorted({_longest_word(text) for text in terms.texts})
    matched = texts.str.to_lowercase().str.contains_any(words).fill_null(value=False)
    likely = matched.arg_true()
    if len(likely):
        matched = matched.scatter(likely, likenesses(texts[likely]).is_in(sorted(terms.texts)))
    return matched.cast(pl.Boolean)


def _quoting(raws: pl.Series, terms: Terms) -> pl.Series:
    """Whether each raw row, a line or JSON, quotes one of the rows looked for."""
    import polars as pl

    telling = terms.telling()
    return pl.Series([raw is not None and mentions(raw, telling) for raw in raws.to_list()], dtype=pl.Boolean)


def _parquet(file: IO[bytes]) -> Iterator[pl.DataFrame]:
    """Batches of the columns that may name or quote a row."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        columns = [
            column.name
            for column in table.schema_arrow
            if column.name == "id" or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ]
        if columns:
            for batch in table.iter_batches(BATCH_ROWS, columns=columns):
                yield pl.DataFrame(batch)


def _arrow(file: IO[bytes]) -> Iterator[pl.DataFrame]:
    import polars as pl
    import pyarrow as pa

    with pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pl.DataFrame({"id": pl.Series(batch.column("id"))})


def _in_characters(file: IO[bytes], name: str, terms: Terms) -> bool:
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    terms = terms.telling()
    compression = infer_compression(name)
    stream: Any = compr[compression](file, mode="rb") if compression in compr and compression else file
    if b"\0" in stream.read(SNIFFED_BYTES):
        return False
    stream.seek(0)
    if not (terms.ids or terms.texts):
        return False
    overlap = max([4096, *(4 * len(text) for text in terms.texts)])
    before = ""
    while block := stream.read(BLOCK_CHARS):
        text = before + block.decode("utf-8", errors="replace")
        if mentions(text, terms):
            return True
        before = text[-overlap:]
    return False


def mentions(text: str, terms: Terms) -> bool:
    """Whether one of the terms, all of them telling, stands anywhere in a text."""
    import polars as pl

    if terms.ids and _whole_words(terms.ids).search(text):
        return True
    plain = _unescaped(text)
    low = f"{text}\n{plain}".lower()
    likely = [wanted for wanted in terms.texts if _longest_word(wanted) in low]
    if not likely:
        return False
    readings = [f" {reading} " for reading in likenesses(pl.Series([text, STRUCTURE.sub(r" \1 ", plain)]))]
    return any(f" {wanted} " in reading for wanted in likely for reading in readings)


def _longest_word(likeness: str) -> str:
    return max(likeness.split(" "), key=len)


def _whole_words(ids: frozenset[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(ids)))})(?![\w-])")


def _unescaped(text: str) -> str:
    """JSON's escapes as the characters they mean, those of white space as spaces."""
    if "\\" not in text:
        return text
    text = ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub(r"\\[nrtbf]", " ", text)
