"""What of a conversation is learnt: its tokens, and for each of them the one that is wanted there, or none.

Only what the assistant writes is learnt, the mark that ends its turn included: a model that never learnt to end does
not. A conversation that is too long loses its oldest turns first, then the beginning of its last question, and only
then the end of the answer; it is counted as cut, and never is there an answer without the end of its question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.errors import Problem, RecipeError
from tasks.families import IGNORED, Encoded
from tasks.rules import chat
from tasks.tokenizer import BaseTokenizer

QUESTION = 4
"""A question keeps at least this part of the room, however long its answer is."""

Lesson = tuple[list[int], list[int]]
"""Token ids, and the label of each: itself where it is learnt, else `IGNORED`."""


def encode_conversations(
    conversations: Sequence[chat.Conversation],
    meta: Mapping[str, Any],
    tokenizer: BaseTokenizer,
    field: str,
    *,
    last: bool = False,
    **texts: Sequence[str],
) -> Encoded:
    """Conversations as a model learns from them, one window each.

    Args:
        conversations: See `tasks.rules.chat`.
        meta: The task's, with `max_seq_length` and `chat_template`, none for the model's own.
        tokenizer: The base model's.
        field: Of the recipe, for errors.
        last: Only the last answer is learnt.
        texts: Column → a text for each, kept for `Family.predictions`.

    Raises:
        RecipeError: The chat template does not tell what the assistant wrote, or refuses a conversation.
    """
    import pyarrow as pa

    template, longest = template_of(meta, tokenizer), meta["max_seq_length"]
    rows, uncut = [], []
    for conversation in conversations:
        ids, labels, length = _fitting(conversation, template, tokenizer, longest, field)
        labels[0] = IGNORED  # nothing comes before it, so nothing foretells it
        if last:
            labels = last_answer(labels)
        rows.append((ids, labels))
        uncut.append(length)
    columns = {
        "labels": pa.array([labels for _, labels in rows], pa.list_(pa.int32())),
        **{name: pa.array(column, pa.string()) for name, column in texts.items()},
    }
    return Encoded([ids for ids, _ in rows], [1] * len(rows), uncut, columns)


def last_answer(labels: Sequence[int]) -> list[int]:
    """The labels without those of all answers but the last one."""
    begins = max((place for place, label in enumerate(labels) if label != IGNORED and labels[place - 1] == IGNORED))
    return [label if place >= begins else IGNORED for place, label in enumerate(labels)]


def template_of(meta: Mapping[str, Any], tokenizer: BaseTokenizer) -> str:
    """The recipe's chat template, else the model's, else a plain one."""
    return meta.get("chat_template") or tokenizer.chat_template or chat.PLAIN


def marked(conversation: chat.Conversation, meta: Mapping[str, Any], tokenizer: BaseTokenizer) -> str:
    """The conversation as the model reads it, what is learnt between « and »."""
    text, spans = chat.learnt(template_of(meta, tokenizer), conversation, tokenizer.special)
    for start, end in reversed(spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


def lesson(template: str, conversation: chat.Conversation, tokenizer: BaseTokenizer) -> Lesson:
    """Tokens and labels of a whole conversation.

    Where the template does not end the last answer with a token that ends texts, the tokenizer's own follows it.

    Raises:
        chat.UntellableError: See `chat.learnt`.
        ValueError: The template refuses it.
    """
    text, spans = chat.learnt(template, conversation, tokenizer.special)
    (placed,) = tokenizer.placed([text])
    ids, offsets = list(placed[0]), np.array(placed[1], np.int64).reshape(-1, 2)
    wanted = np.zeros(len(ids), bool)
    for start, end in spans:
        wanted |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
    wanted[:1] = False  # nothing comes before the first token, so nothing can foretell it
    labels = np.where(wanted, ids, IGNORED).tolist()
    if tokenizer.stop and not (wanted.any() and ids[int(np.flatnonzero(wanted)[-1])] in tokenizer.stop):
        last = int(np.flatnonzero(wanted)[-1]) + 1 if wanted.any() else len(ids)
        ids, labels = [*ids[:last], tokenizer.stop[0]], [*labels[:last], tokenizer.stop[0]]
    return ids, labels


def _fitting(
    conversation: chat.Conversation, template: str, tokenizer: BaseTokenizer, longest: int, field: str
) -> tuple[list[int], list[int], int]:
    """Tokens and labels, no more than `longest`, and how many there were."""
    try:
        ids, labels = lesson(template, conversation, tokenizer)
        uncut = len(ids)
        while len(ids) > longest and (shorter := chat.without_oldest(conversation)) is not None:
            conversation = shorter
            ids, labels = lesson(template, conversation, tokenizer)
    except chat.UntellableError as error:
        rule = "writes a turn otherwise once more turns follow it, so that what is learnt cannot be told"
        remedy = "name a template that marks the assistant's turns with {% generation %}, as task.chat_template"
        raise RecipeError(Problem(field, "the model's chat template", rule, remedy)) from error
    except ValueError as error:
        remedy = "leave such rows out, or name another template as task.chat_template"
        raise RecipeError(Problem(field, chat.written(conversation)[:200], str(error), remedy)) from error
    start = _cut(labels, longest)
    return ids[start : start + longest], labels[start : start + longest], uncut


def _cut(labels: Sequence[int], longest: int) -> int:
    """The first token that is kept: the end of the question and the whole answer, or the beginning of a long one."""
    if len(labels) <= longest:
        return 0
    *_, begins = (place for place, label in enumerate(labels) if label != IGNORED and labels[place - 1] == IGNORED)
    return min(len(labels) - longest, max(0, begins - longest // QUESTION))
