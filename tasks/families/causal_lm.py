"""Instruction and chat tuning: a decoder-only model learns to write the assistant's turns of conversations.

Conversations come as lists of messages, OpenAI's or ShareGPT's, or as a question and its answer in columns of their
own, as Alpaca has them. They are written out by the model's own chat template, or one given. Does not cover images and
sounds in messages.

References:
    L. Ouyang et al. (2022), Training language models to follow instructions with human feedback, section 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from tasks.families import Encoded, Meta
from tasks.families.generating import Generating, GeneratingTask

if TYPE_CHECKING:
    import polars as pl
    import torch

    from schemas.recipe import Recipe
    from tasks.predict import Windows
    from tasks.rules.repair import TextRules
    from tasks.rules.writing import Answer, Rewriter
    from tasks.tokenizer import BaseTokenizer

MESSAGES = "messages"


class TurnsTask(GeneratingTask):
    """What is learnt are turns of a conversation."""

    chat_template: str | None = None
    """Jinja; default: the base model's, or a plain one where it has none."""

    def misfits(self, recipe: Recipe) -> list[str]:
        """Also white space: answers have lines."""
        found = super().misfits(recipe)
        if recipe.clean.collapse_whitespace:
            found.append("clean.collapse_whitespace would join the lines of answers: set it to false")
        return found


class CausalLmTask(TurnsTask):
    """The assistant's turns of a conversation are learnt."""

    family: Literal["causal-lm"] = "causal-lm"
    conversation_column: str | None = None
    """Column with whole conversations: a list of messages, OpenAI's or ShareGPT's; default: `messages`."""
    prompt_column: str | None = None
    """Instead: the column with the question or instruction."""
    completion_column: str | None = None
    """The column with its answer."""
    input_column: str | None = None
    """The column with what an instruction is about, where there is one."""
    system_column: str | None = None
    """The column with what is said beforehand, where there is one."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        pair = (self.prompt_column, self.completion_column)
        if any(pair) and not all(pair):
            raise ValueError("prompt_column and completion_column belong together: name both")
        if all(pair) and self.conversation_column:
            raise ValueError("name conversation_column, or prompt_column and completion_column, not all of them")
        if not all(pair) and (self.input_column or self.system_column):
            raise ValueError("input_column and system_column go with prompt_column and completion_column")
        return self

    def columns(self) -> dict[str, str]:
        """Both are composed when rows are collected."""
        return {"text": "text", "conversation": "conversation"}

    def parts(self) -> dict[str, str]:
        """The whole conversation, or what it is made of."""
        if self.prompt_column is None:
            return {"conversation": self.conversation_column or MESSAGES}
        named = {name: getattr(self, f"{name}_column") for name in ("prompt", "completion", "system", "input")}
        return {name: column for name, column in named.items() if column}


class CausalLm(Generating):
    """See `tasks.families.Family`."""

    section: type[GeneratingTask] = CausalLmTask
    serving = Path(__file__).with_name("serve_causal_lm.py")
    serving_libraries = (*Generating.serving_libraries, "jinja2")
    target_columns: tuple[str, ...] = ("conversation",)

    @property
    def asked_columns(self) -> tuple[str, ...]:
        """The conversation, of which the last answer is not heeded."""
        return ("conversation",)

    def follow(self, before: pl.DataFrame, after: pl.DataFrame, rules: TextRules) -> pl.DataFrame:
        """Every message is put right by itself."""
        import polars as pl

        from tasks.rules import chat
        from tasks.rules.repair import repaired

        columns = []
        for name in self.target_columns:
            read = [None if text is None or chat.fault_of(text) else chat.read(text) for text in before[name]]
            texts = [text for conversation in read if conversation for text in chat.texts(conversation)]
            right = dict(zip(texts, repaired(pl.Series(texts, dtype=pl.String), rules).to_list(), strict=True))
            column = [
                was if talk is None else chat.written(chat.mapped(talk, lambda text: right.get(text) or ""))  # noqa: B023
                for was, talk in zip(before[name], read, strict=True)
            ]
            columns.append(pl.Series(name, column, dtype=pl.String))
        return after.with_columns(columns)

    def rejects(self, task: TurnsTask) -> list[tuple[str, pl.Expr]]:
        """Rows that are no conversation, or of which nothing would be learnt."""
        import polars as pl

        from tasks.rules.chat import fault_of

        del task
        faults = [pl.col(name).map_elements(fault_of, pl.String, skip_nulls=False) for name in self.target_columns]
        reasons = ("not_a_conversation", "unknown_role", "empty_turn", "no_answer")
        return [
            (name, pl.any_horizontal([(fault == name).fill_null(value=False) for fault in faults])) for name in reasons
        ]

    def describe(self, task: TurnsTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """How conversations are written out."""
        del rows
        return {"chat_template": task.chat_template}

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """See `tasks.supervision`."""
        from tasks.rules import chat
        from tasks.supervision import encode_conversations

        texts = rows["conversation"].to_list()
        read = [chat.read(text) for text in texts]
        return encode_conversations(read, meta, tokenizer, "task.chat_template", conversation=texts)

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """As the chat template has it."""
        from tasks.rules import chat
        from tasks.supervision import marked

        return marked(chat.read(row["conversation"]), meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model as it is."""
        from tasks import causal_model

        return causal_model.load(base, meta, **options)

    def token_losses(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `tasks.causal_model.losses`."""
        from tasks import causal_model

        return causal_model.losses(model, batch)

    def wanted(self, windows: Windows) -> list[str]:
        """The last turn."""
        return [_answer(text) for text in windows.of_texts("conversation")]

    def truth_of(self, rows: pl.DataFrame) -> pl.Series:
        """The last turn."""
        import polars as pl

        return pl.Series("truth", [_answer(text) for text in rows["conversation"]], dtype=pl.String)

    def answers(
        self, answerer: Rewriter, columns: Mapping[str, Sequence[Any]], kept: MutableMapping[int, Answer] | None
    ) -> list[Answer]:
        """Answers to all but the last turn of each conversation."""
        from tasks.rules import chat

        return answerer.answers([chat.asked(chat.read(text)) for text in columns["conversation"]], kept=kept)

    def answered(self, rows: pl.DataFrame, meta: Meta) -> list[list[dict[str, Any]]]:
        """The conversations, but for what the system says."""
        from tasks.rules import chat

        del meta
        talks = [chat.read(text)["messages"] for text in rows["conversation"]]
        return [[turn for turn in turns if turn["role"] not in chat.SAID_BEFOREHAND] for turns in talks]


def _answer(text: str) -> str:
    """What the assistant says last in a conversation."""
    from tasks.rules import chat

    said: str = chat.read(text)["messages"][-1]["content"]
    return said.strip()
