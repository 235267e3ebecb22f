"""Exact match and F1 of answers by the rules of SQuAD 2.0, which are those of 1.1 where every question has an answer.

Texts are compared without case, punctuation, articles and surplus white space; of several true answers the one that
fits best counts. A question without an answer is answered rightly by nothing alone.

References:
    P. Rajpurkar et al. (2016), SQuAD: 100,000+ Questions for Machine Comprehension of Text.
    P. Rajpurkar et al. (2018), Know What You Don't Know: Unanswerable Questions for SQuAD.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tasks.row_metrics import ratio

if TYPE_CHECKING:
    from tasks.bootstrap import Floats

NO_ANSWER = ""
"""The answer to a question that has none."""
KINDS = ("has_answer", "no_answer")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

Measure = Callable[[str, str], float]


@lru_cache(maxsize=100_000)
def normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words one space apart."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact(answer: str, truth: str) -> float:
    """1 where the two are the same text, else 0."""
    return float(normalised(answer) == normalised(truth))


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of the shares of words that each has in common with the other; 1 where both have none."""
    words, others = normalised(answer).split(), normalised(truth).split()
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others))


def best(measure: Measure, answer: str, truths: Sequence[str]) -> float:
    """The measure against the true answer that fits best; a true answer of articles and punctuation is none.

    Args:
        measure: `exact` or `f1`.
        answer: What is predicted.
        truths: Empty where the question has no answer.
    """
    counted = [truth for truth in truths if normalised(truth)] or [NO_ANSWER]
    return max(measure(answer, truth) for truth in counted)


def numbers(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> Floats:
    """Of each row: 1, F1, exact match, whether it has an answer, and F1 and exact match where it has. `[rows, 6]`."""
    rows = []
    for answer, true in zip(answers, truths, strict=True):
        found, same, has = best(f1, answer, true), best(exact, answer, true), float(bool(true))
        rows.append((1.0, found, same, has, has * found, has * same))
    return np.array(rows, np.float64).reshape(-1, 6)


def metrics_of(sums: Floats, *, by_kind: bool) -> Mapping[str, Floats]:
    """`f1` and `exact_match`, 0 to 1, out of the numbers of several rows added up, `[..., 6]`.

    Args:
        sums: See `numbers`.
        by_kind: Also `<metric>/has_answer` and `<metric>/no_answer`, and how many rows there are of each.
    """
    rows, of_all, same, has, of_answered, same_answered = np.moveaxis(np.asarray(sums), -1, 0)
    found = {"f1": ratio(of_all, rows), "exact_match": ratio(same, rows)}
    if not by_kind:
        return found
    parts = {"has_answer": (has, of_answered, same_answered)}
    parts["no_answer"] = (rows - has, of_all - of_answered, same - same_answered)
    for kind in KINDS:
        count, part, same_part = parts[kind]
        found |= {f"f1/{kind}": ratio(part, count), f"exact_match/{kind}": ratio(same_part, count)}
        found[f"support/{kind}"] = count
    return found


def best_threshold(odds: Floats, if_answered: Floats, if_silent: Floats) -> tuple[float, float]:
    """The odds above which to give no answer, so that the mean measure is greatest, and that mean.

    Of thresholds that are equally good the lowest; midway between the odds of two rows.

    Args:
        odds: Of each row, score of no answer less that of the best answer. `[rows]`
        if_answered: What each row counts with its best answer.
        if_silent: What it counts without one.
    """
    order = np.argsort(odds, kind="stable")
    ascending = odds[order]
    gains = np.concatenate([[0.0], np.cumsum((if_answered - if_silent)[order])])
    places = np.concatenate([[True], ascending[1:] > ascending[:-1], [True]])  # rows of equal odds fare alike
    allowed = np.flatnonzero(places)
    place = int(allowed[np.argmax(gains[allowed])])
    value = float((if_silent.sum() + gains[place]) / len(odds))
    if place == 0:
        return float(ascending[0]) - 1.0, value
    if place == len(odds):
        return float(ascending[-1]) + 1.0, value
    return float((ascending[place - 1] + ascending[place]) / 2), value
