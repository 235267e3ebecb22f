"""Where a span of a text lies once the text was put right, and where it lay before.

Texts are aligned word by word. What comes out is proved: the span, put right by itself, must be what stands at the
place that was found. This module travels with every model and imports nothing of ours but its neighbours.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from .repair import TextRules, repaired

WORD = re.compile(r"\w+|[^\w\s]")
MOST_CANDIDATES = 64
"""Pieces of a stretch of changed words that are tried for one that becomes the wanted text."""

Span = tuple[int, int]


class Alignment:
    """The words of two texts side by side: blocks of equal words, and gaps between them.

    Args:
        one: A text.
        other: What became of it, or what it was before.
    """

    def __init__(self, one: str, other: str) -> None:
        self._one, self._other = ([match.span() for match in WORD.finditer(text)] for text in (one, other))
        words = [one[begin:end] for begin, end in self._one]
        others = [other[begin:end] for begin, end in self._other]
        same = _common(words, others)
        same_at_end = _common(words[same:][::-1], others[same:][::-1])
        middle = SequenceMatcher(
            None, words[same : len(words) - same_at_end], others[same : len(others) - same_at_end]
        ).get_matching_blocks()
        blocks = [(0, 0, same), *((a + same, b + same, size) for a, b, size in middle)]
        blocks.append((len(words) - same_at_end, len(others) - same_at_end, same_at_end))
        self._blocks = [block for block in blocks if block[2]]
        self._starts = [block[0] for block in self._blocks]

    def span(self, begin: int, end: int) -> Span | None:
        """Where the characters from `begin` to `end` of the one text are in the other, as far as words tell.

        Of words that were changed, all between the nearest unchanged ones.
        """
        touched = [place for place, (start, stop) in enumerate(self._one) if start < end and stop > begin]
        if not touched:
            return None
        first, last = touched[0], touched[-1]
        low, high = self._around(first)[0], self._around(last)[1]
        if low >= len(self._other) or high < low:
            return None
        exactly = self._partner(first) is not None
        found_begin = self._other[low][0] + (max(0, begin - self._one[first][0]) if exactly else 0)
        exactly = self._partner(last) is not None
        found_end = self._other[high][1] - (max(0, self._one[last][1] - end) if exactly else 0)
        return (found_begin, found_end) if found_begin < found_end else None

    def _partner(self, place: int) -> int | None:
        """The same word in the other text."""
        number = bisect.bisect_right(self._starts, place) - 1
        if number < 0:
            return None
        start, partner, size = self._blocks[number]
        return partner + place - start if place < start + size else None

    def _around(self, place: int) -> Span:
        """First and last word in the other text that a word may have become."""
        partner = self._partner(place)
        if partner is not None:
            return partner, partner
        number = bisect.bisect_right(self._starts, place)
        low = sum(self._blocks[number - 1][1:]) if number else 0
        high = self._blocks[number][1] - 1 if number < len(self._blocks) else len(self._other) - 1
        return low, high


def _common(words: list[str], others: list[str]) -> int:
    """Words that both begin with."""
    for place, (word, other) in enumerate(zip(words, others, strict=False)):
        if word != other:
            return place
    return min(len(words), len(others))


def put_right(context: str, cleaned: str, begin: int, end: int, rules: TextRules) -> Span | None:
    """Where a span of a context is in what cleaning made of it; none where that is gone.

    Where the alignment cannot prove it, the nearest place at which the same text stands.

    Args:
        context: As it was collected.
        cleaned: After the rules.
        begin: First character of the span in `context`.
        end: One after its last.
        rules: Those of `tasks.rules.repair`.
    """
    if context == cleaned:
        return begin, end
    wanted = became(context[begin:end], rules)
    if not wanted:
        return None
    found = Alignment(context, cleaned).span(begin, end)
    if found is not None and cleaned[slice(*found)] == wanted:
        return found
    about = found[0] if found else round(begin * len(cleaned) / max(1, len(context)))
    return nearest(cleaned, wanted, about)


def as_given(context: str, cleaned: str, begin: int, end: int, rules: TextRules) -> Span | None:
    """Where a span of a cleaned context lies in the context as it was given; none where that cannot be proved.

    Args:
        context: As it was given.
        cleaned: After the rules.
        begin: First character of the span in `cleaned`.
        end: One after its last.
        rules: Those of `tasks.rules.repair`.
    """
    if context == cleaned:
        return begin, end
    found = Alignment(cleaned, context).span(begin, end)
    if found is None:
        return None
    wanted = cleaned[begin:end]
    words = [(found[0] + m.start(), found[0] + m.end()) for m in WORD.finditer(context[slice(*found)])]
    pieces = [(low[0], high[1]) for i, low in enumerate(words) for high in words[i:]][:MOST_CANDIDATES]
    whole, *parts = _repaired([context[slice(*piece)] for piece in (found, *pieces)], rules)
    if whole == wanted:
        return found
    proved = [piece for piece, text in zip(pieces, parts, strict=True) if text == wanted]
    if not proved or max(piece[0] for piece in proved) >= min(piece[1] for piece in proved):
        return None  # nowhere, or who knows at which of several places
    return min(proved, key=lambda piece: piece[1] - piece[0])


def became(text: str, rules: TextRules) -> str:
    """A text by itself after the rules, without white space at its ends."""
    return _repaired([text], rules)[0].strip()


def _repaired(texts: Sequence[str], rules: TextRules) -> list[str]:
    import polars as pl

    return repaired(pl.Series(texts, dtype=pl.String), rules).to_list()


def nearest(text: str, wanted: str, about: int) -> Span | None:
    """The place of `wanted` in a text that begins nearest to a character; of two as near the first."""
    before = text.rfind(wanted, 0, about + len(wanted))
    after = text.find(wanted, max(0, about))
    places = [place for place in (before, after) if place >= 0]
    if not wanted or not places:
        return None
    begin = min(places, key=lambda place: abs(place - about))
    return begin, begin + len(wanted)
