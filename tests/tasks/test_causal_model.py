from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from tasks import causal_model
from tasks.families import IGNORED
from tests.learning import tiny_decoder

META = {"pad_token_id": 0}


@pytest.fixture
def model(tmp_path):
    return causal_model.load(str(tiny_decoder(tmp_path)), META)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(3, 20, (4, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[3, 2:] = 0
    labels = torch.where((mask == 1) & (torch.rand(ids.shape) < 0.5), ids, IGNORED)
    labels[2] = IGNORED
    labels[0, 4] = ids[0, 4]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "other": torch.zeros(4)}


def by_transformers(model, batch):
    """Of all logits, as transformers makes them."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none").view(
        labels.shape
    )
    return each[labels != IGNORED], (labels != IGNORED).nonzero()[:, 0]


@pytest.mark.parametrize("logits", [1 << 26, 60])
def test_losses_and_gradients_are_those_of_all_logits(model, batch, monkeypatch, logits):
    monkeypatch.setattr(causal_model, "LOGITS", logits)  # 60: three tokens at a time
    wanted, rows = by_transformers(model, batch)
    wanted.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    losses, of_rows = causal_model.losses(model, batch)
    assert torch.equal(of_rows, rows)
    torch.testing.assert_close(losses, wanted)
    losses.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_adapters_are_part_of_the_model(model, batch):
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    wanted, _ = by_transformers(adapted, batch)
    with torch.inference_mode():
        torch.testing.assert_close(causal_model.losses(adapted, batch)[0], wanted)


def test_logits_that_an_architecture_changes_afterwards_are_its_own(model, batch):
    model.config.logit_scale = 2.0  # no such thing in this architecture: the path is what is tested
    wanted, _ = by_transformers(model, batch)
    with torch.inference_mode():
        torch.testing.assert_close(causal_model.losses(model, batch)[0], wanted)


def test_nothing_wanted_has_no_loss(model, batch):
    losses, rows = causal_model.losses(model, batch | {"labels": torch.full_like(batch["labels"], IGNORED)})
    assert losses.shape == rows.shape == (0,)
