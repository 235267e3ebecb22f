"""Rows that stay out: what `hone forget` erased is known by hashes of ids and texts in `journal/forgotten.jsonl`.

The rows themselves are nowhere: who asks whether a row is among them needs the row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.home import Home

if TYPE_CHECKING:
    import polars as pl

HASH_BYTES = 16


def load(home: Home) -> frozenset[str]:
    """Hashes of all ids and texts that must not be collected."""
    file = _file(home)
    if not file.exists():
        return frozenset()
    return frozenset(json.loads(line)["hash"] for line in file.read_text(encoding="utf-8").splitlines())


def digest(hashes: Collection[str]) -> str | None:
    """What a set of hashes is known by in a stage's key; none for no hashes, so that nothing changes until then."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest() if hashes else None


def remember(home: Home, ids: Iterable[str], texts: Iterable[str]) -> int:
    """Keep the rows with these ids, and those with these normalised texts, out from now on.

    Returns:
        How many of them were not known yet.
    """
    from filelock import FileLock

    with FileLock(home.locks / "forgotten.lock"):
        known = load(home)
        hashes = {_of_id(one): "id" for one in ids} | {_of_text(one): "text" for one in texts}
        new = {known_by: kind for known_by, kind in sorted(hashes.items()) if known_by not in known}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with _file(home).open("a", encoding="utf-8") as journal:
            for known_by, kind in new.items():
                journal.write(json.dumps({"at": now, "kind": kind, "hash": known_by}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
    return len(new)


def leave_out(rows: pl.DataFrame, text_columns: Sequence[str], hashes: Collection[str]) -> pl.DataFrame:
    """The rows that nobody asked to forget.

    Args:
        rows: As collected: with `id`, where they have one, and the text columns.
        text_columns: Columns that a forgotten text may be in.
        hashes: See `load`.
    """
    import polars as pl

    if not hashes:
        return rows
    kept = [True] * rows.height
    if "id" in rows.columns:
        kept = [value is None or _of_id(value) not in hashes for value in rows["id"].to_list()]
    for column in text_columns:
        texts = likenesses(rows[column]).to_list()
        kept = [keep and (text is None or _of_text(text) not in hashes) for keep, text in zip(kept, texts, strict=True)]
    return rows if all(kept) else rows.filter(pl.Series(kept, dtype=pl.Boolean))


def likenesses(texts: pl.Series) -> pl.Series:
    """Normalised texts, as the split knows them: without case, punctuation, links and mentions."""
    import polars as pl

    from tasks.signatures import normalised

    return texts.to_frame("text").select(normalised(pl.col("text"))).to_series()


def _of_id(value: str) -> str:
    return _hash("id", value)


def _of_text(likeness: str) -> str:
    return _hash("text", likeness)


def _hash(kind: str, value: str) -> str:
    return hashlib.blake2b(f"{kind}\0{value}".encode(), digest_size=HASH_BYTES).hexdigest()


def _file(home: Home) -> Path:
    return home.journal / "forgotten.jsonl"
