from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from schemas.errors import RecipeError
from tasks import sequence_model
from tasks.families.base import Base
from tasks.families.text_classification import TextClassification
from tasks.tokenizer import Base as BaseModel
from tests.learning import BAD, GOOD, WORDS
from tests.taught import taught

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = {
    "llama": ("LlamaConfig", SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 64}),
    "qwen2": ("Qwen2Config", SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 64}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}
EOS = "<end>"


def tiny_decoder(folder: Path, kind: str) -> Path:
    """A random decoder whose tokenizer has no token to pad with, adds none of its own, and knows where a text ends."""
    import transformers

    torch.manual_seed(3)
    vocabulary = {word: i for i, word in enumerate(["<other>", EOS, *WORDS])}
    name, settings = KINDS[kind]
    more = {"vocab_size": len(vocabulary), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
    AutoModel.from_config(getattr(transformers, name)(**settings, **more)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<other>", eos_token=EOS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=sorted(KINDS))
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def learner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer transformers takes as it is: to Qwen's architecture belongs a tokenizer of bytes."""
    return tiny_decoder(tmp_path_factory.mktemp(request.param), request.param)


def loaded(base: Path, **options: str) -> torch.nn.Module:
    pad = BaseModel(base).tokenizer.pad_token_id
    return sequence_model.load(str(base), {"pad_token_id": pad}, ["a", "b"], "single_label_classification", **options)


def test_a_batch_says_of_each_text_what_it_says_alone(decoder: Path) -> None:
    model = loaded(decoder).eval()
    # The last one ends as a text that is padded does: with the token that ends texts.
    texts = [[2, 3, 4, 5, 6, 7, 8], [5], [9, 8, 7], [4, 4, 1]]
    width = max(map(len, texts))
    batch = {
        "input_ids": torch.tensor([[*ids, *[1] * (width - len(ids))] for ids in texts]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]),
    }
    with torch.inference_mode():
        together = sequence_model.logits(model, batch)
        alone = [
            sequence_model.logits(model, {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))})
            for ids in texts
        ]
    np.testing.assert_allclose(together, torch.cat(alone), atol=1e-5)
    assert len({round(float(row[0]), 4) for row in together}) == len(texts)


def test_the_new_head_is_all_that_is_new(decoder: Path) -> None:
    assert Base().head_modules(loaded(decoder)) == ["score"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attentions_say_the_same(decoder: Path, attention: str) -> None:
    ids = torch.tensor([[2, 3, 4], [5, 6, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    torch.manual_seed(0)
    model = loaded(decoder, attn_implementation=attention).eval()
    torch.manual_seed(0)
    other = loaded(decoder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        np.testing.assert_allclose(sequence_model.logits(model, batch), sequence_model.logits(other, batch), atol=1e-5)


def rows(count: int, seed: int) -> pl.DataFrame:
    draw = random.Random(seed)
    labels = [draw.choice(["bad", "good"]) for _ in range(count)]
    texts = [
        " ".join(
            draw.choice(BAD if label == "bad" else GOOD) if i % 3 == 0 else draw.choice(WORDS[6:]) for i in range(n)
        )
        for label, n in ((label, draw.randint(2, 20)) for label in labels)
    ]
    return pl.DataFrame({"id": [f"{seed}-{i}" for i in range(count)], "text": texts, "label": labels})


@pytest.mark.parametrize(
    ("method", "length"),
    [
        ("full", {"max_seq_length": 8, "overlong": "window", "stride": 3}),
        ({"kind": "lora", "r": 4}, {"max_seq_length": 32, "overlong": "truncate", "stride": None}),
    ],
    ids=["full-windows", "lora"],
)
def test_a_decoder_learns_and_serves_what_was_recorded(
    learner: Path, tmp_path: Path, method: object, length: dict[str, object]
) -> None:
    family = TextClassification()
    model = taught(
        family, {"family": "text-classification"}, learner, tmp_path / "taught", rows(240, 1), rows(60, 2),
        length=length, method=method, epochs=3, learning_rate=5e-3,
    )  # fmt: skip
    assert family.score(model.predicted, model.meta)["accuracy"] > 0.9
    assert family.disagreements(model.served(), model.predicted, model.meta) == []
    config = json.loads((tmp_path / "taught" / "model" / "config.json").read_text())
    assert config["pad_token_id"] == 1
    # Whoever loads it without hone can pad, too.
    assert AutoTokenizer.from_pretrained(tmp_path / "taught" / "model").pad_token_id == 1


def test_a_model_that_counts_ends_of_text_is_not_padded_with_them(decoder: Path, tmp_path: Path) -> None:
    for file in decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    with pytest.raises(RecipeError, match="no token to pad with"):
        _ = BaseModel(tmp_path).tokenizer


def test_the_end_of_text_may_be_known_to_the_config_alone(decoder: Path, tmp_path: Path) -> None:
    for file in decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    notes = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in notes.items() if k != "eos_token"}))
    assert BaseModel(tmp_path).tokenizer.pad_token_id == 1
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 2]}))
    assert BaseModel(tmp_path).tokenizer.pad_token_id == 1
