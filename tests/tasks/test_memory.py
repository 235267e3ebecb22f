from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from schemas.errors import EnvironmentMistake
from schemas.recipe import Train
from tasks import memory, probe
from tasks.memory import Footprint, footprint, stored_parameters
from tests.learning import tiny_decoder
from tests.taught import conversation_spec


class Squares(nn.Module):
    """Keeps its input, `[rows, width, 5]`, and the products of all pairs of its tokens."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 5))
        text = SimpleNamespace(num_hidden_layers=3, hidden_size=5)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def forward(self, x):
        y = x @ self.weight
        pairs = torch.bmm(y, y.transpose(1, 2))
        return torch.exp(pairs).sum()


def counted(width, other):
    model = Squares()
    batches = [(w, {"x": torch.ones(1, w, 5)}, {"x": torch.ones(2, w, 5)}) for w in (width, other)]
    return footprint(model, Train(), lambda batch: model(batch["x"]), batches)


def test_what_a_row_keeps_is_told_from_two_lengths():
    found = counted(8, 20)
    assert found.weights == 25 * 4
    assert found.learning == 25 * (4 + 8)
    # x for the weight's gradient and y for the product's, 5 numbers a token each; the exponentials of all pairs.
    assert found.per_token == pytest.approx(2 * 5 * 4)
    assert found.per_pair == pytest.approx(4)
    assert found.of_row(100) == pytest.approx(40 * 100 + 4 * 100**2)


def test_counting_leaves_nothing_behind():
    def alive():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    counted(8, 20)
    before = alive()
    counted(8, 20)
    assert alive() == before


def test_activations_made_anew_leave_what_goes_into_each_layer_and_one_of_them():
    kept = Footprint(weights=0, learning=0, fixed=0, per_token=90.0, per_pair=0.0, layers=3, hidden=5)
    assert kept.of_row(10) == 900
    assert kept.of_row(10, remade=True) == pytest.approx(900 / 3 + 10 * 3 * 5 * 4)


def test_the_worst_moment_may_be_when_the_saved_model_is_loaded():
    kept = Footprint(weights=1000, learning=100, fixed=50, per_token=10.0, per_pair=0.0, layers=1, hidden=1)
    assert kept.needed(1, 10) - memory.RUNTIME_BYTES == 1000 + 100 + 1000
    assert kept.needed(10, 10) - memory.RUNTIME_BYTES == 1000 + 100 + 50 + 1000


def test_what_is_kept_takes_more_where_the_heap_has_holes():
    kept = Footprint(weights=1000, learning=100, fixed=50, per_token=10.0, per_pair=0.0, layers=1, hidden=1, holes=1.5)
    assert kept.needed(20, 10) - memory.RUNTIME_BYTES == 1000 + 100 + 1.5 * (50 + 20 * 100)
    assert counted(8, 20).holes == memory.HOLES["cpu"] > 1


def test_parameters_are_counted_from_the_headers_of_files(tmp_path):
    base = tiny_decoder(tmp_path)
    from transformers import AutoModelForCausalLM

    assert stored_parameters(str(base)) == AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert stored_parameters("org/on-the-hub") is None


@pytest.fixture
def spec(tmp_path):
    return conversation_spec(tmp_path)


def test_the_plan_says_what_memory_training_needs(spec):
    plan = probe.plan_training(**spec(packing=False))
    assert plan["memory_bytes"] > memory.RUNTIME_BYTES
    assert plan["activation_checkpointing"] is False
    assert plan["attention"] == "eager"


def test_micro_batches_shrink_before_activations_are_made_anew_and_that_before_training_is_refused(spec, monkeypatch):
    whole = probe.plan_training(**spec())
    runtime = memory.RUNTIME_BYTES

    def plan_with(room, **train):
        monkeypatch.setattr(probe, "memory", lambda _: int((runtime + room) / memory.SHARE))
        return probe.plan_training(**spec(**train))

    need = whole["memory_bytes"] - runtime
    smaller = plan_with(need * 0.6)
    assert smaller["micro_batch_tokens"] < whole["micro_batch_tokens"]
    assert "would not fit" in smaller["reasons"]["micro_batch_tokens"]
    assert smaller["activation_checkpointing"] is False

    fixed = plan_with(need * 0.6, micro_batch_tokens=whole["micro_batch_tokens"])
    assert fixed["micro_batch_tokens"] == whole["micro_batch_tokens"]
    assert fixed["activation_checkpointing"] is True
    assert fixed["reasons"]["activation_checkpointing"] == "they would not fit into memory"

    with pytest.raises(EnvironmentMistake, match=r"train\.method = 'full': training needs about .*try .*train\.method"):
        plan_with(need * 0.01)
    with pytest.raises(EnvironmentMistake, match=r"model\.base = .*its weights take"):
        plan_with(-runtime)


def test_what_the_recipe_says_of_activations_is_done(spec, monkeypatch):
    assert probe.plan_training(**spec(activation_checkpointing=True))["activation_checkpointing"] is True
    whole = probe.plan_training(**spec())
    need = whole["memory_bytes"] - memory.RUNTIME_BYTES
    monkeypatch.setattr(probe, "memory", lambda _: int((memory.RUNTIME_BYTES + need * 0.6) / memory.SHARE))
    with pytest.raises(EnvironmentMistake, match="micro_batch_tokens left out"):
        probe.plan_training(**spec(activation_checkpointing=False, micro_batch_tokens=whole["micro_batch_tokens"]))
