"""The repairs of texts, one after another: done to the texts that are learnt, and again to those that are served.

Which rules are on, and in which order, travels with the rows and the model as `text_rules`, a JSON value:

    {"steps": [{"rule": "fix_text", "form": "NFC"}, {"rule": "redact", "redactor": "email"}]}

This module and those it imports travel with every model; they import nothing of ours but each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from . import personal_data, text

if TYPE_CHECKING:
    import polars as pl

TextRules = Mapping[str, Any]
Step = tuple[str, "Callable[[pl.Series], pl.Series]"]
"""Name of a rule, and what it makes of texts."""
REDACT = "redact:"
"""Begins the names of the rules that hide personal data."""


def repaired(texts: pl.Series, text_rules: TextRules) -> pl.Series:
    """The texts after every rule that is on; nulls stay."""
    for _, rule in steps(text_rules):
        texts = rule(texts)
    return texts


def steps(text_rules: TextRules) -> list[Step]:
    """The rules that are on, in order.

    Raises:
        LookupError: A redactor is not installed here.
        ValueError: There is no such rule.
    """
    return [_step(**step) for step in text_rules.get("steps", ())]


def redactor_names(text_rules: TextRules) -> list[str]:
    """Names of the redactors that are on, in order."""
    return [step["redactor"] for step in text_rules.get("steps", ()) if step["rule"] == "redact"]


def _step(rule: str, **options: Any) -> Step:
    if rule == "strip_markup":
        return rule, text.strip_markup
    if rule == "fix_text":
        return rule, partial(text.fix_text, form=options["form"])
    if rule == "redact":
        name = options["redactor"]
        return f"{REDACT}{name}", partial(personal_data.redact, redactor=personal_data.redactor_of(name))
    if rule == "collapse_whitespace":
        return rule, text.collapse_whitespace
    raise ValueError(f"there is no rule {rule!r} for texts")
