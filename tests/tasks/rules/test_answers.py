from __future__ import annotations

import json

import polars as pl
import pytest

from schemas.data import Clean
from tasks.rules.answers import fault_of, follow, parsed
from tasks.rules.part import text_rules
from tasks.rules.repair import repaired

RULES = text_rules(Clean(strip_markup=True))

SPELLINGS = {
    "SQuAD": ('[{"text": "in Paris", "answer_start": 3}, {"text": "Paris", "answer_start": 6}]', None),
    "clean rows": ('[{"text": "in Paris", "start": 3}, {"text": "Paris", "start": 6}]', None),
    "the hub": ('{"text": ["in Paris", "Paris"], "answer_start": [3, 6]}', None),
    "texts and a column of starts": ('["in Paris", "Paris"]', "[3, 6]"),
}


@pytest.mark.parametrize(("written", "starts"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_means_the_same(written, starts):
    assert parsed(written, starts) == [("in Paris", 3), ("Paris", 6)]


@pytest.mark.parametrize(
    ("written", "starts", "meant"),
    [
        ("Paris", None, [("Paris", None)]),
        ("Paris", "6", [("Paris", 6)]),
        ("Paris", " ", [("Paris", None)]),
        ("1889", None, [("1889", None)]),
        ("[citation", None, [("[citation", None)]),
        ("[]", None, []),
        ("[]", "-1", []),
        ('{"text": [], "answer_start": []}', None, []),
        ('{"text": "Paris", "answer_start": 6}', None, [("Paris", 6)]),
        ('["Paris", "Paris"]', None, [("Paris", None)]),
    ],
)
def test_plain_texts_and_no_answers_are_understood(written, starts, meant):
    assert parsed(written, starts) == meant


@pytest.mark.parametrize(
    ("written", "starts"),
    [
        ("[1889]", None),
        ('{"text": ["a"], "answer_start": [1, 2]}', None),
        ('{"texts": ["a"]}', None),
        ('[{"text": "a", "answer_start": "1"}]', None),
        ('[{"text": "a", "answer_start": -2}]', None),
        ('[{"text": " ", "answer_start": 1}]', None),
        ('[{"text": "a", "answer_start": true}]', None),
        ("Paris", "six"),
        ("Paris", "[1, 2]"),
        ("[]", "3"),
    ],
)
def test_what_is_unclear_is_no_answer(written, starts):
    assert parsed(written, starts) is None


def followed(context: str, answers: str | None, start: str | None = None) -> tuple[str, str | None, str | None]:
    """Cleaned context, answers, and why the row is set aside."""
    before = pl.DataFrame(
        {"context": [context], "answers": [answers]}, schema={"context": pl.String, "answers": pl.String}
    )
    if start is not None:
        before = before.with_columns(start=pl.lit(start))
    after = before.with_columns(repaired(before["context"], RULES))
    row = follow(before, after, RULES).row(0, named=True)
    return row["context"], row["answers"], fault_of(row["context"], row["answers"], row.get("start"))


def test_answers_move_with_their_context():
    context = "<p>Paris,  not  Paris</p>"
    clean, answers, fault = followed(context, json.dumps([{"text": "Paris", "start": 16}]))
    assert (clean, fault) == ("Paris, not Paris", None)
    assert json.loads(answers) == [{"text": "Paris", "start": 11}]


@pytest.mark.parametrize("told", [14, 15, 17, 18])
def test_a_start_that_is_off_means_the_nearest_place(told):
    _, answers, fault = followed("<p>Paris,  not  Paris</p>", json.dumps([{"text": "Paris", "start": told}]))
    assert fault is None
    assert json.loads(answers) == [{"text": "Paris", "start": 11}]


def test_without_a_start_the_first_place_is_meant_and_a_clean_answer_is_found_in_a_dirty_context():
    _, answers, _ = followed("a  cat, a cat", "cat")
    assert json.loads(answers) == [{"text": "cat", "start": 2}]
    _, answers, _ = followed("the cafÃ© there", json.dumps([{"text": "café", "start": 4}]))
    assert json.loads(answers) == [{"text": "café", "start": 4}]


def test_white_space_around_an_answer_is_none_of_it():
    _, answers, fault = followed("a  cat sat", json.dumps([{"text": "  cat ", "start": 1}]))
    assert (json.loads(answers), fault) == ([{"text": "cat", "start": 2}], None)


def test_of_several_answers_those_in_the_context_stay_and_equal_ones_are_one():
    _, answers, fault = followed("a cat", json.dumps([{"text": "dog"}, {"text": "cat", "start": 2}, {"text": "cat"}]))
    assert (json.loads(answers), fault) == ([{"text": "cat", "start": 2}], None)


@pytest.mark.parametrize(
    ("answers", "start", "reason"),
    [
        ("dog", None, "answer_not_in_context"),
        (json.dumps([{"text": "script", "start": 3}]), None, "answer_not_in_context"),
        ("[1]", None, "broken_answers"),
        ("cat", "x", "broken_answers"),
        (None, None, "missing_answers"),
        ("  ", None, "missing_answers"),
    ],
)
def test_what_cannot_be_learnt_has_a_reason_and_stays_as_it_was_written(answers, start, reason):
    _, left, fault = followed("a <script>x</script> cat", answers, start)
    assert (left, fault) == (answers, reason)


def test_no_answer_is_a_truth_and_starts_of_a_column_follow():
    assert followed("a  cat", "[]")[1:] == ("[]", None)
    before = pl.DataFrame({"context": ["a  cat", "a"], "answers": ["cat", "[]"], "start": ["3", "-1"]})
    after = before.with_columns(repaired(before["context"], RULES))
    assert follow(before, after, RULES)["start"].to_list() == ["2", "-1"]
