"""Near duplicates: which rows are taken out because others resemble them too closely.

Rows that share a band of their signatures are candidates; signatures decide. A row is compared with at most
`REPRESENTATIVES` rows of each side per band, however many share the band, so that the work grows with the rows and not
with their pairs. What happens to a row follows from sides, texts and ranks, never from the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.signatures import Signatures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TEST, VALIDATION, TRAIN, NOWHERE = range(4)
"""Codes of the sides; a row is only ever taken out for one of a side before its own, or of train for one of train."""
REASONS = (
    "",
    "duplicate_of_test",
    "duplicate_of_validation",
    "near_duplicate_of_test",
    "near_duplicate_of_validation",
    "near_duplicate",
)
"""Why a row is taken out, by code."""
REPRESENTATIVES = 4
"""Rows of each side, those of the smallest ranks, that the others of a band's bucket are compared with."""
LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Rows:
    """What rows are compared by.

    Attributes:
        sides: Code of each row's side.
        keys: Digest of its normalised text.
        ranks: Digest of its id: of training rows alike, the one with the smallest stays.
        targets: Digest of what it teaches.
    """

    sides: npt.NDArray[np.uint8]
    keys: npt.NDArray[np.uint64]
    ranks: npt.NDArray[np.uint64]
    targets: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Findings:
    """What is taken out.

    Attributes:
        twin: Of each row the row it is taken out for, which itself stays; -1 for none.
        why: Of each row the code of a reason; 0 for none.
    """

    twin: npt.NDArray[np.int32]
    why: npt.NDArray[np.uint8]


def find(rows: Rows, signatures: Signatures | None, threshold: float) -> Findings:
    """Which rows are taken out, and for which.

    Test rows stay. A validation row goes for a test row, a training row for a test or validation row, by the same
    normalised text or, with signatures, by a similar one. With signatures, of training rows that resemble each other
    and have the same target the one of the smallest rank stays: "lights on" and "lights off" both teach. A row is only
    taken out for one that stays.

    Args:
        rows: All rows; those of `NOWHERE` are left alone.
        signatures: Of all rows; none: only equal texts are found.
        threshold: Jaccard similarity from which rows are near.
    """
    import numpy as np

    order = np.lexsort((rows.ranks, rows.sides))[: int(np.count_nonzero(rows.sides != NOWHERE))]
    sides, keys, targets = rows.sides[order], rows.keys[order], rows.targets[order]
    heads = _heads(keys)
    heads = _heads(np.where(sides[heads] == TRAIN, keys ^ targets, keys))
    roots = heads
    if signatures is not None:
        distinct = np.flatnonzero(heads == np.arange(len(heads)))
        standing = _near(signatures, order, distinct, (sides, targets), threshold)
        roots = np.where(standing[heads] >= 0, standing[heads], heads)
    of_root = sides[roots]
    own_side_too = (sides == TRAIN) & (signatures is not None) & (roots != np.arange(len(roots)))
    out = (of_root < sides) | own_side_too
    same = keys[roots] == keys
    near_codes = np.array([3, 4, 5], np.uint8)[np.minimum(of_root, TRAIN)]
    why = np.where(same & (of_root != TRAIN), of_root + np.uint8(1), near_codes)

    found = Findings(np.full(len(rows.sides), -1, np.int32), np.zeros(len(rows.sides), np.uint8))
    found.twin[order[out]] = order[roots[out]]
    found.why[order[out]] = why[out]
    return found


