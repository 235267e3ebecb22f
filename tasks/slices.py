"""Slices: parts of the test rows, and what a model is worth on each of them.

What parts the rows is decided on the validation rows: which values are frequent, where the quarters of a length lie.
So a slice's name and bounds do not hang on the test rows. A value that validation does not have, or seldom, falls into
`<feature> is another value`. Moments alone are parted by the rows that are measured, since the periods of a split by
time are others on each side; no score is looked at for it.

All tests are one-sided and adjusted by Holm over all slices, which may overlap. Does not cover the search for weak
slices (`tasks.weak_slices`).

References:
    S. Holm (1979), A simple sequentially rejective multiple test procedure.
    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
    T. Tango (1998), Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schemas.errors import EnvironmentMistake, Problem
from schemas.recipe import Slices
from schemas.records import SliceScore
from tasks.families import Family

if TYPE_CHECKING:
    import polars as pl

    Bools = np.ndarray[Any, np.dtype[np.bool_]]
    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Ints = np.ndarray[Any, np.dtype[np.int64]]

META = "meta."
PLAIN_KINDS = ("label", "source", "language")
"""Features whose values are slices, and of a kind of their own."""
MOST_VALUES = 20
"""Most frequent values of a feature that are slices; every label is one."""
MOST_PERIODS = 6
PERIODS = {"1y": "%Y", "1q": "%Y Q", "1mo": "%Y-%m", "1w": "%G-W%V", "1d": "%Y-%m-%d"}
"""Lengths of a period, longest first, and how one is called; a quarter's number follows."""
TIMED_SHARE = 0.9
"""Share of the rows with a time that the periods with enough rows must hold."""
NUMBER_SHARE = 0.95
"""Share of a column's values that are numbers from which the column is one, in spite of `n/a` and the like."""
TEXT_CHARS = 2_000
"""Characters of a text that are kept to look for words."""
UNCLEAR = "unclear"
"""Language of a text that is too short to tell, or like several."""
FLAGS = {
    "has_url": r"(?i)https?://|www\.|<url>",
    "has_mention": r"(?:^|\W)@\w",
    "has_hashtag": r"(?:^|\W)#\w",
    "has_number": r"\p{N}",
    "has_question": r"[?\x{061F}\x{FF1F}]",
    "has_exclamation": r"[!\x{FF01}]",
    "has_quote": '["“”„«»「」]',
    "has_ellipsis": r"\.\.|…",
    "has_line_break": r"\n",
    "has_emoji": r"\p{Extended_Pictographic}|[:;=][-']?[()DPp](?:\W|$)",
    "has_capitals": r"\b\p{Lu}{3,}\b",
    "has_repeats": "(?i)" + "|".join(f"{letter}{{3}}" for letter in ascii_lowercase),
}
"""Feature → pattern (of Rust's regex) of the texts that have it."""


@dataclass(frozen=True, eq=False)
class Slice:
    """A part of some rows.

    Attributes:
        name: Unique among the slices of these rows.
        kind: See `schemas.records.SliceScore`.
        mask: Whether each row is in it. `[rows]`.
    """

    name: str
    kind: str
    mask: Bools


class Shortfall(NamedTuple):
    """A slice on which the model is surely not good enough.

    Attributes:
        name: The slice's.
        rows: In the slice.
        value: Mean score, or mean gain over the champion.
        p: Chance of one as low when the model is good enough there, adjusted for all slices.
    """

    name: str
    rows: int
    value: float
    p: float


@dataclass(frozen=True)
class Values:
    """A feature parted by its frequent values."""

    feature: str
    kind: str
    shown: str
    values: tuple[str, ...]

    def slices(self, features: pl.DataFrame) -> list[Slice]:
        """One for each value; where a row has one value at most, also one for all others, one for none."""
        column = features[self.feature]
        if column.dtype.is_nested():
            return _slices({f"{self.shown}={value}": column.list.contains(value) for value in self.values}, self.kind)
        masks = {f"{self.shown}={value}": (column == value) for value in self.values}
        masks[f"{self.shown} is another value"] = column.is_not_null() & ~column.is_in(list(self.values))
        masks[f"{self.shown} is missing"] = column.is_null()
        return _slices(masks, self.kind)


