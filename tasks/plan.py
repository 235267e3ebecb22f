"""The plan: what training will do on this machine, by rules that give the same answer every time.

Measurements never enter it, so two fresh homes on one machine make the same plan. Only running out of memory changes
it: then the micro-batch is halved, and the reason says so.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from schemas.errors import Problem, RecipeError
from schemas.recipe import Train
from schemas.records import Plan
from tasks.course import WARMUP_RATIO, course
from tasks.machine import BF16_FLAGS, cores, cpu_flags

CPU_MICRO_BATCH_TOKENS = 4_096
"""Larger ones were no faster on two cores, and this many fit anywhere."""
GPU_MICRO_BATCH_TOKENS = 16_384
EAGER_UP_TO = 512
"""Longest sequence, in tokens, for which plain attention without dropout beats the fused kernel on a CPU (2x at 24)."""


def device() -> Literal["cpu", "cuda", "mps"]:
    """The best device torch finds."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def precision(train: Train, where: str) -> tuple[Literal["bf16", "fp32"], str]:
    """bfloat16 where the hardware multiplies it, unless the recipe says otherwise; and why."""
    if train.precision != "auto":
        return train.precision, "the recipe says so"
    if where == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = where == "cpu" and bool(cpu_flags() & BF16_FLAGS)
    return ("bf16", f"this {where} multiplies bfloat16") if native else ("fp32", f"this {where} has no bfloat16 units")


def attention(train: Train, where: str, dropout: float | None, longest: int) -> tuple[Literal["eager", "sdpa"], str]:
    """The attention implementation, and why."""
    if train.attention != "auto":
        return train.attention, "the recipe says so"
    if where == "cpu" and dropout == 0 and longest <= EAGER_UP_TO:
        return "eager", f"short sequences without dropout on a CPU (longest {longest})"
    return "sdpa", "fused attention"


def warmup_steps(train: Train, steps: int) -> int:
    """Steps of a rising learning rate; one at least is left for its peak.

    Raises:
        RecipeError: The recipe asks for more.
    """
    if train.warmup_steps is None:
        ratio = WARMUP_RATIO if train.warmup_ratio is None else train.warmup_ratio
        return min(math.ceil(steps * ratio), steps - 1)
    if train.warmup_steps >= steps:
        raise RecipeError(
            Problem(
                "train.warmup_steps", train.warmup_steps, f"training has {steps} steps",
                "lower it, or give a share of the steps as train.warmup_ratio",
            )
        )  # fmt: skip
    return train.warmup_steps


def decay_steps(train: Train, steps: int, after_warmup: int) -> int:
    """Steps over which warmup-stable-decay falls to zero."""
    if train.schedule != "warmup-stable-decay":
        return 0
    return min(math.ceil(steps * train.decay_ratio), after_warmup)


def make_plan(
    train: Train,
    *,
    dropout: float | None,
    rows: int,
    longest: int,
    class_weights: tuple[float, ...] | None,
    class_weights_reason: str,
) -> Plan:
    """The plan for this recipe, data and machine, before the probe of the longest batch.

    Args:
        train: The recipe's section.
        dropout: The recipe's, or none for the model's own.
        rows: Training rows.
        longest: Longest training row, in tokens.
        class_weights: Loss weight per label, or none.
        class_weights_reason: Why these.
    """
    where = device()
    numbers, numbers_reason = precision(train, where)
    implementation, attention_reason = attention(train, where, dropout, longest)
    going = course(train, rows)
    warming = warmup_steps(train, going.steps)
    budget = train.micro_batch_tokens or (CPU_MICRO_BATCH_TOKENS if where == "cpu" else GPU_MICRO_BATCH_TOKENS)
    budget_reason = "the recipe says so" if train.micro_batch_tokens else f"default for a {where}"
    return Plan(
        device=where,
        precision=numbers,
        attention=implementation,
        threads=cores(),
        global_batch_size=train.global_batch_size,
        micro_batch_tokens=max(budget, longest),
        steps=going.steps,
        steps_per_epoch=going.steps_per_epoch,
        optimizer=train.optimizer,
        warmup_steps=warming,
        decay_steps=decay_steps(train, going.steps, going.steps - warming),
        eval_steps=going.eval_steps,
        class_weights=class_weights,
        label_smoothing=train.label_smoothing,
        focal_gamma=train.focal_gamma,
        preference_beta=train.preference_beta,
        reasons={
            "precision": numbers_reason,
            "attention": attention_reason,
            "micro_batch_tokens": budget_reason,
            "class_weights": class_weights_reason,
            "steps": going.reason,
            "threads": "every core this process may use",
        },
    )
