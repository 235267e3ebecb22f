from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.data import Clean
from tasks.rules.alignment import as_given, nearest, put_right
from tasks.rules.part import text_rules
from tasks.rules.repair import repaired

RULES = text_rules(Clean(strip_markup=True, redact=("email",)))

CASES = {  # context, the answer in it, which of its places, what it becomes, which of the places of that
    "white space": ("a  b\n\nthe  cat \t sat", "cat", 0, "cat", 0),
    "markup": ('<p class="x">In <b>Paris</b>&nbsp;it rains. <i>Paris</i>, Paris!</p>', "Paris", 1, "Paris", 1),
    "mojibake in it": ("The cafÃ© in MÃ¼nchen, the cafÃ© here", "MÃ¼nchen", 0, "München", 0),
    "mojibake, the second of two": ("The cafÃ© in MÃ¼nchen, the cafÃ© here", "cafÃ©", 1, "café", 1),
    "combining marks": ("e\u0301te\u0301  a \u00e9t\u00e9 here e\u0301te\u0301 x", "e\u0301te\u0301", 1, "été", 2),
    "beyond the basic plane": (
        "\U0001d4b3 is  a \U0001d4b4 and \U0001d4b4 &amp; 😀 \U0001d4b4",
        "\U0001d4b4",
        2,
        "\U0001d4b4",
        2,
    ),
    "emoji before it": ("😀😀  😀 &lt; cat", "cat", 0, "cat", 0),
    "personal data": ("mail kim@example.com and  bob@example.com now", "bob@example.com", 0, "<EMAIL>", 1),
    "no words apart": ("今日は<b>晴れ</b>です。明日は雨です。", "雨", 0, "雨", 0),
    "several words": ("see <b>the  big</b>\ncat", "the  big</b>\ncat", 0, "the big cat", 0),
    "part of a word": ("x  10km away, 10km", "10", 1, "10", 1),
}


def place_of(text: str, wanted: str, which: int) -> int:
    place = -1
    for _ in range(which + 1):
        place = text.index(wanted, place + 1)
    return place


def cleaned(text: str) -> str:
    found: str = repaired(pl.Series([text]), RULES)[0]
    return found


@pytest.mark.parametrize(("context", "answer", "which", "became", "which_there"), CASES.values(), ids=CASES)
def test_a_span_is_found_again_at_its_own_place_and_back(context, answer, which, became, which_there):
    begin = place_of(context, answer, which)
    clean = cleaned(context)
    assert clean != context
    there = put_right(context, clean, begin, begin + len(answer), RULES)
    assert there == (place_of(clean, became, which_there), place_of(clean, became, which_there) + len(became))
    back = as_given(context, clean, *there, RULES)
    assert back is not None
    assert cleaned(context[slice(*back)]) == became
    if context.count(answer) > 1:
        assert back == (begin, begin + len(answer))


def test_what_is_gone_is_nowhere():
    assert put_right("a <script>cat</script> b", "a b", 10, 13, RULES) is None
    assert put_right("cat", "cat", 0, 3, RULES) == (0, 3)


def test_a_place_that_cannot_be_proved_is_not_told():
    assert as_given("Ã¤ Ã¤", "ä ö", 2, 3, RULES) is None


def test_the_nearest_of_several_places_is_taken_and_of_two_as_near_the_first():
    assert nearest("ab ab ab", "ab", 4) == (3, 5)
    assert nearest("ab  ab", "ab", 2) == (0, 2)
    assert nearest("ab", "cd", 0) is None


PIECES = st.sampled_from(["cat", "dog", "  ", "\n", "<b>", "</b>", "&amp;", "Ã©", "😀", "e\u0301", ",", " ", "x1"])


@given(st.lists(PIECES, min_size=1, max_size=20), st.data())
def test_what_is_found_says_what_the_span_becomes(pieces, data):
    context = "".join(pieces)
    clean = cleaned(context)
    begin = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(begin + 1, len(context)))
    there = put_right(context, clean, begin, end, RULES)
    if there is not None:
        assert clean[slice(*there)].strip() == cleaned(context[begin:end])
        back = as_given(context, clean, *there, RULES)
        assert back is None or cleaned(context[slice(*back)]) == clean[slice(*there)]
