"""Drift: how far the data of one snapshot is from that of another, told from their profiles alone.

A measure is a size and a chance. The size alone decides what is slight or strong; a size that chance reaches more often
than once in a thousand comparisons is none at all, so that small data does not cry wolf. Rows that both snapshots have
make chance smaller than it is taken for here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from tasks.data_profile import Profile

Verdict = Literal["none", "slight", "strong"]

COMPARED_WORDS = 2_000
CHANCE = 0.001
"""Probability below which a difference is not put down to chance."""
BOUNDS = {
    "total variation": (0.05, 0.15),
    "population stability index": (0.1, 0.25),
    "Kolmogorov-Smirnov": (0.1, 0.2),
    "Jensen-Shannon distance": (0.1, 0.25),
}
"""Measure → where slight and where strong drift begins."""
BOUNDS_TOLD = (
    "Slight and strong begin at 0.1 and 0.25 for the population stability index (Siddiqi, Credit Risk Scorecards, "
    "2006), at 0.1 (as in Evidently) and 0.25 for the Jensen-Shannon distance (base 2), at 0.1 and 0.2 for "
    "Kolmogorov-Smirnov, at 0.05 and 0.15 for total variation (these two are conventions of hone). What chance reaches "
    f"with a probability p of {CHANCE} or more counts as none."
)


@dataclass(frozen=True)
class Finding:
    """One measure of one difference.

    Attributes:
        what: What was compared.
        measure: Key of `BOUNDS`.
        value: Size of the difference, 0 for none.
        p: Probability of one as large or larger by chance.
    """

    what: str
    measure: str
    value: float
    p: float

    @property
    def verdict(self) -> Verdict:
        """What it means."""
        slight, strong = BOUNDS[self.measure]
        if self.p >= CHANCE or self.value < slight:
            return "none"
        return "strong" if self.value >= strong else "slight"


@dataclass(frozen=True)
class Turnover:
    """Rows, by id, of two snapshots.

    Attributes:
        new: Only the later one has them.
        vanished: Only the earlier one has them.
        kept: Both have them.
        moved: Both have them, on different sides.
    """

    new: int
    vanished: int
    kept: int
    moved: int


def turnover(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any], size: int = 1_000_000) -> Turnover:
    """Compare the rows of two snapshots.

    Args:
        before: `tasks.data_profile.Measured.marks` of the earlier one; may be mapped from a file.
        after: Those of the later one.
        size: Rows compared at once.
    """
    import numpy as np

    kept = moved = 0
    names = after >> np.uint64(2)
    for start in range(0, len(before) if len(after) else 0, size):
        some = np.asarray(before[start : start + size])
        places = np.searchsorted(names, some >> np.uint64(2)).clip(max=len(after) - 1)
        both = names[places] == some >> np.uint64(2)
        kept += int(both.sum())
        moved += int((both & (after[places] != some)).sum())
    return Turnover(new=len(after) - kept, vanished=len(before) - kept, kept=kept, moved=moved)


def compare(before: Profile, after: Profile) -> list[Finding]:
    """Labels, lengths and vocabulary of two snapshots; what either has no rows for is left out."""
    found = []
    if before.label_totals and after.label_totals:
        found.append(label_shift("labels", before.label_totals, after.label_totals))
    if sum(before.lengths) and sum(after.lengths):
        found += length_shift(before.lengths, after.lengths)
    if before.words and after.words:
        found.append(word_shift(before.words, after.words))
    return found


def label_shift(what: str, before: Mapping[str, int], after: Mapping[str, int]) -> Finding:
    """Total variation between the shares of labels, its chance by Pearson's chi-square."""
    import numpy as np
    from scipy.stats import chi2_contingency

    names = sorted({*before, *after})
    counts = np.array([[side.get(name, 0) for name in names] for side in (before, after)])
    counts = counts[:, counts.sum(0) > 0]
    p = chi2_contingency(counts, correction=False).pvalue if counts.shape[1] > 1 and counts.sum(1).all() else 1.0
    return Finding(what, "total variation", total_variation(*counts.tolist()), float(p))


