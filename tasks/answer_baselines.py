"""Trivial models that answer questions: the commonest answer that the context has, and a sliding window over it.

The window slides over the context's words; a span is as good as the words around it are like the question, rare words
counting more (TF-IDF). Both may say that there is no answer. Their settings are chosen on validation. Does not
cover spans that cross punctuation or words of the question.

References:
    M. Richardson et al. (2013), MCTest: A Challenge Dataset for the Open-Domain Machine Comprehension of Text.
    P. Rajpurkar et al. (2016), SQuAD: 100,000+ Questions for Machine Comprehension of Text, section 5.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.answer_metrics import NO_ANSWER, best_threshold, metrics_of, numbers
from tasks.rows import batches

if TYPE_CHECKING:
    pass

WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
COMMONEST = 1_000
"""Answers of the training rows that are tried, the commonest first."""
WIDTHS = (4, 8, 16)
"""Words on each side of a span that are compared with the question; which is chosen on validation."""
MOST_WORDS = 8
"""Longest span that the window proposes."""
CHOOSING_ROWS = 2_000
"""Most validation rows that settings are chosen on."""
METRICS = ("f1", "exact_match")


def predict(split: Path, metric: str, out: Path, *, unanswerable: bool) -> dict[str, dict[str, Any]]:
    """Fit both baselines on the training rows and write their predictions of the test rows.

    Args:
        split: Folder with `train.parquet`, `validation.parquet` and `test.parquet`.
        metric: What settings are chosen by, on validation: `f1` or `exact_match`.
        out: Where `commonest_answer.parquet` and `sliding_window.parquet` go: columns id, truth, prediction.
        unanswerable: Whether there may be no answer.

    Returns:
        Name → what was chosen.
    """
    answers = _commonest_answers(split / "train.parquet")
    weights = _weights(split / "train.parquet")
    validation = list(_rows(split / "validation.parquet"))[:CHOOSING_ROWS]
    tried = {width: _best_spans(validation, weights, width) for width in WIDTHS}
    thresholds = {width: _threshold(validation, found, metric, unanswerable) for width, found in tried.items()}
    width = max(WIDTHS, key=lambda each: thresholds[each][1])
    threshold, value = thresholds[width]

    test = list(_rows(split / "test.parquet"))
    _write(out / "commonest_answer.parquet", test, [_first_in(row["context"], answers) for row in test])
    found = _best_spans(test, weights, width)
    _write(out / "sliding_window.parquet", test, [NO_ANSWER if -score > threshold else text for text, score in found])
    return {
        "commonest_answer": {"answers": len(answers), "commonest": answers[0] or "no answer"},
        "sliding_window": {"width": width, "validation": round(value, 4)},
    }


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for batch in batches([file], ["id", "context", "question", "answers"]):
        for row in batch.iter_rows(named=True):
            yield row | {"truths": [answer["text"] for answer in json.loads(row["answers"])]}


def _commonest_answers(train: Path) -> list[str]:
    """The answers that most training questions have, `NO_ANSWER` among them, the commonest first."""
    counts = Counter(answer for row in _rows(train) for answer in (row["truths"] or [NO_ANSWER]))
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:COMMONEST]]


def _first_in(context: str, answers: Sequence[str]) -> str:
    """The first answer that the context has; no answer is in every one."""
    return next((answer for answer in answers if answer in context), NO_ANSWER)


@dataclass(frozen=True)
class _Text:
    """A context in words.

    Attributes:
        words: Lower case.
        places: (begin, end) of each in the text.
    """

    words: list[str]
    places: list[tuple[int, int]]


def _text(context: str) -> _Text:
    found = list(WORD_OR_MARK.finditer(context))
    return _Text([match.group().lower() for match in found], [match.span() for match in found])


def _weights(train: Path) -> Mapping[str, float]:
    """How telling each word is: logarithm of one over the share of the training contexts that have it."""
    contexts = {row["context"] for row in _rows(train)}
    counts = Counter(word for context in contexts for word in set(_text(context).words))
    return {word: math.log((1 + len(contexts)) / (1 + count)) for word, count in counts.items()}


def _best_spans(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float], width: int) -> list[tuple[str, float]]:
    """The best span of each context, and what share of the question's weight stands around it."""
    return [_best_span(row["context"], row["question"], weights, width) for row in rows]


def _best_span(context: str, question: str, weights: Mapping[str, float], width: int) -> tuple[str, float]:
    rarest = max(weights.values(), default=1.0)
    text, asked = _text(context), set(_text(question).words)
    total = sum(weights.get(word, rarest) for word in asked) or 1.0
    best, best_score = NO_ANSWER, -1.0
    for begin, end in _candidates(text.words, asked):
        around = text.words[max(0, begin - width) : end + width]
        score = sum(weights.get(word, rarest) for word in asked.intersection(around)) / total
        if score > best_score:
            best, best_score = context[text.places[begin][0] : text.places[end - 1][1]], score
    return best, best_score


def _candidates(words: Sequence[str], asked: set[str]) -> Iterator[tuple[int, int]]:
    """Runs of words between punctuation and words of the question, none longer than `MOST_WORDS`."""
    begin = 0
    for place, word in enumerate([*words, "."]):
        if word in asked or not word[0].isalnum():
            if place > begin:
                yield begin, min(place, begin + MOST_WORDS)
            begin = place + 1


def _threshold(
    rows: Sequence[Mapping[str, Any]], found: Sequence[tuple[str, float]], metric: str, unanswerable: bool
) -> tuple[float, float]:
    """Above which negative score nothing is said, and the metric that this reaches."""
    truths, column = [row["truths"] for row in rows], 1 + METRICS.index(metric)
    answered = numbers([text for text, _ in found], truths)
    if not unanswerable:
        return math.inf, float(metrics_of(answered.sum(0), by_kind=False)[metric])
    silent = numbers([NO_ANSWER] * len(truths), truths)
    return best_threshold(np.array([-score for _, score in found]), answered[:, column], silent[:, column])


def _write(file: Path, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> None:
    import polars as pl

    pl.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "truth": pl.Series([row["truths"] for row in rows], dtype=pl.List(pl.String)),
            "prediction": pl.Series(answers, dtype=pl.String),
        }
    ).write_parquet(file)
