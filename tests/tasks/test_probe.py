"""Plans of models whose attention is not the usual one."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
)

from schemas.errors import RecipeError
from tasks import learner, probe
from tasks.predict import predict
from tests.learning import tiny_decoder
from tests.taught import conversation_spec, silent


def tiny_plain(folder: Any, kind: str) -> Any:
    """A small random decoder that has plain attention alone: capped logits, positions as a bias, or old code."""
    tiny_decoder(folder)
    torch.manual_seed(7)
    known = {"vocab_size": len(AutoTokenizer.from_pretrained(folder)), "hidden_size": 32, "eos_token_id": 2}
    known |= {"bos_token_id": None, "pad_token_id": 0}
    made = {
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(
                **known, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                head_dim=8, max_position_embeddings=128, sliding_window=16, attn_logit_softcapping=0.5,
                initializer_range=0.3,
            )
        ),
        "bloom": lambda: BloomForCausalLM(BloomConfig(**known, n_layer=2, n_head=4, initializer_range=0.3)),
        "gptj": lambda: GPTJForCausalLM(
            GPTJConfig(**known, n_layer=2, n_head=4, rotary_dim=4, n_positions=128, initializer_range=0.3)
        ),
    }  # fmt: skip
    made[kind]().save_pretrained(folder)
    return folder


@pytest.fixture
def spec(request, tmp_path):
    return conversation_spec(tmp_path, tiny_plain(tmp_path / "base", request.param))


@pytest.mark.parametrize("spec", ["gemma2", "bloom", "gptj"], indirect=True)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_without_fused_attention_is_taught_with_plain_one(spec, method, tmp_path):
    asked = spec(epochs=6, learning_rate=5e-3, method={"kind": method})
    plan = probe.plan_training(**asked)
    assert (plan["attention"], plan["reasons"]["attention"]) == ("eager", "the model has no other")
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    record = learner.train(
        plan=plan, work=str(tmp_path / "work"), out=str(tmp_path / "out"), save_minutes=1e9, **asked
    )  # fmt: skip
    losses = [each["validation/loss"] for each in json.loads((tmp_path / "out" / "history.json").read_text())
              if "validation/loss" in each]  # fmt: skip
    assert losses[-1] < 0.8 * losses[0]
    out = tmp_path / "predicted.parquet"
    files = {str(tmp_path / "tokens" / "validation.arrow"): str(out)}
    predict(emit=silent, family="causal-lm", model=str(tmp_path / "out" / "model"), tokens=files, write=False)
    found = pl.read_parquet(out)
    loss = (found["loss"] * found["tokens"]).sum() / found["tokens"].sum()
    assert loss == pytest.approx(record["validation"]["loss"], rel=1e-4)


@pytest.mark.parametrize("spec", ["gemma2", "bloom"], indirect=True)
def test_fused_attention_that_a_model_does_not_have_is_refused(spec):
    with pytest.raises(RecipeError, match=r"^train.attention = 'sdpa': this model has plain attention alone; leave it"):
        probe.plan_training(**spec(attention="sdpa"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("gemma2", "changes attention in a way of its own"),
        ("bloom", "it cannot be told positions"),
        ("gptj", "its attention is its own"),
    ],
    indirect=["spec"],
)
def test_rows_are_not_packed_where_attention_cannot_be_told_apart(spec, why):
    assert probe.plan_training(**spec())["attention"] == "eager"
    with pytest.raises(RecipeError, match=rf"^train.packing = True: this model cannot: .*{why}; leave it out"):
        probe.plan_training(**spec(packing=True))


def test_short_rows_of_a_model_that_drops_nothing_in_attention_learn_by_plain_attention(tmp_path, monkeypatch):
    spec = conversation_spec(tmp_path)
    plan = probe.plan_training(**spec(packing=False))
    assert plan["attention"] == "eager"
    assert plan["reasons"]["attention"].startswith("short sequences, and the model drops nothing in attention")
    assert probe.plan_training(**spec(packing=False, attention="sdpa"))["attention"] == "sdpa"
    monkeypatch.setattr(probe, "EAGER_UP_TO", 4)
    assert probe.plan_training(**spec(packing=False))["attention"] == "sdpa"


def test_what_is_dropped_in_attention_is_what_the_configuration_says():
    import transformers

    from tasks.layers import attention_dropout

    dropping = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=10
    )
    assert attention_dropout(transformers.BertModel(dropping)) == 0.1
    keeping = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=10
    )
    assert attention_dropout(transformers.LlamaModel(keeping)) == 0
