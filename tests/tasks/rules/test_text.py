from __future__ import annotations

import ftfy
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.rules import text


def only(series: pl.Series) -> str:
    [value] = series
    return value


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("cafÃ© noir", "café noir"),
        ("fish &amp; chips &gt; peas", "fish & chips > peas"),
        ("a\x00b\x1b[31mc\x7f", "abc"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("evil \u202etxt.exe\u202c \u2066x\u2069 \u061cy", "evil txt.exe x y"),
        ("zero\u200bwidth\ufeff \u00adsoft", "zerowidth soft"),
        ("family 👩\u200d👩\u200d👧", "family 👩\u200d👩\u200d👧"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("R&D at AT&T; ok", "R&D at AT&T; ok"),
    ],
)
def test_text_is_repaired(broken, whole):
    assert only(text.fix_text(pl.Series([broken]))) == whole


def test_the_compatible_form_is_only_used_when_asked_for():
    assert only(text.fix_text(pl.Series(["x² ½ №"]))) == "x² ½ №"
    assert only(text.fix_text(pl.Series(["x² ½ №"]), "NFKC")) == "x2 1\u20442 No"


@given(st.text(st.characters(max_codepoint=0x17F) | st.sampled_from("&;#amp<\x1b[\u2019"), max_size=40))
@settings(max_examples=300, deadline=None)
def test_text_that_ftfy_is_spared_would_not_have_changed(value):
    texts = pl.Series([value])
    if not texts.str.contains(text.MAY_NEED_REPAIR)[0]:
        assert ftfy.fix_text(value) == value
    assert text.fix_text(texts)[0] == text.INVISIBLE.sub("", ftfy.fix_text(value))


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_repaired_text_is_not_changed_again_by_white_space(value):
    once = text.collapse_whitespace(pl.Series([value]))
    assert text.collapse_whitespace(once).equals(once)
    assert only(once) == " ".join(only(once).split(" "))


def test_white_space_is_one_space_and_none_at_the_ends():
    assert only(text.collapse_whitespace(pl.Series(["  two \t words\u00a0\u3000here\r\n "]))) == "two words here"


@pytest.mark.parametrize(
    ("marked", "bare"),
    [
        ("<p>one</p><p>two</p>", "one two"),
        ("<b>bo</b>ld <i class='x'>it</i>", "bold it"),
        ('<a href="https://x.org/?a=1&b=2" target=_blank>link</a> text', "link text"),
        ("line<br/>break<BR>again", "line break again"),
        ("<img src=x.png alt='a > b'>picture", "picture"),
        ("<input disabled checked>box", "box"),
        ("before<!-- hidden <b>x</b> -->after", "before after"),
        ("a<script type='text/javascript'>if (a < b) alert('</p>')</script>b", "a b"),
        ("a<style>p > b { color: red }</style>b", "a b"),
        ("<!DOCTYPE html><html><body>x</body></html>", "x"),
        ("<![CDATA[kept]]>", "kept"),
        ("<o:p>word</o:p>", "word"),
        ("<p>I <3 fish &amp; chips &lt;b&gt;</p>", "I <3 fish & chips <b>"),
        ("<div\n id=a\n>x</div>", "x"),
    ],
)
def test_markup_goes_and_what_is_between_stays(marked, bare):
    assert " ".join(only(text.strip_markup(pl.Series([marked]))).split()) == bare


@pytest.mark.parametrize(
    "plain",
    [
        "a < b", "a<b and b>c", "I <3 you", "<3 <33 </3", "x <b and c> d", "<user> said <EMAIL>", "if (a<b && c>d) {}",
        "List<String> x", "<_< >_> <.<", "5 < 6 > 4", "<", "a <- b -> c", "&lt;b&gt; &amp;", "<a", "<p class=",
        "<!-- open", "vector<int> v", "price <100>", "<script>never closed",
    ],
)  # fmt: skip
def test_what_only_looks_like_markup_stays(plain):
    kept = only(text.strip_markup(pl.Series([plain])))
    assert kept == ("never closed" if plain.startswith("<script>") else plain)


def test_hostile_markup_takes_no_time():
    texts = pl.Series(["<a " * 50_000, "<!--" * 50_000, "<p a='" * 50_000, "<script>" * 20_000])
    assert len(text.strip_markup(texts)) == 4


def test_nulls_stay():
    nothing = pl.Series([None, "x"], dtype=pl.String)
    for rule in (text.fix_text, text.strip_markup, text.collapse_whitespace):
        assert rule(nothing).to_list() == [None, "x"]
