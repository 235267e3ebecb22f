"""Tiny real parts for tests of learning: a random encoder, its tokenizer, and rows a model can learn in seconds."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

WORDS = ["good", "fine", "great", "bad", "awful", "poor", "so", "very", "the", "film", "was", "today", "it", "all"]
GOOD, BAD = WORDS[:3], WORDS[3:6]
WITHOUT_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
OPTIMIZERS = ["adamw", "adafactor", "muon", pytest.param("adamw-8bit", marks=WITHOUT_BITSANDBYTES)]


def tiny_encoder(folder: Path, dropout: float = 0.0) -> Path:
    """A random two-layer BERT with a word tokenizer, saved as any base model is."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(7)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    return folder


CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
"""Chat template of `tiny_decoder`."""


def tiny_decoder(folder: Path, *, template: str | None = CHAT) -> Path:
    """A random two-layer Llama with a word tokenizer and a chat template, saved as any base model is."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(7)
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<|end|>", *roles, *WORDS])}
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>",
        additional_special_tokens=roles,
    )  # fmt: skip
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def tiny_translator(folder: Path, kind: str = "t5") -> Path:
    """A small random T5 or Marian that knows the words in lower and upper case, saved as any base model is."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        MarianConfig,
        MarianMTModel,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(7)
    known = ["<pad>", "</s>", "<unk>", *WORDS, *(word.upper() for word in WORDS)]
    vocabulary = {word: i for i, word in enumerate(known)}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": len(known)}
    if kind == "t5":
        config = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, **special)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        sizes |= {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_model": 64, "max_position_embeddings": 64}
        marian = MarianConfig(dropout=0.0, forced_eos_token_id=None, init_std=0.1, **sizes, **special)
        MarianMTModel(marian).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def tiny_multilingual(folder: Path, kind: str = "mbart50") -> Path:
    """A small random mBART that knows the words in lower and upper case, with the real tokenizer's language codes.

    Args:
        folder: Where to save it.
        kind: `mbart50` and `nllb` have the code before a text, `mbart` behind it; `plain` is a tokenizer of no class of
            its own, with two codes.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import (
        MBart50Tokenizer,
        MBartConfig,
        MBartForConditionalGeneration,
        MBartTokenizer,
        NllbTokenizer,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(7)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [*WORDS, *(word.upper() for word in WORDS)]
    pieces = [f"\u2581{word}" for word in words]
    tokenizer: Any
    if kind == "plain":
        vocabulary = {word: i for i, word in enumerate([*special, *words])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens([AddedToken(code) for code in ("__en__", "__fr__")])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
        )
    elif kind == "nllb":
        chars = sorted({char for piece in pieces for char in piece})
        tokenizer = NllbTokenizer(vocab={word: i for i, word in enumerate([*special, *chars])}, merges=[])
    elif kind == "mbart":
        tokenizer = MBartTokenizer(vocab=[(word, -1.0) for word in [*special, *pieces]])
    else:  # as SentencePiece has it: three special tokens come before the words
        tokenizer = MBart50Tokenizer(vocab=[(word, -1.0) for word in ["<unk>", "<s>", "</s>", *pieces]])
    tokenizer.save_pretrained(folder)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_model": 64, "max_position_embeddings": 64}
    config = MBartConfig(
        vocab_size=len(tokenizer), dropout=0.0, init_std=0.1, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=None if kind == "mbart" else 2, **sizes,
    )  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 3 to 30 words and their label: which kind of word they contain."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(["negative", "positive"])
        telling = GOOD if label == "positive" else BAD
        words = [draw.choice(telling if i % 3 == 0 else WORDS[6:]) for i in range(draw.randint(3, 30))]
        rows.append((" ".join(words), label))
    return rows


def token_files(folder: Path, counts: dict[str, int]) -> Path:
    """A tokenize artifact of `sentences`, written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {word: i + 5 for i, word in enumerate(WORDS)}
    for number, (side, count) in enumerate(counts.items()):
        rows = sentences(count, seed=number)
        ids = [[2, *(index[word] for word in text.split()), 3] for text, _ in rows]
        table = pa.table(
            {
                "id": [f"{side}-{i}" for i in range(count)],
                "input_ids": pa.array(ids, pa.list_(pa.int32())),
                "length": pa.array([len(row) for row in ids], pa.int32()),
                "labels": pa.array([["negative", "positive"].index(label) for _, label in rows], pa.int64()),
            }
        )
        with pa.ipc.new_stream(folder / f"{side}.arrow", table.schema) as stream:
            for batch in table.to_batches(max_chunksize=50):
                stream.write_batch(batch)
    meta = {"labels": ["negative", "positive"], "pad_token_id": 0, "max_seq_length": 64, "text_column": "text"}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def job_spec(base: Path, tokens: Path, **train: Any) -> dict[str, Any]:
    """What `tasks.learner.Job` takes, for the tiny parts."""
    train = {"learning_rate": 3e-3, "global_batch_size": 16, "epochs": 2, "precision": "fp32", **train}
    return {
        "task": {"family": "text-classification", "labels": ["negative", "positive"]},
        "model": {"base": "", "dropout": train.pop("dropout", None)},
        "train": train,
        "base": str(base),
        "tokens": str(tokens),
        "metric": "macro_f1",
    }
