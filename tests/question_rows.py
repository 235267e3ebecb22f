"""Tiny real parts for tests of question answering: a random encoder, and questions that it learns in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

KINDS = {kind: [f"{kind}{i}" for i in range(4)] for kind in "ab"}
FILLING = [f"w{i}" for i in range(10)]
WORDS = ["where", "is", "?", *KINDS, *KINDS["a"], *KINDS["b"], *FILLING]
META: dict[str, Any] = {
    "unanswerable": True, "max_answer_tokens": 4, "max_question_tokens": 8, "max_seq_length": 24, "overlong": "window",
    "stride": 6, "pad_token_id": 0,
}  # fmt: skip


def tiny_encoder(folder: Path) -> Path:
    """A random two-layer BERT with a word tokenizer that reads pairs, saved as any base model is.

    The tokenizer carries a cut and a padding of its own, as those of sentence-transformers do.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(3)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.enable_truncation(12)
    words.enable_padding(length=40)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def questions(count: int, seed: int, words: int = 16) -> pl.DataFrame:
    """Contexts such as `w1 a0 a3 w7 b1 b2 w4`: two words of each kind, of which the question names one.

    A third of the contexts lacks the kind that is asked for.
    """
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        asked, other = draw.sample(sorted(KINDS), 2)
        present = draw.random() < 2 / 3
        runs = [[draw.choice(KINDS[kind][:2]), draw.choice(KINDS[kind][2:])] for kind in (asked, other)]
        filling = [[draw.choice(FILLING)] for _ in range(words)]
        parts = [*filling, runs[1], *([runs[0]] if present else [])]
        draw.shuffle(parts)
        answer, context = " ".join(runs[0]), " ".join(word for part in parts for word in part)
        answers = [{"text": answer, "start": context.index(answer)}] if present else []
        rows.append(
            {"id": f"q{number}", "context": context, "question": f"where is {asked} ?", "answers": json.dumps(answers)}
        )
    return pl.DataFrame(rows)


def token_files(folder: Path, base: Path, counts: dict[str, int], meta: dict[str, Any], words: int = 16) -> Path:
    """A tokenize artifact of `questions`."""
    from tasks.families.question_answering import QuestionAnswering
    from tasks.tokenizer import load_tokenizer, read_config
    from tasks.tokens_part import encode_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(base, read_config(base), trust_remote_code=False)
    for seed, (side, count) in enumerate(counts.items()):
        questions(count, seed, words).write_parquet(folder / f"{side}.parquet")
        encode_file(
            QuestionAnswering(), meta, tokenizer, vocab_size=None,
            rows=folder / f"{side}.parquet", out=folder / f"{side}.arrow",
        )  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def serving(model: Path, calibration: Path | None = None) -> Any:
    """The model of a folder that training wrote, ready to answer."""
    from tasks.families.serve_question_answering import QuestionAnswerer

    artifacts = {"model": str(model)} | ({"calibration": str(calibration)} if calibration else {})
    served = QuestionAnswerer()
    served.load_context(SimpleNamespace(artifacts=artifacts))
    return served
