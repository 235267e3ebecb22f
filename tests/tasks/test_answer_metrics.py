"""Expectations are worked by hand from the published rules of SQuAD 1.1 and 2.0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.answer_metrics import best, best_threshold, exact, f1, metrics_of, normalised, numbers

OFFICIAL_11 = [  # answer, truths, exact match, F1
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos"], 1.0, 1.0),
    ("the DENVER  broncos!", ["Denver Broncos"], 1.0, 1.0),
    ("Broncos", ["Denver Broncos"], 0.0, 2 / 3),
    ("Carolina Panthers", ["Denver Broncos"], 0.0, 0.0),
    ("in the city of Paris, France", ["Paris", "Paris, France"], 0.0, 2 * 2 / (5 + 2)),
    ("no no yes", ["no yes yes"], 0.0, 2 / 3),  # words count as often as both have them
    ("U.S.A", ["usa"], 1.0, 1.0),
    ("$1,000", ["1000"], 1.0, 1.0),
    ("semi-final", ["semifinal"], 1.0, 1.0),
    ("Ångström", ["ångström"], 1.0, 1.0),
    ("“Paris”", ["Paris"], 0.0, 0.0),  # only ASCII punctuation goes
    ("", ["Paris"], 0.0, 0.0),
]
OFFICIAL_20 = [
    ("", [], 1.0, 1.0),
    ("Paris", [], 0.0, 0.0),
    ("the", [], 1.0, 1.0),  # nothing is left of an article
    ("", ["the", "Paris"], 0.0, 0.0),  # nor of a true answer: it does not count
    ("", ["the"], 1.0, 1.0),
]


@pytest.mark.parametrize(("answer", "truths", "same", "alike"), OFFICIAL_11 + OFFICIAL_20)
def test_answers_are_measured_by_the_rules_of_squad(answer, truths, same, alike):
    assert best(exact, answer, truths) == same
    assert best(f1, answer, truths) == pytest.approx(alike)


def test_articles_are_whole_words_and_go_after_punctuation():
    assert normalised("The-an theatre, a  Cat's") == "thean theatre cats"


def test_the_metrics_are_means_over_rows_and_over_the_rows_of_a_kind():
    rows = numbers(["Paris", "in Paris", "", "Rome"], [["Paris"], ["Paris"], [], []])
    assert metrics_of(rows.sum(0), by_kind=True) == pytest.approx(
        {
            "f1": (1 + 2 / 3 + 1) / 4, "exact_match": 2 / 4,
            "f1/has_answer": (1 + 2 / 3) / 2, "exact_match/has_answer": 1 / 2, "support/has_answer": 2,
            "f1/no_answer": 1 / 2, "exact_match/no_answer": 1 / 2, "support/no_answer": 2,
        }
    )  # fmt: skip
    assert metrics_of(rows[:2].sum(0), by_kind=False).keys() == {"f1", "exact_match"}
    stacked = metrics_of(np.stack([rows.sum(0), rows[:2].sum(0)]), by_kind=False)
    assert stacked["f1"] == pytest.approx([(1 + 2 / 3 + 1) / 4, (1 + 2 / 3) / 2])


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12)
)
def test_no_other_threshold_is_better(rows):
    odds = np.array([float(odd) for odd, *_ in rows])
    answered = np.array([score for _, score, _ in rows])
    silent = np.array([float(right) for *_, right in rows])

    def mean(threshold: float) -> float:
        return float(np.where(odds > threshold, silent, answered).mean())

    threshold, value = best_threshold(odds, answered, silent)
    assert mean(threshold) == pytest.approx(value)
    assert value == pytest.approx(max(mean(other / 2) for other in range(-11, 12)))
