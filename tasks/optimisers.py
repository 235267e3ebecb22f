"""Optimisers and the course of their learning rate: which parameters learn by which rule, how fast, and what decays.

Learning rates are of one kind: Muon's steps are scaled to the root mean square that AdamW's have in the long run, and
Adafactor's are bounded by the learning rate itself. A short fine-tuning is not the long run: it wants Muon ten times as
fast; see docs/optimisers.md. Does not cover optimisers that ask for the loss again, as L-BFGS does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from transformers import Adafactor, get_scheduler

from schemas.errors import EnvironmentMistake, Problem, RecipeError
from schemas.recipe import Train
from schemas.records import Plan
from tasks.families import Family
from tasks.layers import bare
from tasks.methods import decays

Group = dict[str, Any]
Named = Iterable[tuple[str, torch.nn.Parameter]]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Both of AdamW, as its authors have them."""
SCHEDULES = {"constant": "constant_with_warmup", "warmup-stable-decay": "warmup_stable_decay"}
"""The recipe's name → transformers', where they differ."""


def optimizer_of(
    model: torch.nn.Module, family: Family, train: Train, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser, for all of a model that learns.

    Args:
        model: The task's, adapters and all.
        family: Its family, which knows the head.
        train: The recipe's section.
        factors: Name of a parameter → factor of its learning rate; default: 1.

    Raises:
        RecipeError: There is nothing in the model that the optimiser is for.
        EnvironmentMistake: The optimiser does not run on this machine.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rate = train.learning_rate
    assert rate != "auto", "the plan names what the recipe leaves to it"

    def grouped(named: Named) -> list[Group]:
        return parameter_groups(named, rate, train.weight_decay, factors or {})

    match train.optimizer:
        case "adafactor":
            # Neither its own schedule nor its own scale, which would make something else of the recipe's learning rate.
            adafactor: torch.optim.Optimizer = Adafactor(
                grouped(learning), lr=rate, scale_parameter=False, relative_step=False
            )
            return adafactor
        case "muon":
            hidden = hidden_matrices(model, family)
            matrices = grouped((name, parameter) for name, parameter in learning if id(parameter) in hidden)
            if not matrices:
                raise RecipeError(
                    Problem(
                        "train.optimizer", "muon", f"no hidden matrix learns under train.method {train.method.kind}",
                        "choose adamw",
                    )
                )  # fmt: skip
            others = grouped((name, parameter) for name, parameter in learning if id(parameter) not in hidden)
            return MuonAndAdamW(matrices, others, rate)
        case "adamw-8bit":
            return _adamw_8bit(grouped(learning), rate)
        case "adamw":
            return torch.optim.AdamW(grouped(learning), rate, BETAS, EPSILON, fused=True)


def parameter_groups(
    named: Named, learning_rate: float, weight_decay: float, factors: Mapping[str, float]
) -> list[Group]:
    """Parameters that share a learning rate and a weight decay; biases, norms and scales of adapters do not decay."""
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in named:
        rate = learning_rate * factors.get(name, 1.0)
        decay = weight_decay if parameter.ndim > 1 and "bias" not in name and decays(name) else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def hidden_matrices(model: torch.nn.Module, family: Family) -> set[int]:
    """`id` of every matrix that turns hidden states into hidden states: no embedding, and not the head.

    References:
        Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    inner: Any = bare(model)
    outside: list[torch.nn.Module] = [module for module in inner.modules() if isinstance(module, torch.nn.Embedding)]
    outside += [inner.get_submodule(name) for name in family.head_modules(inner)]
    output = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    outside += [output] if output is not None else []
    apart = {id(parameter) for module in outside for parameter in module.parameters()}
    return {id(p) for p in inner.parameters() if p.ndim == 2 and min(p.shape) > 1} - apart


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for others, behind one optimiser with one state.

    Muon's step is scaled to the root mean square of AdamW's, so that one learning rate serves both.

    Args:
        matrices: Parameter groups for Muon.
        others: Parameter groups for AdamW.
        learning_rate: The peak, of groups without a factor.

    References:
        Liu et al. 2025, Muon is scalable for LLM training, section 2.2: the scale.
    """

    def __init__(self, matrices: list[Group], others: list[Group], learning_rate: float) -> None:
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, learning_rate, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            self._parts.append(torch.optim.AdamW(others, learning_rate, BETAS, EPSILON, fused=True))
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the state was left, both of them."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both parts work on the one state and on their groups of it."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state, part.param_groups = self.state, list(islice(groups, len(part.param_groups)))


def _adamw_8bit(groups: list[Group], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW whose moments have 8 bits in parameters of 4,096 numbers and more, proven by a step.

    References:
        Dettmers et al. 2022, 8-bit optimizers via block-wise quantization.
    """
    device = groups[0]["params"][0].device
    try:
        from bitsandbytes.optim import AdamW8bit

        trial = torch.nn.Parameter(torch.zeros(4096, device=device))
        trial.grad = torch.ones_like(trial)
        AdamW8bit([trial]).step()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise EnvironmentMistake(
            Problem(
                "train.optimizer", "adamw-8bit", f"bitsandbytes does not run on this {device.type}: {reason}",
                "choose adafactor, which saves as much memory",
            )
        ) from error  # fmt: skip
    made: torch.optim.Optimizer = AdamW8bit(groups, learning_rate, BETAS, EPSILON)
    return made


def schedule_of(train: Train, plan: Plan, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, then the recipe's course to zero."""
    specific: dict[str, Any] = {}
    if train.schedule == "warmup-stable-decay":
        specific = {"num_decay_steps": plan.decay_steps, "decay_type": "linear"}
    elif train.schedule == "polynomial":
        specific = {"power": train.decay_power, "lr_end": 0.0}
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        SCHEDULES.get(train.schedule, train.schedule),
        optimizer,
        num_warmup_steps=plan.warmup_steps,
        num_training_steps=plan.steps,
        scheduler_specific_kwargs=specific,
    )
    return schedule
