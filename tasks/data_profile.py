"""Profile: what the kept rows of one snapshot look like, in numbers that hold no row, from one pass in batches.

Words are runs of letters and digits; a script that writes none apart (Chinese, Thai) has whole clauses for words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.labels import Labelled
from tasks.rows import batches, count
from tasks.signatures import digests

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

FORMAT = 1
"""Version of a profile; one of another version is not compared."""
SIDES = ("train", "validation", "test")
EXACT_CHARS = 64
"""Lengths below have a bin each; above, eight bins for every doubling."""
LONGEST_BIN = 24
"""Lengths from 2 to this power share the last bin."""
WORD = r"[\p{L}\p{M}\p{N}]+(?:['\x{2019}]\p{L}+)*"
WORD_ROWS = 200_000
"""Rows whose words are counted; of more, those with the smallest hashes of their ids."""
WORD_CHARS = 2_000
"""Characters of a text whose words are counted."""
KEPT_WORDS = 4_000
"""Most frequent words that a profile keeps; twice of what is compared, so that the end of the list is no drift."""
FEWEST_ROWS = 3
"""Words in fewer rows are not kept: they tell of persons, not of the data."""
PENDING_WORDS = 500_000
"""Counted words waiting to be summed up: a few ten megabytes."""


@dataclass(frozen=True)
class Profile:
    """What a snapshot's kept rows look like.

    Attributes:
        rows: Side → rows.
        labels: Side → label → rows; empty where the task has no labels.
        lengths: Rows by number of characters, one per bin of `edges`.
        shortest: Characters of the shortest text.
        longest: Characters of the longest text.
        words: Word → rows that have it, of those looked at.
        word_rows: Rows looked at for words.
    """

    rows: dict[str, int]
    labels: dict[str, dict[str, int]]
    lengths: list[int]
    shortest: int
    longest: int
    words: dict[str, int]
    word_rows: int

    @property
    def label_totals(self) -> dict[str, int]:
        """Label → rows of all sides."""
        total: Counter[str] = Counter()
        for counts in self.labels.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Profile | None:
        """The profile that `as_dict` described; none of another format."""
        if data.get("format") != FORMAT:
            return None
        return Profile(**{name: value for name, value in data.items() if name != "format"})


@dataclass(frozen=True)
class Measured:
    """A profile, and what is too large for it.

    Attributes:
        marks: One number for each row, sorted: hash of its id, its side in the last two bits. `uint64[rows]`.
        sources: Source → rows.
    """

    profile: Profile
    marks: np.ndarray[Any, Any]
    sources: dict[str, int]


def measure(split: Path, text: str, labelled: Labelled | None) -> Measured:
    """Read the sides of a split once.

    Args:
        split: Folder with `train.parquet`, `validation.parquet` and `test.parquet`.
        text: The column measured.
        labelled: Where the labels are that are counted.
    """
    import numpy as np

    files = {side: split / f"{side}.parquet" for side in SIDES}
    total = count(list(files.values()))
    few = min(2**64 - 1, 2**64 * WORD_ROWS // max(1, total))
    rows = dict.fromkeys(SIDES, 0)
    labels: dict[str, Counter[str]] = {side: Counter() for side in SIDES} if labelled else {}
    sources: Counter[str] = Counter()
    starts = edges()
    lengths, marks = np.zeros(len(starts), np.int64), np.empty(total, np.uint64)
    shortest, longest, done = [], [0], 0
    words = _WordCounts()
    for number, (side, file) in enumerate(files.items()):
        for frame in batches([file], ["id", "source", text, *([labelled.column] if labelled else [])]):
            hashes = digests(frame["id"])
            marks[done : done + frame.height] = hashes & ~np.uint64(3) | np.uint64(number)
            done += frame.height
            rows[side] += frame.height
            sources.update(dict(frame["source"].value_counts().iter_rows()))
            if labelled:
                labels[side].update(labelled.counts(frame))
            chars = frame[text].str.len_chars().to_numpy()
            lengths += np.bincount(np.searchsorted(starts, chars, side="right") - 1, minlength=len(starts))
            shortest.append(int(chars.min(initial=2**31)))
            longest.append(int(chars.max(initial=0)))
            words.add(frame[text].filter(hashes <= np.uint64(few)))
    marks.sort()
    profile = Profile(
        rows=rows,
        labels={side: dict(sorted(counts.items())) for side, counts in labels.items()},
        lengths=lengths.tolist(),
        shortest=min(shortest, default=0),
        longest=max(longest),
        words=words.most_frequent(),
        word_rows=words.rows,
    )
    return Measured(profile, marks, dict(sorted(sources.items())))


def edges() -> np.ndarray[Any, Any]:
    """Shortest length of each bin, ascending from 0. `int64[bins]`."""
    import numpy as np

    doublings = np.arange(8 * (LONGEST_BIN - 6) + 1) / 8
    return np.concatenate([np.arange(EXACT_CHARS), np.ceil(EXACT_CHARS * 2**doublings)]).astype(np.int64)


def quantiles(lengths: Sequence[int], shares: Iterable[float]) -> list[int]:
    """Length that this share of the rows does not exceed: exact below 64 characters, within a tenth above."""
    import numpy as np

    ends = np.append(edges()[1:] - 1, 2**LONGEST_BIN)
    reached = np.cumsum(lengths)
    if not len(reached) or not reached[-1]:
        return [0 for _ in shares]
    return [int(ends[np.searchsorted(reached, max(1, share * reached[-1]))]) for share in shares]


class _WordCounts:
    """Rows by word, counted in batches."""

    def __init__(self) -> None:
        self.rows = 0
        self._counted: list[pl.DataFrame] = []
        self._waiting = 0

    def add(self, texts: pl.Series) -> None:
        found = texts.str.slice(0, WORD_CHARS).str.to_lowercase().str.extract_all(WORD).list.unique().explode()
        counts = found.drop_nulls().rename("word").value_counts(name="rows")
        self.rows += len(texts)
        self._counted.append(counts)
        self._waiting += counts.height
        if self._waiting > PENDING_WORDS:
            self._counted, self._waiting = [self._sum()], 0

    def most_frequent(self) -> dict[str, int]:
        import polars as pl

        counts = self._sum().filter(pl.col("rows") >= FEWEST_ROWS) if self._counted else None
        if counts is None:
            return {}
        return dict(counts.sort(["rows", "word"], descending=[True, False]).head(KEPT_WORDS).iter_rows())

    def _sum(self) -> pl.DataFrame:
        import polars as pl

        return pl.concat(self._counted).group_by("word").agg(pl.col("rows").sum())