def _heads(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Of each row the first with its key."""
    import numpy as np

    by_key = np.argsort(keys, kind="stable")
    in_order = keys[by_key]
    first = np.ones(len(keys), bool)
    first[1:] = in_order[1:] != in_order[:-1]
    heads = np.empty(len(keys), np.int32)
    heads[by_key] = by_key[first][np.cumsum(first) - 1]
    return heads


def _near(
    signatures: Signatures,
    order: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    of: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]],
    threshold: float,
) -> npt.NDArray[np.int32]:
    """Of each place in the order the first staying place that is near it, or -1 where it stays itself.

    Args:
        signatures: Of all rows.
        order: Rows by side and rank.
        rows: Places in that order that are compared.
        of: Side and target of each place.
        threshold: Similarity from which two are near.
    """
    import numpy as np

    pairs = np.zeros(0, np.uint64)
    standing = np.full(len(order), -1, np.int32)
    while len(rows):
        more = _distinct([pairs, _search(signatures, order, rows, of, threshold)])
        if len(more) == len(pairs):
            break
        pairs = more
        standing = _standing(pairs, len(order))
        # Rows whose every twin was itself taken out are free again, and have not been compared with each other.
        free = np.zeros(len(order), bool)
        free[pairs >> np.uint64(32)] = True
        rows = np.flatnonzero(free & (standing < 0) & (of[0] == TRAIN))
    return standing


def _search(
    signatures: Signatures,
    order: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    of: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]],
    threshold: float,
) -> npt.NDArray[np.uint64]:
    """Pairs of places that are near: the later in the upper 32 bits, the earlier in the lower; sorted."""
    import numpy as np

    sides, targets = of
    found = [np.zeros(0, np.uint64)]
    last = np.full(len(order), -1, np.int32)
    settled = np.zeros(len(order), bool)
    for number in range(signatures.band_count):
        band = signatures.band(number)
        for candidates in _candidates(band[order[rows]], rows, sides[rows]):
            later, earlier = candidates
            fresh = (last[later] != earlier) & ~settled[later] & ~settled[earlier]
            fresh &= (sides[earlier] != TRAIN) | (targets[later] == targets[earlier])
            later, earlier = later[fresh], earlier[fresh]
            near = signatures.similarity(order[later], order[earlier]) >= threshold
            later, earlier = later[near], earlier[near]
            last[later] = earlier
            settled[later[sides[earlier] == TEST]] = True  # it goes, whatever else is near it
            found.append(later.astype(np.uint64) << np.uint64(32) | earlier.astype(np.uint64))
        rows = rows[~settled[rows]]
        found = [_distinct(found)]
    return found[0]


def _candidates(
    band: npt.NDArray[np.uint32], rows: npt.NDArray[np.int64], sides: npt.NDArray[np.uint8]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of rows, later and earlier, that share a band: each row with the first few of each side in its bucket."""
    import numpy as np

    packed = band.astype(np.uint64) << np.uint64(32) | np.arange(len(band), dtype=np.uint64)
    packed.sort()
    buckets = packed >> np.uint64(32)
    same = buckets[1:] == buckets[:-1]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    members = (packed[shared] & np.uint64(LOW)).astype(np.int64)
    if not len(members):
        return
    buckets = buckets[shared]
    bucket = np.cumsum(np.concatenate([[False], buckets[1:] != buckets[:-1]]))
    side = sides[members]
    counts = np.bincount(bucket * 3 + side, minlength=3 * (int(bucket[-1]) + 1))
    starts = np.cumsum(counts) - counts
    places = np.arange(len(members))
    for other in (TEST, VALIDATION, TRAIN):
        section = bucket * 3 + other
        compared = (side > other) | (side == TRAIN)
        for number in range(REPRESENTATIVES):
            chosen = starts[section] + number
            use = np.flatnonzero(compared & (number < counts[section]) & (chosen < places))
            yield rows[members[use]], rows[members[chosen[use]]]


def _distinct(pairs: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """All pairs once, sorted; `numpy.unique`, which hashes, takes a hundred times as long for such numbers."""
    import numpy as np

    every = np.sort(np.concatenate(pairs))
    fresh = np.ones(len(every), bool)
    fresh[1:] = every[1:] != every[:-1]
    return every[fresh]


def _standing(pairs: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.int32]:
    """Of each place the first staying place near it, or -1 where it stays: in order, a place goes if one near stays."""
    import numpy as np

    every_later, every_earlier = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(LOW)).astype(np.int64)
    later, earlier = every_later, every_earlier
    gone, undecided = np.zeros(length, bool), np.zeros(length, bool)
    while len(later):
        undecided[later] = True
        gone[later[~undecided[earlier]]] = True
        open_pairs = ~gone[later] & ~gone[earlier]
        undecided[later] = False
        later, earlier = later[open_pairs], earlier[open_pairs]
    stays = ~gone[every_earlier]
    standing = np.full(length, -1, np.int32)
    # Sorted downwards, so that the first of a place's twins is written last.
    standing[every_later[stays][::-1]] = every_earlier[stays][::-1]
    return standing
