"""Pieces of Markdown pages that MLflow and Prefect show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column reads from the left, the others from the right."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))


def plain(text: str) -> str:
    """Text from outside on one line: what Markdown or HTML would take for itself is escaped."""
    for special in "\\|`*_<[#":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def shortened(text: str, most: int) -> str:
    """The first characters of a text, on one line, an ellipsis where some are missing."""
    line = " ".join(text[: 8 * most].split())
    return line if len(line) <= most and len(text) <= 8 * most else f"{line[: most - 1]}…"