@dataclass(frozen=True)
class Ranges:
    """A number parted at `bounds`, each the largest value of its part; `whole` when all values are."""

    feature: str
    kind: str
    shown: str
    bounds: tuple[float, ...]
    whole: bool

    def slices(self, features: pl.DataFrame) -> list[Slice]:
        """One for each range, named as a quarter where there are four, and one for the rows without a number."""
        column = numbers(features[self.feature])
        ends: list[float | None] = [None, *self.bounds, None]
        masks = {}
        for name, low, high in zip(self.names, ends[:-1], ends[1:], strict=True):
            above = column.is_not_null() if low is None else column > low
            masks[f"{self.shown}={name}"] = above if high is None else above & (column <= high)
        masks[f"{self.shown} is no number"] = column.is_null()
        return _slices(masks, self.kind)

    @property
    def names(self) -> list[str]:
        """What the ranges are called, lowest first."""
        bounds = [shown_number(bound) for bound in self.bounds]
        starts = [shown_number(bound + 1) if self.whole else shown_number(bound) for bound in self.bounds]
        between = [
            bound if start == bound else f"{start} to {bound}"
            for start, bound in zip(starts[:-1], bounds[1:], strict=True)
        ]
        if len(bounds) != 3:
            return [f"up to {bounds[0]}", *between, f"above {bounds[-1]}"]
        lowest, highest = ("shortest", "longest") if self.kind == "length" else ("lowest", "highest")
        quarters = (lowest, "second", "third", highest)
        ranges = (f"<= {bounds[0]}", *between, f"> {bounds[-1]}")
        return [f"{quarter} quarter ({inside})" for quarter, inside in zip(quarters, ranges, strict=True)]


@dataclass(frozen=True)
class Parting:
    """How rows are parted."""

    parts: tuple[Values | Ranges, ...]

    def slices(self, features: pl.DataFrame, *, min_rows: int) -> list[Slice]:
        """All slices of these rows, empty and small ones too.

        Args:
            features: See `describe`.
            min_rows: Rows that make a period of time worth a slice.
        """
        found = [part for parted in self.parts for part in parted.slices(features)]
        return found + (_periods(features["time"], min_rows) if "time" in features.columns else [])


def describe(rows: pl.DataFrame, family: Family, settings: Slices, lengths: pl.Series | None = None) -> pl.DataFrame:
    """What parts the rows, and what weak slices are searched by; each row for itself, so that batches may be joined.

    Args:
        rows: Of a side of the split.
        family: The task's; of several texts the first one is described.
        settings: Which columns count, and whether languages do.
        lengths: Tokens of each row; none: its characters are counted.

    Returns:
        `id`, `label` (where the family learns labels; lists of several), `source`, `time` (where rows have one),
        `meta.<column>` for each column of the settings, `length`, `language` (where asked for), `text` (its beginning,
        in lower case), and features of the text: flags `has_…`, shares, `mean_word_length`.

    Raises:
        EnvironmentMistake: Languages are asked for and the extra is not installed.
    """
    import polars as pl

    text = pl.col(family.text_columns[0])
    own = [name for name in ("source", "time") if name in rows.columns]
    labels = [family.labelled.to_each(rows).alias("label")] if family.labelled else []
    columns = [META + column for column in settings.columns]
    language = [_languages(rows[family.text_columns[0]])] if settings.languages else []
    return rows.select(
        "id",
        *labels,
        *own,
        *(pl.when(pl.col(name).str.strip_chars() != "").then(name).alias(name) for name in columns),
        (text.str.len_chars() if lengths is None else pl.lit(lengths)).cast(pl.Int64).alias("length"),
        *language,
        text.str.slice(0, TEXT_CHARS).str.to_lowercase().alias("text"),
        *(text.str.contains(pattern).alias(name) for name, pattern in FLAGS.items()),
        *_text_numbers(text),
    )


def fit(validation: pl.DataFrame) -> Parting:
    """Decide how rows are parted.

    Args:
        validation: Features of the validation rows; see `describe`.
    """
    shown = shown_names(validation.columns)
    parts: list[Values | Ranges] = []
    for name in validation.columns:
        if name == "length":
            parts += _ranges(validation[name], "length", shown[name])
        elif name.startswith(META) and is_number(validation[name]):
            parts += _ranges(validation[name], "column", shown[name])
        elif name in PLAIN_KINDS or name.startswith(META):
            values = frequent_values(validation[name], None if name == "label" else MOST_VALUES)
            parts.append(Values(name, name if name in PLAIN_KINDS else "column", shown[name], values))
    return Parting(tuple(parts))


def shown_names(columns: Sequence[str]) -> dict[str, str]:
    """What each feature is called: a kept column by its own name, unless another feature has it."""
    bare = {name: name.removeprefix(META) for name in columns}
    return {name: name if name != short and short in columns else short for name, short in bare.items()}


