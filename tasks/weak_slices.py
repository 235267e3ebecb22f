"""Weak slices: a search for parts of the rows on which a model is weaker than elsewhere.

A shallow decision tree learns the scores of the validation rows from what is known of a row before its truth is; leaves
that are clearly weak become rules that read as a conjunction: `length > 25 and has_url`. The search picks the worst of
very many parts, so their validation scores look worse than they are: measure the rules on the test rows, where nothing
was picked, and report that alone. A rule found in noise shows nothing there.

Does not cover labels, which are slices of their own and would hide the rest, nor moments, which do not come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tasks.data_profile import WORD
from tasks.slices import (
    Slice,
    frequent_values,
    holm,
    is_number,
    is_whole,
    numbers,
    rounded,
    shown_names,
    shown_number,
    weaker,
)

if TYPE_CHECKING:
    import polars as pl

    Bools = np.ndarray[Any, np.dtype[np.bool_]]
    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Matrix = np.ndarray[Any, np.dtype[np.float32]]

DEPTH = 3
"""Most conditions of a rule, as far as they concern different features."""
LEAF_SHARE = 0.02
"""Least share of the validation rows in a rule."""
LARGEST_SHARE = 0.5
"""Largest share of the validation rows in a rule: what is weak on more of them is the model."""
WORDS = 200
"""Most frequent words whose presence is looked at."""
SURE = 0.95
"""Confidence from which a leaf is clearly weak, for all leaves together."""
APART = 3.0
"""Contrast, in standard errors, that a rule must still have among the rows of no surer one."""
LARGEST = 3e38
"""Numbers beyond are as good as this one, which the tree's single precision can hold."""
UNSEARCHED = frozenset({"id", "label", "time", "text"})


@dataclass(frozen=True)
class Signal:
    """Something known of every row: a number, or whether something holds.

    Attributes:
        kind: `value`: the feature has this value; `missing`: it has none; `no number`: it has none that is a number;
            `word`: the text has this word.
        feature: Column of the features.
        shown: What the feature is called.
        value: Of the kinds `value` and `word`.
        whole: Of a number: all values are whole.
    """

    kind: Literal["number", "no number", "flag", "value", "missing", "word"]
    feature: str
    shown: str
    value: str = ""
    whole: bool = False

    def of(self, features: pl.DataFrame) -> pl.Series:
        """Its values: Float64 with nulls for a number, else Boolean without."""
        column = features[self.feature]
        match self.kind:
            case "number":
                return numbers(column)
            case "no number":
                return numbers(column).is_null()
            case "flag":
                return column.fill_null(value=False)
            case "value":
                return column.eq_missing(self.value)
            case "missing":
                return column.is_null()
            case "word":
                return _has_word(column, self.value)

    def told(self, *, holds: bool) -> str:
        """What it says of a row for which it holds or does not; not of a number."""
        yes, no = {
            "flag": (self.shown, f"not {self.shown}"),
            "value": (f"{self.shown}={self.value}", f"{self.shown} is not {self.value}"),
            "no number": (f"{self.shown} is no number", f"{self.shown} is a number"),
            "missing": (f"{self.shown} is missing", f"{self.shown} is there"),
            "word": (f"word '{self.value}'", f"no word '{self.value}'"),
        }[self.kind]
        return yes if holds else no


@dataclass(frozen=True)
class Condition:
    """A signal above `low` and up to `high`; for what holds or does not, one of them is a half."""

    signal: Signal
    low: float = -np.inf
    high: float = np.inf

    @property
    def name(self) -> str:
        """As a person writes it."""
        if self.signal.kind != "number":
            return self.signal.told(holds=self.low > -np.inf)
        low, high = (shown_number(bound) if np.isfinite(bound) else "" for bound in (self.low, self.high))
        if low and high:
            return f"{low} < {self.signal.shown} <= {high}"
        return f"{self.signal.shown} > {low}" if low else f"{self.signal.shown} <= {high}"

    def mask(self, features: pl.DataFrame) -> Bools:
        """Rows that meet it; one without a number meets no bound. `[rows]`."""
        values = self.signal.of(features).cast(float)
        met: Bools = ((values > self.low) & (values <= self.high)).fill_null(value=False).to_numpy()
        return met


