"""Rules about several rows: ids given twice, contradictions, duplicates; and the numbering of digest ids.

They see 64-bit digests of what they compare, as arrays over all rows: 10 million rows fit into half a gigabyte, and the
chance that any two different texts among them are taken for one is about 3 in a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

KEYS = ("id_key", "text_key", "target_key", "rank")
"""Columns of digests: of the id, of what makes texts the same, of the targets, of all content."""
KEPT, DUPLICATE_ID, CONTRADICTING_LABEL, DUPLICATE = range(4)
REASONS = (None, "duplicate_id", "contradicting_label", "duplicate")
BUCKETS = 16
"""Rows are compared a sixteenth at a time: sorting needs as much memory again."""


@dataclass(frozen=True)
class Keys:
    """Digests of all rows, each `[rows]` uint64, in the rows' order."""

    id_key: np.ndarray[Any, Any]
    text_key: np.ndarray[Any, Any]
    target_key: np.ndarray[Any, Any]
    rank: np.ndarray[Any, Any]


def fingerprints(texts: pl.Series) -> np.ndarray[Any, Any]:
    """64 bits by which equal texts are found: `[texts]` uint64, the same only where the version of Polars is.

    Nine times as fast as a digest of each; not to be kept under a key that does not have the version.
    """
    found: np.ndarray[Any, Any] = texts.hash().to_numpy()
    return found


def judge(keys: Keys, *, own_ids: bool, contradictions: bool, duplicates: bool) -> np.ndarray[Any, Any]:
    """Why each row falls out: `[rows]` uint8, place in `REASONS`. A row that falls takes no other with it.

    Args:
        keys: Digests of all rows.
        own_ids: Ids come from the source, so that each names one row: the first in order.
        contradictions: Rows of one text with several targets go.
        duplicates: Of rows with one text and target, the one of the smallest rank stays.
    """
    import numpy as np

    reason = np.zeros(len(keys.rank), np.uint8)
    if own_ids:
        for rows in _buckets(keys.id_key, reason):
            order = rows[np.argsort(keys.id_key[rows], kind="stable")]
            reason[order[~_starts(keys.id_key[order])]] = DUPLICATE_ID
    for rows in _buckets(keys.text_key, reason):
        order = rows[np.lexsort((keys.rank[rows], keys.target_key[rows], keys.text_key[rows]))]
        new_text = _starts(keys.text_key[order])
        new_pair = new_text | _starts(keys.target_key[order])
        if duplicates:
            reason[order[~new_pair]] = DUPLICATE
        if contradictions:
            text = np.cumsum(new_text) - 1
            targets = np.bincount(text, weights=new_pair)
            reason[order[targets[text] > 1]] = CONTRADICTING_LABEL
    return reason


def numbers(keys: Keys, reason: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many kept rows of the same id have a smaller rank: `[rows]` int32, by which their ids are told apart."""
    import numpy as np

    number = np.zeros(len(reason), np.int32)
    for rows in _buckets(keys.id_key, reason):
        order = rows[np.lexsort((keys.rank[rows], keys.id_key[rows]))]
        starts = np.flatnonzero(_starts(keys.id_key[order]))
        number[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return number


def _buckets(key: np.ndarray[Any, Any], reason: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Places of the rows kept so far, so that rows of one key are together; in the rows' order."""
    import numpy as np

    bucket_of = (key % np.uint64(BUCKETS)).astype(np.uint8)
    for bucket in range(BUCKETS):
        rows = np.flatnonzero((bucket_of == bucket) & (reason == KEPT))
        if len(rows):
            yield rows


def _starts(sorted_key: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mask: true where the value differs from the one before."""
    import numpy as np

    return np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]])