def frequent_values(column: pl.Series, most: int | None = MOST_VALUES) -> tuple[str, ...]:
    """The most frequent values, of lists too, in that order; all of them where `most` is none."""
    each = column.explode() if column.dtype.is_nested() else column
    counts = each.drop_nulls().rename("value").value_counts(name="rows")
    return tuple(counts.sort(["rows", "value"], descending=[True, False])["value"].head(most or counts.height))


def is_number(column: pl.Series) -> bool:
    """Whether nearly all values are numbers, and too many to be slices of their own."""
    values = column.drop_nulls()
    found = numbers(values).drop_nulls()
    return len(found) >= NUMBER_SHARE * len(values) and found.n_unique() > MOST_VALUES


def numbers(column: pl.Series) -> pl.Series:
    """The values as Float64; null where one is no finite number."""
    import polars as pl

    found = column.cast(pl.Float64, strict=False)
    return found.zip_with(found.is_finite().fill_null(value=False), pl.Series([None], dtype=pl.Float64))


def is_whole(values: pl.Series) -> bool:
    """Whether no value has decimals."""
    return bool((values == values.floor()).all())


def rounded(number: float) -> float:
    """A bound as it is shown: whole, or with four digits that count."""
    return number if number.is_integer() else float(f"{number:.4g}")


def shown_number(number: float) -> str:
    """Without a needless `.0` or exponent."""
    return str(int(number)) if number.is_integer() else f"{number:g}"


def measurable(slices: Sequence[Slice], min_rows: int) -> list[Slice]:
    """Those with enough rows; of several with the same rows the first."""
    found: dict[bytes, Slice] = {}
    for part in slices:
        if part.mask.sum() >= min_rows:
            found.setdefault(np.packbits(part.mask).tobytes(), part)
    return list(found.values())


def named(slices: Sequence[Slice], name: str) -> Slice | None:
    """The slice of this name; that of a quarter may lack the bounds, which change with the data."""
    whole = f"{name} (" if name.endswith(" quarter") else None
    return next((part for part in slices if part.name == name or (whole and part.name.startswith(whole))), None)


def membership(ids: pl.Series, slices: Sequence[Slice]) -> pl.DataFrame:
    """The slices as a frame: `id`, and for each slice a Boolean column `<kind>:<name>`; see `from_membership`."""
    import polars as pl

    return pl.DataFrame({"id": ids, **{f"{part.kind}:{part.name}": part.mask for part in slices}})


def from_membership(frame: pl.DataFrame) -> list[Slice]:
    """The slices of the rows of a frame that `membership` made; rows may be left out or sorted in between."""
    columns = {name: name.partition(":") for name in frame.columns if name != "id"}
    return [Slice(name, kind, frame[column].to_numpy()) for column, (kind, _, name) in columns.items()]


def measure(scores: Floats, slices: Sequence[Slice], *, confidence: float, min_rows: int) -> list[SliceScore]:
    """What the model is worth on each slice, weakest first.

    A slice of all rows is left out; so is a small one, and one that has the rows of another.

    Args:
        scores: How good each prediction is, 0 to 1. `[rows]`.
        slices: Of the same rows.
        confidence: Of the intervals: Wilson's where every score is 0 or 1, else Student's.
        min_rows: Fewest rows of a slice.
    """
    parts = [part for part in measurable(slices, min_rows) if not part.mask.all()]
    found = _samples(scores, parts)
    low, high = _intervals(found, _is_binary(scores), confidence)
    p = holm(weaker(scores, parts))
    measured = [
        SliceScore(
            name=part.name,
            kind=part.kind,
            rows=int(found.rows[i]),
            value=float(found.means[i]),
            low=float(low[i]),
            high=float(high[i]),
            p_weaker=float(p[i]),
        )
        for i, part in enumerate(parts)
    ]
    return sorted(measured, key=lambda score: (score.value, score.name))


def below_floor(
    scores: Floats, slices: Sequence[Slice], floor: float, *, confidence: float, min_rows: int
) -> list[Shortfall]:
    """Slices whose mean score is surely below `floor`, weakest first.

    Binomial test where every score is 0 or 1, else Student's.

    Args:
        scores: How good each prediction is, 0 to 1. `[rows]`.
        slices: Of the same rows; one of all rows counts.
        floor: Least mean score.
        confidence: That no slice is named which reaches the floor.
        min_rows: Fewest rows of a slice.
    """
    parts = measurable(slices, min_rows)
    found = _samples(scores, parts)
    return _shortfalls(parts, found, _p_below(found, floor, binary=_is_binary(scores)), confidence)


