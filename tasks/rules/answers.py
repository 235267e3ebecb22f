"""Rules that put answers right: every spelling of them becomes one, and each is found again in the cleaned context.

Clean rows have them as a JSON list, `[{"text": "in Paris", "start": 31}, …]`: what stands in the cleaned context from
that character on. No answer, `[]`, is a truth as well. Sources may write, besides that:

    {"text": ["in Paris", …], "answer_start": [31, …]}      as data sets on the hub do
    [{"text": "in Paris", "answer_start": 31}, …]           as SQuAD does
    ["in Paris", …] or in Paris                             with or without a column of starts
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.rules import alignment
from tasks.rules.repair import TextRules
from tasks.rules.spans import trimmed

if TYPE_CHECKING:
    import polars as pl

STARTS = ("start", "answer_start")
"""What sources call the place of an answer."""
NOWHERE = "-1"
"""Start of a question without an answer, where starts have a column of their own."""


class Answer(NamedTuple):
    """A true answer.

    Attributes:
        text: What it says.
        start: Its first character in the context; none where the source does not tell.
    """

    text: str
    start: int | None


def parsed(written: str, starts: str | None = None) -> list[Answer] | None:
    """The answers that a source wrote, each once; none where it is not clear which.

    Args:
        written: See above. Text that only looks like JSON is an answer as it is.
        starts: Of a column of its own: a number, or a JSON list of numbers.
    """
    value: Any = written
    if written.lstrip()[:1] in {"[", "{"}:
        try:
            value = json.loads(written)
        except ValueError:
            value = written
    found = _answers(value)
    if found is not None and starts is not None and starts.strip():
        found = _with_starts(found, starts)
    return None if found is None else list(dict.fromkeys(found))


def _answers(value: Any) -> list[Answer] | None:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict):
        texts = value.get("text")
        starts = next((value[name] for name in STARTS if name in value), None)
        if isinstance(texts, str):
            texts, starts = [texts], None if starts is None else [starts]
        if not isinstance(texts, list) or not isinstance(starts, list | None):
            return None
        starts = [None] * len(texts) if starts is None else starts
        if len(starts) != len(texts):
            return None
        value = [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    found = [_answer(each) for each in value] if isinstance(value, list) else [None]
    return None if None in found else [answer for answer in found if answer is not None]


def _answer(value: Any) -> Answer | None:
    if isinstance(value, str):
        return Answer(value, None) if value.strip() else None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not value["text"].strip():
        return None
    start = next((value[name] for name in STARTS if name in value), None)
    if start is None:
        return Answer(value["text"], None)
    whole = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    return Answer(value["text"], start) if whole else None


def _with_starts(answers: list[Answer], starts: str) -> list[Answer] | None:
    try:
        value = json.loads(starts)
    except ValueError:
        return None
    value = value if isinstance(value, list) else [value]
    if not answers and value in ([], [-1]):
        return answers
    if len(value) != len(answers):
        return None
    found = [_answer({"text": answer.text, "start": start}) for answer, start in zip(answers, value, strict=True)]
    return None if None in found else [answer for answer in found if answer is not None]


def written(answers: Sequence[Answer]) -> str:
    """Answers as clean rows have them."""
    return json.dumps([answer._asdict() for answer in answers], ensure_ascii=False)


def follow(before: pl.DataFrame, after: pl.DataFrame, rules: TextRules) -> pl.DataFrame:
    """The rows with their answers as clean rows have them; those that are unclear or not in the context stay.

    Of several answers those that are in the context.

    Args:
        before: Rows as collected: `context`, `answers`, perhaps `start`.
        after: The same after the rules for texts.
        rules: Those of `tasks.rules.repair`.
    """
    import polars as pl

    given = zip(
        before["context"], after["context"], before["answers"],
        before["start"] if "start" in before.columns else [None] * before.height, strict=True,
    )  # fmt: skip
    found = [_followed(*row, rules) for row in given]
    answers = [old if new is None else new for new, old in zip(found, before["answers"], strict=True)]
    columns = [pl.Series("answers", answers, pl.String)]
    if "start" in before.columns:
        starts = [old if new is None else first_start(new) for new, old in zip(found, before["start"], strict=True)]
        columns.append(pl.Series("start", starts, pl.String))
    return after.with_columns(columns)


def first_start(answers: str) -> str:
    """Where the first of some clean answers begins, or `NOWHERE`."""
    found = json.loads(answers)
    return str(found[0]["start"]) if found else NOWHERE


def _followed(
    context: str | None, cleaned: str | None, answers: str | None, starts: str | None, rules: TextRules
) -> str | None:
    if context is None or cleaned is None or answers is None or not answers.strip():
        return None
    given = parsed(answers, starts)
    if given is None:
        return None
    found = [_found(context, cleaned, answer, rules) for answer in given]
    kept = list(dict.fromkeys(answer for answer in found if answer is not None))
    return None if given and not kept else written(kept)


def _found(context: str, cleaned: str, answer: Answer, rules: TextRules) -> Answer | None:
    """The answer at its place in the cleaned context."""
    text, about = answer.text.strip(), answer.start or 0
    if context[about : about + len(answer.text)] == answer.text:
        about += len(answer.text) - len(answer.text.lstrip())
    place = alignment.nearest(context, text, about)
    if place is None:  # the source has cleaned the answer, but not the context
        share = about / max(1, len(context))
        place = alignment.nearest(cleaned, alignment.became(text, rules), round(share * len(cleaned)))
    else:
        place = alignment.put_right(context, cleaned, *place, rules)
    span = None if place is None else trimmed(cleaned, *place)
    return None if span is None else Answer(cleaned[slice(*span)], span[0])


def fault_of(context: str | None, answers: str | None, starts: str | None = None) -> str | None:
    """Why a row that has been through `follow` is set aside; none where it is fit.

    Args:
        context: Cleaned.
        answers: What `follow` left.
        starts: Likewise, where they have a column of their own.

    Returns:
        `missing_answers`, `broken_answers` or `answer_not_in_context`.
    """
    if answers is None or not answers.strip():
        return "missing_answers"
    found = parsed(answers)
    if found is not None and answers == written(found) and all(_stands(answer, context) for answer in found):
        return None
    return "broken_answers" if parsed(answers, starts) is None else "answer_not_in_context"


def _stands(answer: Answer, context: str | None) -> bool:
    begin = answer.start
    return begin is not None and context is not None and context[begin : begin + len(answer.text)] == answer.text
