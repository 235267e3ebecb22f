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
TEXT = "text"


def composed(batch: Batch, parts: Mapping[str, str]) -> Batch:
    """The batch with columns `conversation` and `text` made of its parts.

    What is no conversation stays as it is in both; cleaning sets it aside, by its fault.

    Args:
        batch: Some rows.
        parts: Part → column of the source; none: the batch stays as it is.
    """
    import polars as pl

    if not parts:
        return batch
    values = batch.values
    if WHOLE in parts:
        found = values[parts[WHOLE]].to_list()
    else:
        named = values.select(pl.col(column).alias(part) for part, column in parts.items())
        found = [_of_parts(**row) for row in named.iter_rows(named=True)]
    made = pl.DataFrame([_row(text) for text in found], schema={WHOLE: pl.String, TEXT: pl.String}, orient="row")
    return Batch(batch.columns, batch.numbers, values.with_columns(made.get_columns()), batch.unreadable)


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