@dataclass(frozen=True)
class Rule:
    """A conjunction of conditions."""

    conditions: tuple[Condition, ...]

    @property
    def name(self) -> str:
        """As a person writes it."""
        return " and ".join(condition.name for condition in self.conditions)

    def mask(self, features: pl.DataFrame) -> Bools:
        """Rows that meet all conditions. `[rows]`."""
        return _all([condition.mask(features) for condition in self.conditions])

    def slice(self, features: pl.DataFrame) -> Slice:
        """The rows that meet it, as a slice."""
        return Slice(self.name, "weak", self.mask(features))


def find(features: pl.DataFrame, scores: Floats, *, min_rows: int, most: int = 5) -> list[Rule]:
    """Rules for parts of the validation rows on which the model is clearly weak, the surest first.

    Asked are the leaves of a shallow tree, and every value, word and flag alone: a greedy tree passes over a small part
    that is very weak. Each must be weaker than the other rows by a one-sided test, Holm-adjusted for all of them. What
    a condition does not add to a rule's contrast with the other rows is left out of it, and so are rules that tell of
    hardly any rows but those of a surer one.

    Args:
        features: Of the validation rows; see `tasks.slices.describe`.
        scores: How good each prediction is, 0 to 1. `[rows]`.
        min_rows: Fewest rows of a rule.
        most: Most rules.

    Returns:
        Rules to be measured on other rows; the same whatever the order of these.
    """
    order = features["id"].arg_sort()
    features, scores = features[order], scores[order.to_numpy()]
    fewest = max(min_rows, ceil(LEAF_SHARE * len(scores)))
    if len(scores) < 2 * fewest or scores.min() == scores.max():
        return []
    signals, matrix = _signals(features, fewest)
    search = _Search(features, scores)
    asked = [*search.leaves(signals, matrix, fewest), *search.alone(signals, matrix)]
    clear = holm(weaker(scores, [Slice(rule.name, "weak", search.mask(rule)) for rule in asked])) <= 1 - SURE
    simple = {search.simplest(rule) for rule, is_clear in zip(asked, clear, strict=True) if is_clear}
    parts = [rule for rule in simple if search.mask(rule).mean() <= LARGEST_SHARE]
    return search.apart(parts, fewest, most)


class _Search:
    """Rules and their contrast on some rows; the mask of a condition is computed once."""

    def __init__(self, features: pl.DataFrame, scores: Floats) -> None:
        self._features, self._scores = features, scores
        self._masks: dict[Condition, Bools] = {}

    def mask(self, rule: Rule) -> Bools:
        """Rows that meet it. `[rows]`."""
        for condition in rule.conditions:
            if condition not in self._masks:
                self._masks[condition] = condition.mask(self._features)
        return _all([self._masks[condition] for condition in rule.conditions])

    def contrast(self, rule: Rule, among: Bools | None = None) -> float:
        """Mean score of the other rows less that of the rule's, in standard errors of the difference."""
        mask, scores = self.mask(rule), self._scores
        if among is not None:
            mask, scores = mask[among], scores[among]
        inside, rows = int(mask.sum()), len(mask)
        if not 0 < inside < rows:
            return -np.inf
        error = float(scores.std()) * np.sqrt(1 / inside + 1 / (rows - inside))
        return float((scores[~mask].mean() - scores[mask].mean()) / error)

    def simplest(self, rule: Rule) -> Rule:
        """The rule without the conditions that add nothing to its contrast."""
        while len(rule.conditions) > 1:
            shorter = [Rule(tuple(c for c in rule.conditions if c != left_out)) for left_out in rule.conditions]
            best = max(shorter, key=lambda one: (self.contrast(one), one.name))
            if self.contrast(best) < self.contrast(rule):
                break
            rule = best
        return rule

    def alone(self, signals: Sequence[Signal], matrix: Matrix) -> list[Rule]:
        """A rule for every signal that holds or does not; their masks are columns of the matrix."""
        rules = []
        for signal, column in zip(signals, matrix.T, strict=True):
            if signal.kind != "number":
                condition = Condition(signal, low=0.5)
                self._masks[condition] = column > 0.5
                rules.append(Rule((condition,)))
        return rules

    def apart(self, rules: Sequence[Rule], fewest: int, most: int) -> list[Rule]:
        """The surest rule, then the one that is the surest of the rows which that leaves, and so on."""
        found: list[Rule] = []
        left = np.ones(len(self._scores), bool)
        while len(found) < most:
            enough = [rule for rule in rules if (self.mask(rule) & left).sum() >= fewest]
            by_contrast = [(self.contrast(rule, left), rule.name, rule) for rule in enough]
            contrast, _, rule = min(by_contrast, key=lambda each: (-each[0], each[1]), default=(-np.inf, "", None))
            if rule is None or contrast < APART:
                break
            found.append(rule)
            left &= ~self.mask(rule)
        return found

    def leaves(self, signals: Sequence[Signal], matrix: Matrix, fewest: int) -> list[Rule]:
        """The leaves of a tree that learnt the scores, as rules; none where it has but one."""
        from sklearn.tree import DecisionTreeRegressor

        if not signals:
            return []
        tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=fewest, random_state=0)
        grown = tree.fit(matrix, self._scores).tree_
        rules = []
        waiting: list[tuple[int, dict[Signal, Condition]]] = [(0, {})]
        while waiting:
            node, path = waiting.pop()
            left, right = int(grown.children_left[node]), int(grown.children_right[node])
            if left != right:
                signal = signals[grown.feature[node]]
                bound = _bound(signal, float(grown.threshold[node]))
                before = path.get(signal, Condition(signal))
                waiting.append((right, path | {signal: replace(before, low=bound)}))
                waiting.append((left, path | {signal: replace(before, high=bound)}))
            elif path:
                rules.append(Rule(tuple(path.values())))
        return rules