def below_champion(
    new: Floats, old: Floats, slices: Sequence[Slice], margin: float, *, confidence: float, min_rows: int
) -> list[Shortfall]:
    """Slices on which the new model is surely worse than the old one by more than `margin`, worst first.

    Paired. Where every score is 0 or 1: McNemar's exact test without a margin, Tango's score test with one; else
    Student's test of the differences.

    Args:
        new: Scores of the new model, 0 to 1. `[rows]`.
        old: Those of the old one on the same rows.
        slices: Of the same rows; one of all rows counts.
        margin: Loss that still counts as not worse, 0 to 1.
        confidence: That no slice is named on which the loss is within the margin.
        min_rows: Fewest rows of a slice.
    """
    parts = measurable(slices, min_rows)
    found = _samples(new - old, parts)
    if _is_binary(new) and _is_binary(old):
        gained, lost = (_samples((new - old == sign).astype(np.float64), parts) for sign in (1, -1))
        p = _p_worse(np.rint(gained.means * found.rows), np.rint(lost.means * found.rows), found.rows, margin)
    else:
        # As scores from 0 to 1: half of one stands for no difference.
        halved = _samples((new - old + 1) / 2, parts)
        p = _p_below(halved, (1 - margin) / 2, binary=False)
    return _shortfalls(parts, found, p, confidence)


def weaker(scores: Floats, slices: Sequence[Slice]) -> Floats:
    """Chance of each slice to be this much weaker than the other rows when it is not, not adjusted. `[slices]`.

    Fisher's exact test where every score is 0 or 1, else Welch's.
    """
    from scipy import stats

    inside = _samples(scores, slices)
    if _is_binary(scores):
        hits = np.rint(inside.means * inside.rows)
        return np.asarray(stats.hypergeom.cdf(hits, len(scores), int(scores.sum()), inside.rows))
    outside = _samples(scores, [Slice(part.name, part.kind, ~part.mask) for part in slices])
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.ttest_ind_from_stats(
            inside.means, np.sqrt(inside.variances), inside.rows,
            outside.means, np.sqrt(outside.variances), outside.rows,
            equal_var=False, alternative="less",
        ).pvalue  # fmt: skip
    return np.where((inside.rows < 2) | (outside.rows < 2) | np.isnan(p), 1.0, p)


