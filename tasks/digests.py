"""Content digests of files and folders, remembered by size and modification time: unchanged ones cost nothing."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

from tasks.home import Home


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path, home: Home) -> str:
    """Digest of a file, or of all files below a folder with their relative names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    parts = {str(file.relative_to(base)): _remembered_sha256(file, home) for file in files}
    if path.is_file():
        return next(iter(parts.values()))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _remembered_sha256(file: Path, home: Home) -> str:
    stat = file.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = home.digests / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
    if note.exists():
        remembered = json.loads(note.read_text())
        if remembered["stamp"] == stamp:
            return str(remembered["sha256"])
    digest = file_sha256(file)
    write_atomically(note, json.dumps({"path": str(file), "stamp": stamp, "sha256": digest}))
    return digest


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(text)
    draft.replace(path)
