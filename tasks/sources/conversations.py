"""Rows of conversations: one JSON text for each, whichever format the source has, and all that is said in it.

A source holds whole conversations in one column, or a question and its answer in several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.rules import chat
from tasks.sources import Batch

WHOLE = "conversation"
"""The part that is a conversation as it is; else there are `prompt` and `completion`, and may be `system`, `input`."""
REJECTED = "rejected"
"""The part that is the worse of two answers; the better one is `chosen`, and there may be `prompt` and `system`."""
TEXT = "text"


def composed(batch: Batch, parts: Mapping[str, str]) -> Batch:
    """The batch with columns `conversation` and `text`, and `rejected` where there are pairs, made of its parts.

    What is no conversation stays as it is in both; cleaning sets it aside, by its fault.

    Args:
        batch: Some rows.
        parts: Part → column of the source; none: the batch stays as it is.
    """
    import polars as pl

    if not parts:
        return batch
    values = batch.values
    named = values.select(pl.col(column).alias(part) for part, column in parts.items())
    rows = named.iter_rows(named=True)
    schema = {WHOLE: pl.String, TEXT: pl.String}
    made: list[tuple[str | None, ...]]
    if WHOLE in parts:
        made = [_row(row[WHOLE]) for row in rows]
    elif REJECTED in parts:
        schema |= {REJECTED: pl.String}
        pairs = (chat.of_pair(row.get("prompt"), row["chosen"], row[REJECTED], row.get("system")) for row in rows)
        made = [(None, None, None) if pair is None else (*_row(pair[0]), _row(pair[1])[0]) for pair in pairs]
    else:
        made = [_row(_of_parts(**row)) for row in rows]
    columns = pl.DataFrame(made, schema=schema, orient="row").get_columns()
    return Batch(batch.columns, batch.numbers, values.with_columns(columns), batch.unreadable)


def _of_parts(
    prompt: str | None,
    completion: str | None,
    system: str | None = None,
    input: str | None = None,  # noqa: A002  as Alpaca has it
) -> str | None:
    """The conversation; none where nobody asks or nobody answers."""
    if not (prompt and prompt.strip()) or not (completion and completion.strip()):
        return None
    return chat.of_parts(prompt, completion, system=system, more=input)


def _row(text: str | None) -> tuple[str | None, str | None]:
    """Conversation and text of a row."""
    if text is None:
        return None, None
    try:
        conversation = chat.read(text)
    except chat.UnreadableError:
        return text, text
    return chat.written(conversation), said(conversation)


def said(conversation: Mapping[str, Any]) -> str:
    """All texts of a conversation, one after the other."""
    return "\n\n".join(message["content"] for message in conversation["messages"] if message["content"].strip())
