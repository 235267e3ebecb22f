"""The journal of promotions, `<home>/journal/promotions.jsonl`: every move of a champion, before and after it is made.

A line is one JSON object. Of one move, joined by `id`: `intent`, then exactly one of `confirmed` and `undone`. Alone
stand `refused` (a promotion that was not begun), `by hand` (a person moved the alias in MLflow) and `elsewhere`
(another home moved it). Does not cover making the moves (`tasks.registry`).
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.home import Home

Line = dict[str, Any]

SETTLED = ("confirmed", "by hand", "elsewhere")
"""Events after which `to` serves."""


def _flow_run_id() -> str:
    """Prefect's flow run around this; a process that has not loaded Prefect is in none."""
    if "prefect" not in sys.modules:
        return ""
    from prefect.runtime import flow_run

    return str(flow_run.id or "")


@dataclass(frozen=True)
class Move:
    """One move of the champion alias.

    Attributes:
        to: Version that shall serve; none takes the alias away.
        before: Version that serves until then.
        rolls_back: Whether `before` is taken back.
        id: Joins the lines of the journal.
        decision: What the gate had said of `to`; none when no gate had judged it, or where another home knows.
        flow_run_id: Prefect's flow run that makes the move; empty outside one.
    """

    name: str
    to: str | None
    before: str | None
    by: str
    reason: str
    rolls_back: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    decision: str | None = None
    flow_run_id: str = field(default_factory=_flow_run_id)

    @staticmethod
    def of(line: Line) -> Move:
        """The move a line is about."""
        return Move(**{key: line[key] for key in Move.__dataclass_fields__ if key in line})

    def note(self, home: Home, event: str, **more: Any) -> Line:
        """Append a line to the journal, on the disk before this returns."""
        line = {"event": event, "at": now(), **self.__dict__, **more}
        file = _file(home)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as journal:
            # A line that a crash cut short must not swallow this one.
            mend = b"" if _ends_whole(file) else b"\n"
            journal.write(mend + json.dumps(line, ensure_ascii=False).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        return line


def history(home: Home, name: str | None = None) -> list[Line]:
    """The journal, oldest first; of one model, or of all."""
    file = _file(home)
    if not file.exists():
        return []
    lines = (_parsed(text) for text in file.read_bytes().split(b"\n"))
    return [line for line in lines if line and name in {None, line.get("name")}]


def lines_after(home: Home, offset: int) -> tuple[list[Line], int]:
    """The lines from a place in the journal on, and the place after the last of them.

    Args:
        home: Whose journal it is.
        offset: In bytes; 0 is the beginning. Beyond the end: that journal is gone, and this is another one.
    """
    file = _file(home)
    if not file.exists():
        return [], 0
    with file.open("rb") as journal:
        journal.seek(offset if offset <= file.stat().st_size else 0)
        begin, texts = journal.tell(), journal.read().split(b"\n")
    cut_short = len(texts[-1]) if _parsed(texts[-1]) is None else 0
    end = begin + sum(map(len, texts)) + len(texts) - 1 - cut_short
    return [line for text in texts if (line := _parsed(text))], end


def size(home: Home) -> int:
    """Bytes of the journal."""
    file = _file(home)
    return file.stat().st_size if file.exists() else 0


def _parsed(text: bytes) -> Line | None:
    with suppress(ValueError):  # the line a crash cut short, perhaps within a character
        line = json.loads(text.decode())
        return line if isinstance(line, dict) else None
    return None


def unfinished(lines: Sequence[Line]) -> list[Line]:
    """Intents that nothing closed."""
    closed = {line["id"] for line in lines if line["event"] != "intent"}
    return [line for line in lines if line["event"] == "intent" and line["id"] not in closed]


def last_settled(lines: Sequence[Line]) -> Line | None:
    """The last line that says who serves."""
    return next((line for line in reversed(lines) if line["event"] in SETTLED), None)


def now() -> str:
    """The time as the journal writes it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _file(home: Home) -> Path:
    return home.journal / "promotions.jsonl"


def _ends_whole(file: Path) -> bool:
    """Whether the file is empty or its last line is complete."""
    with file.open("rb") as journal:
        if journal.seek(0, os.SEEK_END) == 0:
            return True
        journal.seek(-1, os.SEEK_END)
        return journal.read(1) == b"\n"
