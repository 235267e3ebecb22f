from __future__ import annotations

import copy
import sys

import pytest
import torch

from schemas.errors import EnvironmentMistake, RecipeError
from schemas.recipe import Train
from schemas.records import Plan
from tasks.learner import Job
from tasks.optimisers import MuonAndAdamW, hidden_matrices, optimizer_of, parameter_groups, schedule_of
from tests.learning import OPTIMIZERS, job_spec, tiny_encoder, token_files


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return tiny_encoder(folder / "base"), token_files(folder / "tokens", {"train": 30, "validation": 10, "test": 10})


def loaded(parts, **train):
    job = Job(**job_spec(*parts, **train))
    return job, job.load("eager")


def names(model, parameters):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in parameters}


def test_biases_and_norms_do_not_decay(parts):
    _, model = loaded(parts)
    decaying, others = parameter_groups(model.named_parameters(), 1e-3, 0.1, {})
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    found = names(model, others["params"])
    assert found == {name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name}
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_a_factor_lowers_the_learning_rate_of_its_parameter_alone(parts):
    _, model = loaded(parts)
    groups = parameter_groups(model.named_parameters(), 1e-3, 0.0, {"classifier.weight": 0.25})
    rates = {group["lr"]: names(model, group["params"]) for group in groups}
    assert rates[0.25e-3] == {"classifier.weight"}
    assert set(rates) == {1e-3, 0.25e-3}


def test_muon_is_for_the_matrices_between_embeddings_and_head(parts):
    job, model = loaded(parts)
    hidden = hidden_matrices(model, job.family)
    found = names(model, [p for p in model.parameters() if id(p) in hidden])
    assert found == {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embeddings" not in name and not name.startswith("classifier")
    }
    assert "bert.pooler.dense.weight" in found


def test_muon_takes_the_factors_of_adapters_and_leaves_the_head_to_adamw(parts):
    job, model = loaded(parts, method={"kind": "lora", "r": 4}, optimizer="muon")
    optimizer = optimizer_of(model, job.family, job.train)
    assert isinstance(optimizer, MuonAndAdamW)
    matrices, *others = [names(model, group["params"]) for group in optimizer.param_groups]
    assert all("lora_A" in name or "lora_B" in name for name in matrices)
    assert all("classifier" in name for group in others for name in group)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set.union(matrices, *others) == learning


def test_muon_without_a_hidden_matrix_that_learns_is_refused(parts):
    job, model = loaded(parts, optimizer="muon")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    with pytest.raises(RecipeError, match=r"train\.optimizer = 'muon': no hidden matrix learns .*; choose adamw"):
        optimizer_of(model, job.family, job.train)


def test_muons_step_is_orthogonal_and_as_long_as_adamws(parts):
    job, model = loaded(parts, optimizer="muon", weight_decay=0.0)
    optimizer = optimizer_of(model, job.family, job.train)
    before = copy.deepcopy(model.state_dict())
    learn(model, optimizer, steps=1)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    step = (before[name] - model.state_dict()[name]).double() / job.train.learning_rate
    # An orthogonal 64 x 32 matrix has 32 singular values of 1, so a root mean square of 1 / sqrt(64); AdamW's is 0.2.
    singular = torch.linalg.svdvals(step) / (0.2 * 64**0.5)
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    assert step.pow(2).mean().sqrt() == pytest.approx(0.2, rel=0.25)


def test_beside_muon_adamw_learns_as_it_does_alone(parts):
    after = {}
    for name in ("adamw", "muon"):
        job, model = loaded(parts, optimizer=name)
        learn(model, optimizer_of(model, job.family, job.train), steps=1)
        after[name] = model.state_dict()
    assert torch.equal(after["adamw"]["classifier.weight"], after["muon"]["classifier.weight"])
    same = torch.equal(*(state["bert.pooler.dense.weight"] for state in after.values()))
    assert not same


def learn(model, optimizer, steps, seed=0):
    """Steps on random gradients."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_and_loaded_goes_on_as_if_nothing_had_been(parts, tmp_path, name):
    job, model = loaded(parts, optimizer=name)
    optimizer = optimizer_of(model, job.family, job.train)
    learn(model, optimizer, steps=3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = copy.deepcopy(model)
    resumed = optimizer_of(other, job.family, job.train)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    learn(model, optimizer, steps=3, seed=1)
    learn(other, resumed, steps=3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("name", "share"), [("adafactor", 0.1), ("muon", 0.6), ("adamw-8bit", 0.3)])
def test_what_an_optimiser_keeps_is_smaller_than_adamws_two_numbers_a_weight(parts, name, share):
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    job, _ = loaded(parts, optimizer=name)
    model = torch.nn.ModuleDict({"hidden": torch.nn.Linear(256, 256, bias=False)})
    model.base_model_prefix = "hidden"
    optimizer = optimizer_of(model, job.family, job.train)
    learn(model, optimizer, steps=1)
    kept = sum(v.nbytes for v in optimizer.state[model["hidden"].weight].values() if isinstance(v, torch.Tensor))
    assert kept < share * 2 * 4 * 256 * 256


def test_bitsandbytes_that_is_not_there_is_one_line(parts, monkeypatch):
    job, model = loaded(parts, optimizer="adamw-8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(EnvironmentMistake) as refused:
        optimizer_of(model, job.family, job.train)
    line = str(refused.value)
    assert line.startswith("train.optimizer = 'adamw-8bit': bitsandbytes does not run on this cpu")
    assert line.endswith("; choose adafactor, which saves as much memory")
    assert "\n" not in line


RATES = {
    "linear": [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0],
    "polynomial": [0, 1 / 2, 1, 49 / 64, 36 / 64, 25 / 64, 16 / 64, 9 / 64, 4 / 64, 1 / 64, 0],
    "constant": [0, 1 / 2, *[1] * 9],
    "warmup-stable-decay": [0, 1 / 2, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4, 0],
    # halfway down, where the cosine of a right angle is 0, and a quarter of the way, where it is sqrt(2) / 2
    "cosine": {0: 0, 1: 1 / 2, 2: 1, 4: (2 + 2**0.5) / 4, 6: 1 / 2, 8: (2 - 2**0.5) / 4, 10: 0},
}


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_rises_and_falls_as_worked_by_hand(name):
    train = Train(schedule=name, learning_rate=0.5, decay_power=2)
    plan = Plan.model_construct(steps=10, warmup_steps=2, decay_steps=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = schedule_of(train, plan, optimizer)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0] / 0.5)
        optimizer.step()
        schedule.step()
    expected = RATES[name] if isinstance(RATES[name], dict) else dict(enumerate(RATES[name]))
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-12)


def test_every_group_keeps_its_share_of_the_learning_rate_on_the_way(parts):
    _, model = loaded(parts)
    groups = parameter_groups(model.named_parameters(), 0.5, 0.0, {"classifier.weight": 0.25})
    optimizer = torch.optim.SGD(groups, lr=0.5)
    schedule = schedule_of(Train(schedule="polynomial"), Plan.model_construct(steps=10, warmup_steps=2), optimizer)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    assert sorted(schedule.get_last_lr()) == pytest.approx([0.25 * 0.5 * 16 / 64, 0.5 * 16 / 64])