def length_shift(before: Sequence[int], after: Sequence[int]) -> list[Finding]:
    """Population stability index over the tenths of the earlier lengths, and Kolmogorov-Smirnov over all bins.

    References:
        Yurdakul & Naranjo 2020, Statistical properties of the population stability index: chance of an index.
    """
    import numpy as np
    from scipy.special import kolmogorov
    from scipy.stats import chi2

    tenths = in_tenths(before, after)
    n, m = sum(before), sum(after)
    index, distance = stability_index(*tenths), kolmogorov_smirnov(before, after)
    return [
        Finding("lengths", "population stability index", index, _tail(chi2, index / (1 / n + 1 / m), len(tenths[0]))),
        Finding("lengths", "Kolmogorov-Smirnov", distance, float(kolmogorov(distance * np.sqrt(n * m / (n + m))))),
    ]


def word_shift(before: Mapping[str, int], after: Mapping[str, int]) -> Finding:
    """Jensen-Shannon distance over the words most frequent in both together, its chance by the likelihood ratio."""
    from scipy.stats import chi2

    old, new = (sum(words.values()) for words in (before, after))
    shares = {word: before.get(word, 0) / old + after.get(word, 0) / new for word in {*before, *after}}
    names = sorted(shares, key=lambda word: (-shares[word], word))[:COMPARED_WORDS]
    p, q = ([words.get(name, 0) for name in names] for words in (before, after))
    distance = jensen_shannon(p, q)
    # 8 times the divergence, in nats, is about the chi-square statistic of two samples of one distribution.
    statistic = 8 * distance**2 * 0.6931471805599453 / (1 / max(1, sum(p)) + 1 / max(1, sum(q)))
    return Finding("vocabulary", "Jensen-Shannon distance", distance, _tail(chi2, statistic, len(names)))


def words_that_gained(before: Profile, after: Profile, most: int) -> list[tuple[str, float, float]]:
    """Words whose share of the rows rose most: word, share before, share after."""
    found = [
        (word, before.words.get(word, 0) / max(1, before.word_rows), rows / max(1, after.word_rows))
        for word, rows in after.words.items()
    ]
    rose = [entry for entry in found if entry[2] > entry[1]]
    return sorted(rose, key=lambda entry: (entry[1] - entry[2], entry[0]))[:most]


def total_variation(before: Sequence[int], after: Sequence[int]) -> float:
    """Half the sum of the differences of shares: the share of rows that would have to change."""
    p, q = _shares(before), _shares(after)
    return float(abs(p - q).sum() / 2)


def stability_index(before: Sequence[int], after: Sequence[int]) -> float:
    """Sum of (q - p) ln(q / p) over bins; an empty bin counts as half a row."""
    import numpy as np

    p = np.maximum(_shares(before), 0.5 / max(1, sum(before)))
    q = np.maximum(_shares(after), 0.5 / max(1, sum(after)))
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(before: Sequence[int], after: Sequence[int]) -> float:
    """Largest difference between the cumulative shares."""
    import numpy as np

    return float(abs(np.cumsum(_shares(before)) - np.cumsum(_shares(after))).max())


def jensen_shannon(before: Sequence[int], after: Sequence[int]) -> float:
    """Square root of the Jensen-Shannon divergence in bits: 0 for equal shares, 1 for nothing in common."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(_shares(before), _shares(after), base=2))


def in_tenths(before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[int]]:
    """Both histograms with neighbouring bins put together to tenths of the earlier one, as nearly as its bins allow."""
    import numpy as np

    p, q = np.asarray(before), np.asarray(after)
    tenth = 10 * (np.cumsum(p) - p) // max(1, p.sum())
    tenth = tenth.clip(max=tenth[p > 0].max(initial=0))
    places = np.unique(tenth, return_inverse=True)[1]
    old, new = np.bincount(places, weights=p), np.bincount(places, weights=q)
    return old.astype(int).tolist(), new.astype(int).tolist()


def _shares(counts: Sequence[int]) -> np.ndarray[Any, Any]:
    import numpy as np

    values: np.ndarray[Any, Any] = np.asarray(counts, dtype=float)
    shares: np.ndarray[Any, Any] = values / max(1.0, float(values.sum()))
    return shares


def _tail(chi2: Any, statistic: float, categories: int) -> float:
    return float(chi2.sf(statistic, categories - 1)) if categories > 1 else 1.0
