"""A tiny random encoder that learns to tag, rows it can learn in seconds, and its serving file from the checkout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

WORDS = [f"w{i}" for i in range(20)]
NAMES = ["kim", "ada", "lin", "moe"]
META = {
    "scheme": "bio", "types": ["P", "T"], "tags": ["O", "B-P", "I-P", "B-T", "I-T"], "pad_token_id": 0,
    "max_seq_length": 32, "overlong": "truncate", "stride": 0, "text_column": "text", "text_rules": {},
}  # fmt: skip


def tiny_base(folder: Path) -> Path:
    """A random BERT of two layers whose tokenizer parts every word of a name from its last letter."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(3)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *(name[:-1] for name in NAMES)]
    vocabulary += ["jr", "hill", *(f"##{letter}" for letter in "manieo")]
    places = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(places), hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> pl.DataFrame:
    """Clean rows with persons and towns, each perhaps with a second word; other words are in no entity."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words, tags = [], []
        for _ in range(draw.randint(1, 4)):
            filling, name = draw.choices(WORDS, k=draw.randint(1, 3)), draw.choice(NAMES)
            kind, second = ("P", "jr") if name in NAMES[:2] else ("T", "hill")
            entity = [name, second][: draw.randint(1, 2)]
            words += [*filling, *entity]
            tags += [*["O"] * len(filling), f"B-{kind}", f"I-{kind}"][: len(filling) + len(entity)]
        rows.append((f"{seed}-{number}", " ".join(words), " ".join(tags)))
    return pl.DataFrame(rows, schema=["id", "text", "tags"], orient="row")


def token_files(folder: Path, base: Path, counts: dict[str, int], **about: Any) -> Path:
    """A tokenize artifact of `sentences`."""
    import pyarrow as pa

    from tasks.families.token_classification import TokenClassification
    from tasks.tokenizer import Base
    from tasks.tokens_part import encode_rows

    folder.mkdir(parents=True, exist_ok=True)
    meta = META | about
    for seed, (side, count) in enumerate(counts.items()):
        batch = encode_rows(TokenClassification(), meta, Base(base).tokenizer, sentences(count, seed))
        with pa.ipc.new_stream(folder / f"{side}.arrow", batch.schema) as stream:
            stream.write_batch(batch)
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def tiny_model(folder: Path, base: Path, **about: Any) -> Path:
    """A train artifact whose head is as random as its body; `about` goes to its `hone.json`."""
    import shutil

    import torch

    from tasks.families.token_classification import TokenClassification

    torch.manual_seed(5)
    out, meta = folder / "model", META | about
    model = TokenClassification().load_model(str(base), meta)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(out)
    for file in base.glob("tokenizer*"):
        shutil.copyfile(file, out / file.name)
    (out / "hone.json").write_text(json.dumps(meta))
    return folder


def serving(folder: Path) -> Any:
    """The model of a train artifact, ready to predict."""
    from tasks.families.serve_token_classification import TokenClassifier

    model = TokenClassifier()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder / "model")}))
    return model