def holm(p: Floats) -> Floats:
    """Chances adjusted for their number, however they hang together. `[tests]`."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


@dataclass(frozen=True)
class _Samples:
    """Scores of some slices, all `[slices]`; the variance of equal scores is exactly zero."""

    rows: Ints
    means: Floats
    variances: Floats


def _samples(scores: Floats, slices: Sequence[Slice]) -> _Samples:
    parts = [scores[part.mask] for part in slices]
    spreads = [float(part.var(ddof=1)) if len(part) and part.min() < part.max() else 0.0 for part in parts]
    return _Samples(
        rows=np.array([len(part) for part in parts], np.int64),
        means=np.array([part.mean() if len(part) else 0 for part in parts], np.float64),
        variances=np.array(spreads, np.float64),
    )


def _is_binary(scores: Floats) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _intervals(found: _Samples, binary: bool, confidence: float) -> tuple[Floats, Floats]:
    """Low and high of each slice; where all scores are equal, Student knows no spread and Wilson's is wide enough."""
    from scipy import stats

    rows, means = found.rows, found.means
    z = stats.norm.ppf((1 + confidence) / 2)
    centre = (means + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z * np.sqrt(means * (1 - means) / rows + (z / (2 * rows)) ** 2) / (1 + z**2 / rows)
    half = stats.t.ppf((1 + confidence) / 2, np.maximum(rows - 1, 1)) * np.sqrt(found.variances / rows)
    by_wilson = (found.variances == 0) | binary
    low, high = np.where(by_wilson, centre - reach, means - half), np.where(by_wilson, centre + reach, means + half)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def _p_below(found: _Samples, floor: float, *, binary: bool) -> Floats:
    """Chance of each mean to be this low when it should be `floor`; equal scores are taken for as many hits."""
    from scipy import stats

    hits = np.rint(found.means * found.rows) if binary else np.ceil(found.means * found.rows)
    by_hits = stats.binom.cdf(hits, found.rows, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (found.means - floor) / np.sqrt(found.variances / found.rows)
    by_t = stats.t.cdf(t, np.maximum(found.rows - 1, 1))
    return np.asarray(np.where((found.variances == 0) | binary, by_hits, by_t))


def _p_worse(gained: Floats, lost: Floats, rows: Ints, margin: float) -> Floats:
    """Chance to gain so few rows and lose so many when the loss is `margin` of the rows. `[slices]`."""
    from scipy import stats

    if not margin:
        return np.asarray(stats.binom.cdf(gained, gained + lost, 0.5))
    # Share of rows lost that is likeliest when the loss is the margin: the larger root of a quadratic.
    linear = gained + lost + margin * (2 * rows - gained + lost)
    share = (linear + np.sqrt(linear**2 - 8 * rows * lost * margin * (1 + margin))) / (4 * rows)
    z = (gained - lost + rows * margin) / np.sqrt(rows * (2 * share - margin - margin**2))
    return np.asarray(stats.norm.cdf(z))


def _shortfalls(parts: Sequence[Slice], found: _Samples, p: Floats, confidence: float) -> list[Shortfall]:
    adjusted = holm(p)
    short = [
        Shortfall(part.name, int(found.rows[i]), float(found.means[i]), float(adjusted[i]))
        for i, part in enumerate(parts)
        if adjusted[i] <= 1 - confidence
    ]
    return sorted(short, key=lambda one: (one.value, one.name))


def _slices(masks: Mapping[str, pl.Series], kind: str) -> list[Slice]:
    return [Slice(name, kind, mask.fill_null(value=False).to_numpy()) for name, mask in masks.items()]


def _ranges(column: pl.Series, kind: str, shown: str) -> list[Ranges]:
    """The column parted at its quartiles, as far as they differ; nothing where it has one value."""
    values = numbers(column).drop_nulls()
    if not len(values):
        return []
    quartiles = {rounded(float(values.quantile(share, "lower") or 0)) for share in (0.25, 0.5, 0.75)}
    bounds = tuple(sorted(bound for bound in quartiles if bound < float(values.sort()[-1])))
    return [Ranges(column.name, kind, shown, bounds, is_whole(values))] if bounds else []


def _periods(times: pl.Series, min_rows: int) -> list[Slice]:
    """The finest calendar periods of which 2 to `MOST_PERIODS` have enough rows and hold nearly all; none may do."""
    best: dict[str, pl.Series] = {}
    for every, form in PERIODS.items():
        names = _period_names(times, every, form)
        counts = names.drop_nulls().rename("name").value_counts(name="rows")
        large = counts.filter(counts["rows"] >= min_rows)
        covered = int(large["rows"].sum()) >= TIMED_SHARE * int(counts["rows"].sum())
        if 2 <= large.height <= MOST_PERIODS and covered:
            best = {f"time={name}": names == name for name in large["name"].sort()}
    return _slices(best | {"time is missing": times.is_null()}, "time")


def _period_names(times: pl.Series, every: str, form: str) -> pl.Series:
    starts = times.dt.truncate(every)
    names = starts.dt.strftime(form)
    return names + starts.dt.quarter().cast(names.dtype) if every == "1q" else names


def _text_numbers(text: pl.Expr) -> list[pl.Expr]:
    import polars as pl

    chars, letters, words = text.str.len_chars(), text.str.count_matches(r"\p{L}"), text.str.count_matches(r"\S+")
    seen = chars - text.str.count_matches(r"\s")
    non_ascii = text.str.count_matches(r"[^\x00-\x7F]")

    def share(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
        return pl.when(whole > 0).then(part / whole).otherwise(0.0)

    return [
        share(text.str.count_matches(r"\p{Lu}"), letters).alias("share_upper"),
        share(non_ascii, chars).alias("share_non_ascii"),
        share(seen, words).alias("mean_word_length"),
    ]


def _languages(texts: pl.Series) -> pl.Series:
    """ISO 639 code of each text, or `UNCLEAR`; told as `tasks.rules.language` does."""
    import polars as pl

    from tasks.rules import language

    try:
        detector = language._detector()
    except EnvironmentMistake as error:
        remedy = "pip install 'hone[language]', or leave evaluate.slices.languages out"
        problem = Problem("evaluate.slices.languages", None, "needs the extra `language`", remedy)
        raise EnvironmentMistake(problem) from error
    words = texts.str.replace_all(language.NO_LANGUAGE, " ").str.slice(0, language.LONGEST_READ)
    tellable = words.str.replace_all(r"\P{L}+", "").str.len_bytes() >= language.FEWEST_BYTES

    def told(text: str) -> str:
        best = detector.detect(text, model="lite")[0]
        return str(best["lang"]) if best["score"] >= language.SURE_FROM else UNCLEAR

    plain = words.str.replace_all(r"\s+", " ")
    found = [told(text) if sure else UNCLEAR for text, sure in zip(plain, tellable, strict=True)]
    return pl.Series("language", found, dtype=pl.String)
