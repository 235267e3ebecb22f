"""Answers to conversations: what is asked, as tokens, and what a model writes to it. Evaluation and serving share it.

This module travels with every model; it imports nothing of ours but its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import chat
from .generation import MOST_AT_ONCE, stream, write


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: Without the marks around it.
        ended: Whether it came to an end by itself, before the most tokens that it may have.
        tokens: Written, and of the prompt.
        prompt_tokens: The same of what was asked.
        margin: See `generation.Written`.
    """

    text: str
    ended: bool
    tokens: int
    prompt_tokens: int
    margin: float


def request(text: str, about: Mapping[str, Any]) -> chat.Conversation:
    """What a decoder-only model is asked to make of a text.

    Args:
        text: The text.
        about: Its `instruction`.
    """
    asked = "\n\n".join(part for part in (about["instruction"], text) if part)
    return {"messages": [{"role": "user", "content": asked}]}


def framed(ids: Sequence[int], frame: Sequence[Sequence[int]], longest: int) -> list[int]:
    """A text between its special tokens, cut behind so that all are no more than `longest`.

    Args:
        ids: Of the text alone.
        frame: Those before it, and those behind it.
        longest: Most tokens.
    """
    before, behind = frame
    return [*before, *ids[: max(0, longest - len(before) - len(behind))], *behind]


class Answerer:
    """Writes the assistant's next turn.

    Args:
        model: A language model of transformers, in evaluation mode.
        tokenizer: Its own, with the chat template that it learnt with.
        about: What training knew of the task: `generation`, see `generation.write`; and it may have `shown`, turns that
            come before every conversation.
    """

    def __init__(self, model: Any, tokenizer: Any, about: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.about = model, tokenizer, about
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special: dict[str, str] = dict(tokenizer.special_tokens_map)
        ends = model.generation_config.eos_token_id
        named = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self.stop = tuple(dict.fromkeys(token for token in named if token is not None))

    def prompt(self, conversation: chat.Conversation, room: int | None) -> list[int]:
        """Token ids of what is asked; the oldest turns are left out where all do not fit.

        Args:
            conversation: Ends with the turn that is to be answered.
            room: Most tokens.
        """
        conversation = chat.after(conversation, self.about.get("shown", ()))
        while True:
            text = chat.render(self.tokenizer.chat_template, conversation, self.special, ask=True)
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
            shorter = chat.without_oldest(conversation)
            if room is None or len(ids) <= room or shorter is None:
                return ids if room is None else ids[-room:]
            conversation = shorter

    def answers(
        self, conversations: Sequence[chat.Conversation], settings: Mapping[str, Any] | None = None,
        most_at_once: int = MOST_AT_ONCE, kept: MutableMapping[int, Answer] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """The next turn of each conversation.

        Args:
            conversations: Each ends with the turn that is to be answered.
            settings: What is other than `about` has it.
            most_at_once: Most of them in one batch.
            kept: Answers that are known already, by place; the others are added as they are written.
        """
        chosen = {**self.about["generation"], **(settings or {})}
        prompts = [self.prompt(conversation, self._room(chosen)) for conversation in conversations]
        return self._written(prompts, chosen, most_at_once, {} if kept is None else kept)

    def stream(
        self, conversation: chat.Conversation, settings: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, bool | None]]:
        """The next turn of a conversation, in pieces; see `generation.stream`."""
        chosen = {**self.about["generation"], **(settings or {})}
        prompt = self.prompt(conversation, self._room(chosen))
        return stream(self.model, self.tokenizer, prompt, chosen, pad=self.about["pad_token_id"], stop=self.stop)

    def _room(self, chosen: Mapping[str, Any]) -> int | None:
        """Most tokens of a prompt; none where the model does not say."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return max(1, positions - chosen["max_new_tokens"]) if isinstance(positions, int) else None

    def _written(
        self, prompts: Sequence[Sequence[int]], chosen: Mapping[str, Any], most_at_once: int,
        found: MutableMapping[int, Answer],
    ) -> list[Answer]:  # fmt: skip
        left = [place for place in range(len(prompts)) if place not in found]
        asked, pad = [prompts[place] for place in left], self.about["pad_token_id"]
        for number, written in write(self.model, asked, chosen, pad=pad, stop=self.stop, most_at_once=most_at_once):
            text = self.tokenizer.decode(written.ids, skip_special_tokens=True)
            counts = len(written.ids) + written.ended, len(asked[number])
            found[left[number]] = Answer(text.strip(), written.ended, *counts, written.margin)
        return [found[place] for place in range(len(prompts))]


class Rewriter(Answerer):
    """Makes one text of another: read by the model's encoder, or asked for where it has none.

    Args:
        model: Of transformers, with an encoder or without, in evaluation mode.
        tokenizer: Its own.
        about: What training knew of the task: also `instruction`, `prefix` and `max_seq_length`; and it may have
            `languages`, see `tasks.languages`.
    """

    def rewritten(
        self, texts: Sequence[str], settings: Mapping[str, Any] | None = None, most_at_once: int = MOST_AT_ONCE,
        kept: MutableMapping[int, Answer] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """What is made of each text.

        Args:
            texts: As they were learnt from.
            settings: What is other than `about` has it.
            most_at_once: Most of them in one batch.
            kept: See `answers`.
        """
        if not self.model.config.is_encoder_decoder:
            return self.answers([request(text, self.about) for text in texts], settings, most_at_once, kept)
        told = (self.about.get("languages") or {}).get("generation", {})
        chosen = {**self.about["generation"], **told, **(settings or {})}
        return self._written(self._read(texts), chosen, most_at_once, {} if kept is None else kept)

    def _read(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as the encoder reads them."""
        given, longest = [self.about["prefix"] + text for text in texts], self.about["max_seq_length"]
        told = self.about.get("languages")
        if told:
            alone = [self.backend.encode(text, add_special_tokens=False).ids for text in given]
            return [framed(ids, told["read"], longest) for ids in alone]
        self.backend.enable_truncation(longest)
        try:
            return [self.backend.encode(text).ids for text in given]
        finally:
            self.backend.no_truncation()
