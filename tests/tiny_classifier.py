"""A random text classifier over sixty words, as training leaves it, and its serving file loaded from the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LABELS = ["bad", "good"]
WORDS = [f"w{i}" for i in range(60)]


def tiny_model(folder: Path, seed: int, **about: Any) -> Path:
    """A train artifact with a random BERT of two layers; `about` goes to its `hone.json`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    out = folder / "model"
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.5, id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(out)
    (out / "hone.json").write_text(json.dumps({"labels": LABELS, "max_seq_length": 16} | about))
    return folder


def serving(folder: Path, calibration: Path | None = None) -> Any:
    """The model of a train artifact, ready to predict."""
    from tasks.families.serve_text_classification import TextClassifier

    artifacts = {"model": str(folder / "model")} | ({"calibration": str(calibration)} if calibration else {})
    model = TextClassifier()
    model.load_context(SimpleNamespace(artifacts=artifacts))
    return model
