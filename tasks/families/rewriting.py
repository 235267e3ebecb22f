"""What translation and summarization have in common: one text is made of another.

Models with an encoder and a decoder read the text and write the other; decoder-only ones are asked for it, by an
instruction in a conversation of one turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from tasks.families import Encoded, Meta
from tasks.families.generating import Generating, GeneratingTask

if TYPE_CHECKING:
    import polars as pl
    import torch

    from tasks.predict import Windows
    from tasks.rules.repair import Step
    from tasks.rules.writing import Answer, Rewriter
    from tasks.tokenizer import Base, BaseTokenizer


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
    source_code: str | None = None
    """Language of the text, where the base model is multilingual: en_XX for mBART, eng_Latn for NLLB."""
    target_code: str | None = None
    """Language to be written, likewise: fr_XX, fra_Latn."""

    @model_validator(mode="after")
    def _both_codes(self) -> Self:
        if (self.source_code is None) != (self.target_code is None):
            raise ValueError("source_code and target_code belong together: name both, or neither")
        return self

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
        """How texts are asked for."""
        del rows
        return {name: getattr(task, name) for name in ("instruction", "prefix", "chat_template")}

    def of_base(self, task: RewritingTask, base: Base) -> dict[str, Any]:
        """With an encoder, where the target is cut; and `languages`, see `tasks.languages`, where they have codes."""
        from tasks.languages import languages, refuse_named

        codes = (task.source_code, task.target_code) if task.source_code and task.target_code else None
        if not base.config.get("is_encoder_decoder"):
            if codes:
                refuse_named(*codes)
            return {}
        made: dict[str, Any] = {"max_target_tokens": task.max_new_tokens}
        if codes:
            made["languages"] = languages(*codes, base.tokenizer, base.config.get("decoder_start_token_id"))
        return made

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """The text as an encoder reads it, or as a conversation asks for it; the target as labels."""
        import pyarrow as pa

        from tasks.rules.writing import request
        from tasks.supervision import encode_conversations

        texts, targets = rows["text"].to_list(), rows["target"].to_list()
        if not tokenizer.encoder_decoder:
            talks = [_answered(request(text, meta), target) for text, target in zip(texts, targets, strict=True)]
            return encode_conversations(talks, meta, tokenizer, "task.chat_template", text=texts, target=targets)
        read, uncut, wanted = _apart(texts, targets, meta, tokenizer)
        columns = {
            "labels": pa.array(wanted, pa.list_(pa.int32())),
            "text": pa.array(texts, pa.string()),
            "target": pa.array(targets, pa.string()),
        }
        return Encoded(read, [1] * len(read), uncut, columns)

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """The text, and what is to be made of it."""
        from tasks.rules.writing import request
        from tasks.supervision import marked

        if tokenizer.encoder_decoder:
            told = meta.get("languages")
            source, target = (f"{told['source']} ", f"{told['target']} ") if told else ("", "")
            return f"{source}{meta['prefix']}{row['text']} «{target}{row['target']}»"
        return marked(_answered(request(row["text"], meta), row["target"]), meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model as it is."""
        from tasks import causal_model, seq2seq_model

        load = seq2seq_model.load if _has_encoder(base, **options) else causal_model.load
        return load(base, meta, **options)

    def finish(self, model: Any, tokenizer: Any, meta: Meta) -> None:
        """Also the languages, where whoever loads the model without hone finds them."""
        super().finish(model, tokenizer, meta)
        told = meta.get("languages")
        if model.config.is_encoder_decoder:
            model.generation_config.forced_eos_token_id = None  # a text that is broken off shall be known for it
        if told:
            model.generation_config.update(**told["generation"])
            speak(tokenizer, told)

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


def speak(tokenizer: Any, told: Mapping[str, Any]) -> None:
    """Have a tokenizer of transformers put the codes around texts by itself."""
    from tokenizers.processors import TemplateProcessing

    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = told["source"], told["target"]
        return
    before, behind = (tokenizer.convert_ids_to_tokens(ids) for ids in told["read"])
    around = list(zip([*before, *behind], [*told["read"][0], *told["read"][1]], strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *behind], special_tokens=around
    )


def _apart(
    texts: Sequence[str], targets: Sequence[str], meta: Meta, tokenizer: BaseTokenizer
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """What an encoder reads, how long it was before the cut, and what the decoder is to write."""
    from tasks.encoding import bounded_ids
    from tasks.languages import refuse_unnamed
    from tasks.rules.writing import framed

    given, most = [meta["prefix"] + text for text in texts], meta["max_target_tokens"]
    told = meta.get("languages")
    if not told:
        refuse_unnamed(tokenizer)
        read, _, uncut = bounded_ids(given, meta, tokenizer)
        return read.to_pylist(), uncut.tolist(), tokenizer.cut_ids(targets, most)
    alone, around = tokenizer.bare_ids(given), sum(map(len, told["read"]))
    cut = [framed(ids, told["read"], meta["max_seq_length"]) for ids in alone]
    wanted = [framed(ids, told["written"], most) for ids in tokenizer.bare_ids(targets)]
    return cut, [len(ids) + around for ids in alone], wanted


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
