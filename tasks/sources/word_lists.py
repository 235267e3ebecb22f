"""Lists of words: made texts in which one space stands between two words, as rows have them.

A source may hold the words of a text, and what belongs to each, as lists: they arrive as JSON. A word that is empty or
has white space within could not be told from its neighbours: such a row is set aside. Reasons: `empty_word`,
`space_in_word`, `not_words` (a list of something else).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tasks.sources import Batch
from tasks.sources.text import MAX_RAW_CHARS

LIST = "["
NOT_WORDS = "not_words"


def joined(batch: Batch, columns: Sequence[str]) -> Batch:
    """The batch with texts for lists of words in these columns; rows whose lists are none are unreadable ones.

    A text that merely looks like a list of numbers stays one, unless another column of its row holds a list.

    Args:
        batch: Some rows.
        columns: The first holds words, the others what belongs to them; none: the batch stays as it is.
    """
    import numpy as np
    import polars as pl

    if not columns:
        return batch
    values = batch.values
    may_be = pl.any_horizontal(values[column].str.starts_with(LIST) for column in columns)
    places = values.select(may_be.fill_null(value=False).alias("may")).to_series().arg_true().to_list()
    if not places:
        return batch
    rows = {place: _joined_row([values[column][place] for column in columns]) for place in places}
    bad = {place: found for place, found in rows.items() if isinstance(found, str)}
    for i, column in enumerate(columns):
        texts = [values[column][place] if place in bad else rows[place][i] for place in places]
        changed = values[column].clone().scatter(places, pl.Series(texts, dtype=pl.String))
        values = values.with_columns(changed.alias(column))
    kept = np.ones(values.height, bool)
    kept[list(bad)] = False
    unreadable = [
        (int(batch.numbers[place]), json.dumps(values.row(place, named=True), ensure_ascii=False)[:MAX_RAW_CHARS], why)
        for place, why in bad.items()
    ]
    return Batch(batch.columns, batch.numbers[kept], values.filter(pl.Series(kept)), [*batch.unreadable, *unreadable])


def fault(word: str, what: str = "word") -> str | None:
    """Why this is no word: `empty_…` or `space_in_…`; none where it is one."""
    if not word:
        return f"empty_{what}"
    return f"space_in_{what}" if len(word.split()) != 1 or word != word.strip() else None


def _joined_row(texts: Sequence[str | None]) -> list[str | None] | str:
    """The values of a row with lists as texts, or why one is no list of words."""
    lists = [_list_of(text) for text in texts]
    are = [found is not None and (bool(found) and all(isinstance(item, str) for item in found)) for found in lists]
    if any(found is not None for found in lists[1:]):
        are = [found is not None for found in lists]
    made: list[str | None] = []
    for text, found, is_list in zip(texts, lists, are, strict=True):
        if not is_list or found is None:
            made.append(text)
            continue
        if not all(isinstance(item, str | int | None) and not isinstance(item, bool) for item in found):
            return NOT_WORDS
        words = ["" if item is None else str(item) for item in found]
        reason = next((why for why in map(fault, words) if why), None)
        if reason:
            return reason
        made.append(" ".join(words))
    return made


def _list_of(text: str | None) -> list[Any] | None:
    """The list that a text is the JSON of, if it is."""
    if text is None or not text.startswith(LIST):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
