"""What translation and summarization have in common: one text is made of another.

Models with an encoder and a decoder read the text and write the other; decoder-only ones are asked for it, by an
instruction in a conversation of one turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.families import Encoded, Meta
from tasks.families.generating import Generating, GeneratingTask

if TYPE_CHECKING:
    import polars as pl
    import torch

    from tasks.predict import Windows
    from tasks.rules.repair import Step
    from tasks.rules.writing import Answer, Rewriter
    from tasks.tokenizer import BaseTokenizer


class RewritingTask(GeneratingTask):
    """A text and the one that is to be made of it."""

    word_lists: ClassVar[tuple[str, ...]] = ()
    text_column: str = "text"
    """Column of the source that holds the text."""
    target_column: str = "target"
    """Column of the source that holds what is to be made of it."""
    instruction: str = ""
    """What a decoder-only model is asked, above the text."""
    prefix: str = ""
    """What stands before the text where a model has an encoder, as T5 learnt it: `summarize: `."""
    chat_template: str | None = None
    """Jinja, for decoder-only models; default: the base model's, or a plain one where it has none."""

    def columns(self) -> dict[str, str]:
        """Of the source."""
        return {"text": self.text_column, "target": self.target_column}


class Rewriting(Generating):
    """Defaults of `tasks.families.Family` where one text is made of another."""

    serving = Path(__file__).with_name("serve_rewriting.py")
    serving_libraries = (*Generating.serving_libraries, "jinja2")
    target_columns = ("target",)

    def target_repairs(self, task: RewritingTask, usual: Sequence[Step]) -> Sequence[Step]:
        """White space around it."""
        del task
        return [step for step in usual if step[0] == "strip_targets"]

    def rejects(self, task: RewritingTask) -> list[tuple[str, pl.Expr]]:
        """Rows with nothing to be written."""
        import polars as pl

        del task
        return [("missing_target", pl.col("target").is_null() | (pl.col("target").str.strip_chars() == ""))]

    def describe(self, task: RewritingTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """How texts are asked for, written and measured."""
        del rows
        asked = {name: getattr(task, name) for name in ("instruction", "prefix", "chat_template", "bleu_tokenize")}
        return asked | {"generation": task.generation}

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """The text as an encoder reads it, or as a conversation asks for it; the target as labels."""
        import pyarrow as pa

        from tasks.encoding import encode_texts
        from tasks.rules.writing import request
        from tasks.supervision import encode_conversations

        texts, targets = rows["text"].to_list(), rows["target"].to_list()
        if not tokenizer.encoder_decoder:
            talks = [_answered(request(text, meta), target) for text, target in zip(texts, targets, strict=True)]
            return encode_conversations(talks, meta, tokenizer, "task.chat_template", text=texts, target=targets)
        read = encode_texts([meta["prefix"] + text for text in texts], [0] * len(texts), meta, tokenizer)
        wanted = tokenizer.cut_ids(targets, meta["generation"]["max_new_tokens"])
        columns = {
            "labels": pa.array(wanted, pa.list_(pa.int32())),
            "text": pa.array(texts, pa.string()),
            "target": pa.array(targets, pa.string()),
        }
        return Encoded(read.input_ids, read.pieces, read.uncut, columns)

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """The text, and what is to be made of it."""
        from tasks.rules.writing import request
        from tasks.supervision import marked

        if tokenizer.encoder_decoder:
            return f"{meta['prefix']}{row['text']} «{row['target']}»"
        return marked(_answered(request(row["text"], meta), row["target"]), meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model as it is."""
        from tasks import causal_model, seq2seq_model

        load = seq2seq_model.load if _has_encoder(base, **options) else causal_model.load
        return load(base, meta, **options)

    def token_losses(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `losses` of `tasks.causal_model` and `tasks.seq2seq_model`."""
        from tasks import causal_model, seq2seq_model

        config: Any = model.config
        losses = seq2seq_model.losses if config.is_encoder_decoder else causal_model.losses
        return losses(model, batch)

    def wanted(self, windows: Windows) -> list[str]:
        """The targets."""
        return [str(target) for target in windows.of_texts("target")]

    def truth_of(self, rows: pl.DataFrame) -> pl.Series:
        """The targets."""
        return rows["target"].rename("truth")

    def answers(
        self, answerer: Rewriter, columns: Mapping[str, Sequence[Any]], kept: MutableMapping[int, Answer] | None
    ) -> list[Answer]:
        """What is made of each text."""
        return answerer.rewritten(columns["text"], kept=kept)

    def answered(self, rows: pl.DataFrame, meta: Meta) -> list[list[dict[str, Any]]]:
        """Each text, asked for, and its target."""
        from tasks.rules.writing import request

        pairs = zip(rows["text"], rows["target"], strict=True)
        return [_answered(request(text, meta), target)["messages"] for text, target in pairs]

    def guesses(self, rows: pl.DataFrame) -> dict[str, list[str]]:
        """Name of a trivial model → what it makes of each text."""
        raise NotImplementedError

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """Those of `guesses`; nothing about them is to be chosen."""
        import polars as pl

        del meta, metric
        rows = pl.read_parquet(split / "test.parquet", glob=False)
        guesses = self.guesses(rows)
        for name, texts in guesses.items():
            found = rows.select("id", truth=self.truth_of(rows)).with_columns(pl.Series("prediction", texts, pl.String))
            found.write_parquet(out / f"{name}.parquet")
        return {name: {} for name in guesses}


def _answered(conversation: dict[str, Any], target: str) -> dict[str, Any]:
    return {"messages": [*conversation["messages"], {"role": "assistant", "content": target}]}


def _has_encoder(base: str, **options: Any) -> bool:
    """Whether a model reads and writes in parts of their own."""
    folder = Path(base)
    if (folder / "config.json").exists():
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("is_encoder_decoder"))
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(base, revision=options.get("revision"))
    return bool(config.is_encoder_decoder)
