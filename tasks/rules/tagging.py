"""Words, tags and entities: which token tells the tag of a word, which tag may follow which, what tags mean together.

A tag sequence means what conlleval and seqeval take it for: an entity begins with B- or S-, ends with E- or S-, and an
I- or E- that nothing of its type goes before begins one. This module travels with every model; it imports nothing of
ours.

References:
    E. F. Tjong Kim Sang, S. Buchholz (2000), Introduction to the CoNLL-2000 Shared Task: Chunking.
    L. Ramshaw, M. Marcus (1995), Text Chunking using Transformation-Based Learning.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

OUTSIDE = "O"
"""Tag of a word that is in no entity."""
NO_WORD = -1
"""Stands for the word of a token that begins none."""
WORD = re.compile(r"\S+")
TAG = re.compile(r"([BIES])-(.+)", re.DOTALL)
TINY = 1e-12
"""A smaller probability counts as this much."""
IMPOSSIBLE = -1e9
"""Logarithm that no sequence makes up for."""

Bounds = Sequence[tuple[int, int]]
"""First character and end of each of several parts of a text."""
Entity = tuple[str, int, int]
"""Type, first word, end."""


def bounds_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: whatever stands between white space."""
    return [match.span() for match in WORD.finditer(text)]


def first_tokens(words: Bounds, tokens: Bounds) -> list[int]:
    """For each token the number of the word that it is the first token of, else `NO_WORD`.

    A token belongs to the word of its last character: byte-level and SentencePiece tokenizers count the space before a
    word to its first token. One that stands for no character, as special tokens do, belongs to none.

    Args:
        words: Of a text, see `bounds_of`.
        tokens: Of the same text, or of a window of it.
    """
    starts = [start for start, _ in words]
    found: list[int] = []
    before = NO_WORD
    for start, end in tokens:
        word = bisect_right(starts, end - 1) - 1 if end > start else NO_WORD
        if word != NO_WORD and end > words[word][1]:
            word = NO_WORD
        begins = word not in {NO_WORD, before} and start <= words[word][0]
        found.append(word if begins else NO_WORD)
        before = word
    return found


def places_of(windows: Sequence[Sequence[int]], count: int) -> list[tuple[int, int] | None]:
    """Window and token that tell the tag of each word; none for a word that no window has.

    Of several windows it is the one in which the word is furthest from where the text was cut.

    Args:
        windows: What `first_tokens` found in each window of a text.
        count: Words of the text.
    """
    found: list[tuple[int, int] | None] = [None] * count
    rooms: list[float] = [-1] * count
    for window, words in enumerate(windows):
        begins, ends, last = 0 in words, count - 1 in words, len(words) - 1
        for token, word in enumerate(words):
            if word == NO_WORD:
                continue
            room = min(inf if begins else token, inf if ends else last - token)
            if room > rooms[word]:
                found[word], rooms[word] = (window, token), room
    return found


def tagged(
    outputs: Sequence[Floats], windows: Sequence[Sequence[int]], count: int, tags: Sequence[str], scheme: str
) -> tuple[list[str], list[float]]:
    """The tags of a text's words and the probability of each: the most probable sequence that the scheme allows.

    A word that no window has is `OUTSIDE`, with a probability of 0.

    Args:
        outputs: Probabilities for each window, `[tokens, tags]`.
        windows: What `first_tokens` found in each.
        count: Words of the text.
        tags: What the probabilities are of, in their order.
        scheme: See `may_follow`.
    """
    import numpy as np

    read = [(word, *place) for word, place in enumerate(places_of(windows, count)) if place is not None]
    found, scores = [OUTSIDE] * count, [0.0] * count
    if not read:
        return found, scores
    probabilities = np.stack([outputs[window][token] for _, window, token in read])
    order = [word for word, *_ in read]
    for word, best, row in zip(order, _best(probabilities, order, tags, scheme), probabilities, strict=True):
        found[word], scores[word] = tags[best], float(row[best])
    return found, scores


def _best(probabilities: Floats, words: Sequence[int], tags: Sequence[str], scheme: str) -> list[int]:
    """Places of the best tags; a word that is not among `words` lies outside, so that its neighbours meet O."""
    best: list[int] = probabilities.argmax(-1).tolist()
    if scheme == "none":
        return best
    outside = tags.index(OUTSIDE)
    whole: list[int] = []
    cuts = [0, *(place for place in range(1, len(words)) if words[place] != words[place - 1] + 1), len(words)]
    for begin, end in pairwise(cuts):
        names = [tags[place] for place in best[begin:end]]
        part = best[begin:end]
        whole += _most_probable(probabilities[begin:end], tags, scheme, outside) if is_broken(names, scheme) else part
    return whole


def _most_probable(probabilities: Floats, tags: Sequence[str], scheme: str, outside: int) -> list[int]:
    """Viterbi's path, `[words]`, between two words that lie outside."""
    import numpy as np

    steps = _steps(tuple(tags), scheme)
    logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    scores = logs[0] + steps[outside]
    origins = []
    for row in logs[1:]:
        paths = scores[:, None] + steps
        origins.append(paths.argmax(0))
        scores = paths.max(0) + row
    path = [int((scores + steps[:, outside]).argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]


@cache
def _steps(tags: tuple[str, ...], scheme: str) -> Any:
    """`[tags, tags]`: 0 where the second may follow the first, else `IMPOSSIBLE`."""
    import numpy as np

    return np.array([[0.0 if may_follow(tag, before, scheme) else IMPOSSIBLE for tag in tags] for before in tags])


def parts(tag: str) -> tuple[str, str]:
    """Prefix (B, I, E or S) and type of a tag; `OUTSIDE` and nothing for one of another form."""
    match = TAG.fullmatch(tag)
    return (match[1], match[2]) if match else (OUTSIDE, "")


def may_follow(tag: str, before: str, scheme: str) -> bool:
    """Whether the scheme allows `tag` after `before`; a text stands between two `OUTSIDE`.

    Args:
        tag: Of a word.
        before: Of the word before it.
        scheme: `bio`: B- begins every entity. `iob1`: I- begins one, B- only behind another of its type. `bioes`: E-
            ends every entity of several words, S- is one of a single word. `none`: tags mean nothing together.
    """
    (prefix, kind), (last, last_kind) = parts(tag), parts(before)
    together = last in {"B", "I"} and kind == last_kind
    if scheme == "bio":
        return prefix != "I" or together
    if scheme == "iob1":
        return prefix != "B" or together
    if scheme == "bioes":
        goes_on, inside = last in {"B", "I"}, prefix in {"I", "E"}
        return together if goes_on and inside else not goes_on and not inside
    return True


def is_broken(tags: Sequence[str], scheme: str) -> bool:
    """Whether the tags of a text are in an order that the scheme does not allow."""
    return any(not may_follow(tag, before, scheme) for before, tag in pairwise((OUTSIDE, *tags, OUTSIDE)))


def entities_of(tags: Sequence[str], scheme: str) -> list[Entity]:
    """The entities that the tags of a text mean; without a scheme every word is one, of its tag."""
    if scheme == "none":
        return [(tag, word, word + 1) for word, tag in enumerate(tags)]
    found: list[Entity] = []
    last, kind, begin = OUTSIDE, "", 0
    for word, tag in enumerate((*tags, OUTSIDE)):
        prefix, now = parts(tag)
        if prefix in {"I", "E"} and last in {"B", "I"} and now == kind:
            last = prefix
            continue
        if last != OUTSIDE:
            found.append((kind, begin, word))
        last, kind, begin = prefix, now, word
    return found