def _all(masks: Sequence[Bools]) -> Bools:
    return np.asarray(np.logical_and.reduce(masks))


def _bound(signal: Signal, threshold: float) -> float:
    """The tree's threshold as it is shown; a rule goes by what it shows."""
    if signal.kind != "number":
        return threshold
    return float(floor(threshold)) if signal.whole else rounded(threshold)


def _signals(features: pl.DataFrame, fewest: int) -> tuple[list[Signal], Matrix]:
    """What the tree is given; what holds for too few rows, or fails to, is left out. `[rows, signals]`."""
    signals, columns = [], []
    for name, shown in shown_names(features.columns).items():
        for signal in _signals_of(features[name], shown) if name not in UNSEARCHED else ():
            values = signal.of(features)
            if signal.kind == "number":
                values = values.fill_null(values.median())
            elif not fewest <= values.sum() <= len(values) - fewest:
                continue
            signals.append(signal)
            columns.append(values.cast(float).clip(-LARGEST, LARGEST).to_numpy().astype(np.float32))
    words, presence = _word_presence(features["text"], fewest)
    signals += [Signal("word", "text", "text", word) for word in words]
    return signals, np.column_stack([*columns, presence])


def _signals_of(column: pl.Series, shown: str) -> list[Signal]:
    import polars as pl

    if column.dtype == pl.Boolean:
        return [Signal("flag", column.name, shown)]
    if column.dtype.is_numeric() or is_number(column):
        values = numbers(column).drop_nulls()
        number = Signal("number", column.name, shown, whole=is_whole(values))
        return [number, Signal("no number", column.name, shown)] if len(values) else []
    signals = [Signal("value", column.name, shown, value) for value in frequent_values(column)]
    return [*signals, Signal("missing", column.name, shown)]


def _word_presence(texts: pl.Series, fewest: int) -> tuple[list[str], Matrix]:
    """The most frequent words that some texts have and others have not, and which text has which. `[rows, words]`."""
    import polars as pl

    found = pl.DataFrame({"row": np.arange(len(texts)), "word": texts.str.extract_all(WORD).list.unique()})
    found = found.explode("word").drop_nulls()
    counts = found["word"].value_counts(name="rows").filter(pl.col("rows").is_between(fewest, len(texts) - fewest))
    words = counts.sort(["rows", "word"], descending=[True, False]).head(WORDS).select("word").with_row_index("place")
    cells = found.join(words, on="word")
    presence = np.zeros((len(texts), words.height), np.float32)
    presence[cells["row"].to_numpy(), cells["place"].to_numpy()] = 1
    return words["word"].to_list(), presence


def _has_word(texts: pl.Series, word: str) -> pl.Series:
    """Whether each text has the word, and not just its letters within another."""
    may = texts.str.contains(word, literal=True).fill_null(value=False)
    return may.scatter(may.arg_true(), texts.filter(may).str.extract_all(WORD).list.contains(word))
