"""SQuAD JSON, of 1.1 and 2.0, as rows: one for each question, numbered through the file.

Columns: `id`, `title`, `context`, `question`, `answers` (JSON: text and start of each; [] where there is none) and
`is_impossible`. An entry that is no question is set aside with its reason and its place in the file: `not_an_object`,
`no_context`, `no_question`, `no_answers` (a file without them is one to be answered), `contradicts_is_impossible`.
A file is held in memory as a whole: that of SQuAD is 40 MB. Does not cover answers that are no span of the context.

References:
    https://rajpurkar.github.io/SQuAD-explorer
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Wanted, asked, refusal, require_columns
from tasks.sources.snapshot import text_frame
from tasks.sources.text import MAX_RAW_CHARS, opened

COLUMNS = ("id", "title", "context", "question", "answers", "is_impossible")


class _Entry(NamedTuple):
    """What stands where a question is expected.

    Attributes:
        place: Such as `data[0].paragraphs[2].qas[1]`.
        values: Those of `COLUMNS`.
        reason: Why it is none.
        content: What stands there.
    """

    place: str
    values: tuple[Any, ...]
    reason: str | None
    content: Any


def read(path: Path, field: str, wanted: Wanted, *, shown: str) -> Iterator[Batch]:
    """The questions of a file.

    Args:
        path: Where it is.
        field: The recipe's field that names it, for errors.
        wanted: Recipe field → column.
        shown: Its location as errors show it.

    Raises:
        DataError: It is no such file, is damaged, or has no such column.
    """
    import numpy as np

    require_columns(wanted, COLUMNS, Path(shown).name)
    names = asked(wanted)
    places = [COLUMNS.index(name) for name in names]
    yield Batch(COLUMNS, np.empty(0, np.uint32), text_frame([], names, field))
    entries = enumerate(_entries(_articles(path, field, shown)), start=1)
    while batch := list(islice(entries, BATCH_ROWS)):
        good = [(number, entry) for number, entry in batch if entry.reason is None]
        rows = [[entry.values[place] for place in places] for _, entry in good]
        unreadable = [(number, _raw(entry), entry.reason) for number, entry in batch if entry.reason is not None]
        numbers = np.array([number for number, _ in good], np.uint32)
        yield Batch(COLUMNS, numbers, text_frame(rows, names, field), unreadable)


def _articles(path: Path, field: str, shown: str) -> list[Any]:
    with opened(path, "squad", field, shown) as file:
        written = file.read()
    if not written.strip():
        return []
    try:
        content = json.loads(written)
    except (ValueError, RecursionError) as error:
        remedy = "fetch the whole file again; for one JSON object per line set collect.source.kind to jsonl"
        raise refusal(field, shown, f"is not one JSON value: {error}", remedy) from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        rule = "is JSON, but not SQuAD's: it has no list 'data'"
        raise refusal(field, shown, rule, 'write {"data": [{"title": …, "paragraphs": [{"context": …, "qas": […]}]}]}')
    return articles


def _entries(articles: list[Any]) -> Iterator[_Entry]:
    """The questions, and whatever else stands in their place, in order."""
    for number, article in enumerate(articles):
        place = f"data[{number}]"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield _Entry(place, (), "not_an_object", article)
            continue
        for at, paragraph in enumerate(paragraphs):
            yield from _questions(f"{place}.paragraphs[{at}]", article.get("title"), paragraph)


def _questions(place: str, title: Any, paragraph: Any) -> Iterator[_Entry]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list):
        yield _Entry(place, (), "not_an_object", paragraph)
        return
    context = paragraph.get("context")
    for number, question in enumerate(questions):
        reason = _fault(context, question)
        values: tuple[Any, ...] = ()
        if reason is None:
            values = (
                question.get("id"), title, context, question["question"], question["answers"],
                question.get("is_impossible", not question["answers"]),
            )  # fmt: skip
        yield _Entry(f"{place}.qas[{number}]", values, reason, question)


def _fault(context: Any, question: Any) -> str | None:
    """Why this is no question; what its answers say is for cleaning to judge."""
    if not isinstance(question, dict):
        return "not_an_object"
    if not isinstance(context, str):
        return "no_context"
    if not isinstance(question.get("question"), str):
        return "no_question"
    answers = question.get("answers")
    if not isinstance(answers, list):
        return "no_answers"
    said = question.get("is_impossible")
    return "contradicts_is_impossible" if isinstance(said, bool) and said == bool(answers) else None


def _raw(entry: _Entry) -> str:
    return f"{entry.place}: {json.dumps(entry.content, ensure_ascii=False)}"[:MAX_RAW_CHARS]
