from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks import causal_model, learner, packing, probe
from tasks.batches import micro_batches, padded_width, shape_of
from tasks.families import IGNORED
from tests.taught import conversation_spec

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FEW_HEADS = {"num_key_value_heads": 2}
CONFIGURATIONS = {
    "llama": transformers.LlamaConfig(**COMMON, **FEW_HEADS),
    "qwen3": transformers.Qwen3Config(**COMMON, **FEW_HEADS, head_dim=8),
    "gemma3": transformers.Gemma3TextConfig(**COMMON, **FEW_HEADS, head_dim=8, sliding_window=4),
    "mistral": transformers.MistralConfig(**COMMON, **FEW_HEADS, sliding_window=5),
    "granite": transformers.GraniteConfig(**COMMON, logits_scaling=3.0),
    "gpt2": transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": transformers.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=128, pad_token_id=0,
    ),
}  # fmt: skip
LENGTHS = [13, 9, 9, 2, 1]


def made(config):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.config.pad_token_id = 0
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = (torch.arange(16) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(1, 97, mask.shape) * mask
    labels = torch.where((mask == 1) & (torch.rand(mask.shape) < 0.7), ids, IGNORED)
    labels[:, 0] = IGNORED
    labels[1, 3] = ids[1, 3]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_packed_rows_have_the_losses_and_gradients_that_they_have_apart(name, batch):
    model = made(CONFIGURATIONS[name])
    apart, rows = causal_model.losses(model, batch)
    apart.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    assert packing.packs(model, batch) is None
    model.set_attn_implementation(packing.ATTENTION)
    together, of_rows = causal_model.losses(model, packing.packed(batch))
    together.sum().backward()
    assert torch.equal(of_rows, rows)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert len(gradients) > 10
    for n, p in model.named_parameters():
        if n in gradients:
            torch.testing.assert_close(p.grad, gradients[n], rtol=1e-3, atol=1e-5)


def test_a_row_is_blind_to_what_stands_before_it(batch):
    model = made(CONFIGURATIONS["llama"])
    model.set_attn_implementation(packing.ATTENTION)
    before, rows = causal_model.losses(model, packing.packed(batch))
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, :13] = 5
    after, _ = causal_model.losses(model, packing.packed(other))
    assert torch.equal(before[rows > 0], after[rows > 0])
    assert not torch.equal(before[rows == 0], after[rows == 0])


def test_a_packed_batch_is_filled_up_to_a_length_that_recurs(batch):
    found = packing.packed(batch)
    assert found["input_ids"].shape == (1, padded_width(34)) == (1, 34)
    assert found["position_ids"][0].tolist() == [i for length in LENGTHS for i in range(length)]
    assert found["row_of"].tolist() == [row for row, length in enumerate(LENGTHS) for _ in range(length)]
    assert found["labels"][0].tolist() == batch["labels"][batch["attention_mask"] == 1].tolist()
    longer = {name: torch.cat([value, value[:1]]) for name, value in batch.items()}
    assert packing.packed(longer)["input_ids"].shape == (1, padded_width(47)) == (1, 48)
    assert packing.packed(longer)["labels"][0, -1] == IGNORED


def test_models_that_would_mix_rows_are_not_packed(batch):
    config = transformers.Qwen3_5TextConfig(
        **COMMON, **FEW_HEADS, head_dim=8, layer_types=["linear_attention", "full_attention"]
    )
    assert "other outputs" in packing.packs(made(config), batch)
    encoder = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=97, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
    )
    assert packing.packs(encoder, batch) == "it has an encoder"


def test_a_model_that_is_not_packed_keeps_its_attention(batch):
    model = made(CONFIGURATIONS["llama"])
    assert packing.packs(model, batch) is None
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_do_not_say_where_rows_are_do_not_attend_at_all():
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="where rows are"):
        packing.attend(torch.nn.Linear(1, 1), states, states, states, None)
    places = {"places": torch.zeros(1, 3, dtype=torch.long), "found_at": torch.arange(3)}
    with pytest.raises(NotImplementedError, match="a way of its own"):
        packing.attend(torch.nn.Linear(1, 1), states, states, states, None, **places, softcap=50.0)


@pytest.mark.parametrize("budget", [1, 50, 64, 100, 333, 10_000])
def test_packed_micro_batches_hold_every_row_once_and_no_more_tokens_than_fit(budget):
    lengths = np.random.default_rng(0).integers(1, 60, 40)
    rows = np.arange(3, 38)
    cuts = micro_batches(rows, lengths, budget, packed=True)
    assert sorted(np.concatenate(cuts).tolist()) == rows.tolist()
    assert all(len(cut) == 1 or lengths[cut].sum() <= budget for cut in cuts)
    assert len(cuts) <= 2 * -(-lengths[rows].sum() // budget)
    assert [shape_of(lengths[cut], packed=True)[0] for cut in cuts] == [1] * len(cuts)


def test_what_padding_wastes_is_counted_on_the_batches_of_an_epoch():
    assert packing.wasted(np.full(64, 32), 8, 4_096) == 0
    assert packing.wasted(np.array([32, 16, 16] * 2), 3, 4_096) == pytest.approx(0.0, abs=0.35)
    assert packing.wasted(np.array([64] + [1] * 7), 8, 4_096) == pytest.approx(1 - 71 / 512)


SETTINGS = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 6}


def learnt_with(spec, work, **train):
    work.mkdir(parents=True)
    asked = spec(**SETTINGS, **train)
    plan = probe.plan_training(**asked)
    record = learner.train(**asked, plan=plan, work=str(work), out=str(work / "out"), save_minutes=1e9)
    weights = load_file(work / "out" / "model" / "model.safetensors")
    return plan, record, weights


@pytest.mark.parametrize("method", ["full", {"kind": "lora", "r": 4}])
def test_packing_and_activations_made_anew_change_nothing_that_is_learnt(tmp_path, method):
    spec = conversation_spec(tmp_path)
    plain = learnt_with(spec, tmp_path / "plain", method=method, packing=False, micro_batch_tokens=128)
    together = learnt_with(spec, tmp_path / "packed", method=method, packing=True, micro_batch_tokens=96)
    anew = learnt_with(
        spec, tmp_path / "anew", method=method, packing=False, micro_batch_tokens=128, activation_checkpointing=True
    )
    assert [found[0]["attention"] for found in (plain, together, anew)] == ["eager", "packed", "eager"]
    assert [found[0]["activation_checkpointing"] for found in (plain, together, anew)] == [False, False, True]
    before = load_file(tmp_path / "base" / "model.safetensors")
    for name, weight in plain[2].items():
        moved = (weight - before[name]).abs().max()
        assert torch.equal(anew[2][name], weight), name
        assert (together[2][name] - weight).abs().max() <= 0.02 * moved, name
    assert together[1]["validation"]["loss"] == pytest.approx(plain[1]["validation"]["loss"], rel=1e-4)
    assert plain[1]["validation"]["loss"] < 3.0
    if method != "full":
        assert (plain[1]["merged_texts"], plain[1]["merged_texts_alike"]) == (8, 8)
