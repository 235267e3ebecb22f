"""Rows that stay out: what `hone forget` erased is known by hashes of ids and texts in `journal/forgotten.jsonl`.

The rows themselves are nowhere: who asks whether a row is among them needs the row, and the home's secret, without
which names and telephone numbers could be guessed from their hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import EnvironmentMistake, Problem
from tasks.home import Home

if TYPE_CHECKING:
    import polars as pl

HASH_BYTES = 16
SECRET_BYTES = 32
KEY = "key"
"""Field of a line that names the secret its hash was made with; lines of before there was one lack it."""


class Forgotten(frozenset[str]):
    """Hashes of all ids and texts that must not be collected.

    Attributes:
        secret: What they are made with; empty where there are none.
    """

    secret: bytes = b""


def load(home: Home) -> Forgotten:
    """Hashes of all ids and texts that must not be collected.

    Raises:
        EnvironmentMistake: The secret that they were made with is gone.
    """
    lines = _lines(home)
    if not lines:
        return Forgotten()
    secret = _secret(home, lines)
    found = Forgotten(line["hash"] for line in _keyed(lines, secret))
    found.secret = secret
    return found


def digest(hashes: Collection[str]) -> str | None:
    """What a set of hashes is known by in a stage's key; none for no hashes, so that nothing changes until then."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest() if hashes else None


def remember(home: Home, ids: Iterable[str], texts: Iterable[str]) -> int:
    """Keep the rows with these ids, and those with these normalised texts, out from now on.

    Returns:
        How many of them were not known yet.

    Raises:
        EnvironmentMistake: The secret that the known ones were made with is gone.
    """
    from filelock import FileLock

    with FileLock(home.locks / "forgotten.lock"):
        lines = _lines(home)
        secret = _secret(home, lines)
        lines = _keyed(lines, secret)
        known = {line["hash"] for line in lines}
        kinds = {_of_id(one, secret): "id" for one in ids} | {_of_text(one, secret): "text" for one in texts}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = [
            {"at": now, "kind": kind, "hash": known_by, KEY: _name(secret)}
            for known_by, kind in sorted(kinds.items())
            if known_by not in known
        ]
        _write(_file(home), "".join(json.dumps(line) + "\n" for line in [*lines, *new]).encode())
    return len(new)


def hand_on(home: Home, to: Home) -> None:
    """Let another home, which has forgotten nothing yet, keep out what this one keeps out.

    Raises:
        EnvironmentMistake: The secret that the hashes were made with is gone.
    """
    lines = _lines(home)
    if lines:
        _write(_secret_file(to), _secret(home, lines))
        _write(_file(to), _file(home).read_bytes())


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
    if not isinstance(hashes, Forgotten):
        raise TypeError("hashes without the secret that they were made with")
    secret = hashes.secret
    kept = [True] * rows.height
    if "id" in rows.columns:
        kept = [value is None or _of_id(value, secret) not in hashes for value in rows["id"].to_list()]
    for column in text_columns:
        texts = likenesses(rows[column]).to_list()
        kept = [
            keep and (text is None or _of_text(text, secret) not in hashes)
            for keep, text in zip(kept, texts, strict=True)
        ]
    return rows if all(kept) else rows.filter(pl.Series(kept, dtype=pl.Boolean))


def likenesses(texts: pl.Series) -> pl.Series:
    """Normalised texts, as the split knows them: without case, punctuation, links and mentions."""
    import polars as pl

    from tasks.signatures import normalised

    return texts.to_frame("text").select(normalised(pl.col("text"))).to_series()


def _of_id(value: str, secret: bytes) -> str:
    return _hash(_unkeyed("id", value), secret)


def _of_text(likeness: str, secret: bytes) -> str:
    return _hash(_unkeyed("text", likeness), secret)


def _unkeyed(kind: str, value: str) -> str:
    """The hash of which a line held itself before there was a secret."""
    return hashlib.blake2b(f"{kind}\0{value}".encode(), digest_size=HASH_BYTES).hexdigest()


def _hash(unkeyed: str, secret: bytes) -> str:
    return hashlib.blake2b(unkeyed.encode(), digest_size=HASH_BYTES, key=secret).hexdigest()


def _name(secret: bytes) -> str:
    """By which a line names the secret that it was made with."""
    return hashlib.blake2b(secret, digest_size=4).hexdigest()


def _lines(home: Home) -> list[dict[str, Any]]:
    file = _file(home)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _keyed(lines: Sequence[dict[str, Any]], secret: bytes) -> list[dict[str, Any]]:
    """The lines, those of before there was a secret made with it."""
    return [line if KEY in line else line | {"hash": _hash(line["hash"], secret), KEY: _name(secret)} for line in lines]


def _secret(home: Home, lines: Sequence[dict[str, Any]]) -> bytes:
    """The home's secret, made when it is first needed."""
    from filelock import FileLock

    file = _secret_file(home)
    named = {line[KEY] for line in lines if KEY in line}
    with FileLock(home.locks / "forgotten-secret.lock"):
        if not named and not file.exists():
            _write(file, secrets.token_bytes(SECRET_BYTES))
    secret = file.read_bytes() if file.exists() else b""
    if len(secret) != SECRET_BYTES or named - {_name(secret)}:
        rule = "is not what the forgotten rows are known by: they would be collected again"
        raise EnvironmentMistake(Problem(str(file), None, rule, "restore it from a backup of the home"))
    return secret


def _write(file: Path, content: bytes) -> None:
    """Write a file for its owner's eyes: on the disk before this returns, whole or not at all."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
    draft.replace(file)


def _secret_file(home: Home) -> Path:
    return home.journal / "forgotten.secret"


def _file(home: Home) -> Path:
    return home.journal / "forgotten.jsonl"
