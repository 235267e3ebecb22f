from __future__ import annotations

import json

import polars as pl
import pytest

from schemas.data import Clean
from tasks.rules import personal_data, repair, text
from tasks.rules.part import text_rules

EVERYTHING = Clean(strip_markup=True, redact=("ip", "email"), unicode_form="NFKC")


def test_the_rules_that_are_on_are_told_in_the_order_in_which_they_run():
    assert text_rules(EVERYTHING) == {
        "steps": [
            {"rule": "strip_markup"},
            {"rule": "fix_text", "form": "NFKC"},
            {"rule": "redact", "redactor": "ip"},
            {"rule": "redact", "redactor": "email"},
            {"rule": "collapse_whitespace"},
        ]
    }
    assert text_rules(Clean(fix_text=False, collapse_whitespace=False)) == {"steps": []}


def test_texts_are_put_right_by_one_rule_after_another():
    texts = pl.Series([" <b>kim@example.com</b>\u00a0\uff21 10.0.0.12", None, "<br>", "plain"])
    told = json.loads(json.dumps(text_rules(EVERYTHING)))
    by_hand = text.fix_text(text.strip_markup(texts), "NFKC")
    for name in ("ip", "email"):
        by_hand = personal_data.redact(by_hand, personal_data.redactor_of(name))
    assert repair.repaired(texts, told).to_list() == text.collapse_whitespace(by_hand).to_list()
    assert repair.repaired(texts, told).to_list() == ["<EMAIL> A <IP>", None, "", "plain"]


@pytest.mark.parametrize("rules", [{}, {"steps": []}])
def test_without_rules_texts_stay(rules):
    assert repair.repaired(pl.Series(["  <b> ", None]), rules).to_list() == ["  <b> ", None]


def test_a_rule_or_a_redactor_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no rule 'shout'"):
        repair.steps({"steps": [{"rule": "shout"}]})
    with pytest.raises(LookupError, match=r"no redactor 'passport': install the package .* hone\.redactors"):
        repair.steps({"steps": [{"rule": "redact", "redactor": "passport"}]})
