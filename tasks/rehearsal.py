"""The dry run's training, in the child process: a few real optimiser steps, and what they foretell of the whole.

Step time is measured on batches of several sizes, taken from the real order, and carried over to every batch of the
training by its padded tokens. Nothing is saved. Does not foresee a busier machine, early stopping or checkpoints.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.records import Plan
from tasks.batches import Ints, micro_batches, shape_of
from tasks.families import Loss
from tasks.learner import Emit, Job, Learner, autocast, fused_attention, peak_memory, prepare, step_losses
from tasks.machine import allocated_memory
from tasks.predict import PREDICT_TOKENS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the batches, by padded tokens, that are timed."""
WARM_UP_STEPS = 3
REPEATS = 3
KERNEL_SHAPES = 57
"""Shapes that oneDNN's cache of 1,024 kernels holds, at the 18 or so that a transformer's training step compiles."""
MEMORY_STEPS = 30
"""Steps in the real order that show how memory grows."""
SAMPLE_TOKENS = 16_384
"""About how many tokens of validation are predicted to time evaluation."""


def rehearse(*, emit: Emit, plan: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Time a few steps and forecast the training.

    Args:
        emit: Sends an event to the parent.
        plan: The frozen plan.
        spec: See `tasks.learner.Job`.

    Returns:
        `train_seconds` (evaluations included), `predict_tokens_per_second` in float32 as the test will be predicted,
        `peak_memory_bytes`, and the `steps` timed: padded tokens and seconds of each.
    """
    frozen, job = Plan.model_validate(plan), Job(**spec)
    prepare(frozen)
    with tempfile.TemporaryDirectory() as work:
        learner = Learner(job, frozen, work=Path(work), emit=_silent, save_steps=None, save_minutes=math.inf)
        batches = [np.asarray(rows) for rows in learner.batches]
        sizes = np.array([padded_tokens(job.training_rows.lengths, rows, frozen) for rows in batches])
        chosen = [int(np.argsort(sizes)[int(q * (len(sizes) - 1))]) for q in QUANTILES]
        learner.create_optimizer()
        for i in range(WARM_UP_STEPS):
            _step(learner, batches[chosen[-1 - i % 2]])
        timed = []
        for number, index in enumerate(chosen):
            seconds = [_step(learner, batches[index]) for _ in range(REPEATS)]
            timed.append({"padded_tokens": int(sizes[index]), "seconds": float(np.median(seconds))})
            emit("progress", step=number + 1, steps=len(chosen))
        peak = _peak_memory(learner, batches)
        validation_seconds = _validation_seconds(learner)
        evaluations = -(-frozen.steps // frozen.eval_steps)
        per_epoch = np.interp(sizes, [t["padded_tokens"] for t in timed], [t["seconds"] for t in timed]).sum()
        return {
            "train_seconds": float(
                per_epoch * frozen.steps / frozen.steps_per_epoch + evaluations * validation_seconds
            ),
            "validation_seconds": validation_seconds,
            "predict_tokens_per_second": _predict_rate(learner),
            "peak_memory_bytes": peak,
            "steps": timed,
        }


def _peak_memory(learner: Learner, batches: list[Ints]) -> int:
    """Bytes at the worst moment of the training.

    On a GPU it is that of the longest batch, which has been seen. On a CPU the heap fills with holes between batches of
    many sizes, and every new shape of a micro-batch leaves compiled kernels behind, up to the capacity of their cache:
    some steps in the real order show the holes, and what one new shape leaves.
    """
    plan, lengths = learner.plan, learner.job.training_rows.lengths
    if plan.device != "cpu":
        return peak_memory(plan.device)

    def shapes_of(rows: Ints) -> set[tuple[int, int]]:
        cuts = micro_batches(rows, lengths, plan.micro_batch_tokens, packed=plan.packs)
        return {shape_of(lengths[cut], packed=plan.packs) for cut in cuts}

    before, seen = allocated_memory() or 0, set[tuple[int, int]]()
    for rows in batches[:MEMORY_STEPS]:
        _step(learner, rows)
        seen |= shapes_of(rows)
    left_behind = max(0, (allocated_memory() or 0) - before) / len(seen)
    shapes = set[tuple[int, int]]().union(*(shapes_of(rows) for rows in batches))
    unseen = max(0, min(len(shapes), KERNEL_SHAPES) - len(seen))
    return int(peak_memory(plan.device) + unseen * left_behind)


def _silent(event: str, **values: Any) -> None:
    """Nobody listens to a rehearsal's steps."""


def padded_tokens(lengths: Ints, rows: Ints, plan: Plan) -> int:
    """Tokens, padding counted, that a step computes."""
    cuts = micro_batches(rows, lengths, plan.micro_batch_tokens, packed=plan.packs)
    return sum(math.prod(shape_of(lengths[cut], packed=plan.packs)) for cut in cuts)


def _step(learner: Learner, rows: Ints) -> float:
    """Seconds of one whole optimiser step."""
    began = time.perf_counter()
    learner.model.train()
    _, losses = step_losses(learner.model, learner.job, learner.plan, rows)
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), learner.job.train.max_grad_norm or math.inf)
    assert learner.optimizer is not None
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    losses.sum().item()  # waits for the device
    return time.perf_counter() - began


def _validation_seconds(learner: Learner) -> float:
    with autocast(learner.plan), fused_attention(learner.model, learner.plan):
        rate = _rate(learner)
    return float(learner.job.validation_rows.lengths.sum()) / rate


def _predict_rate(learner: Learner) -> float:
    with fused_attention(learner.model, learner.plan):
        return _rate(learner)


def _rate(learner: Learner) -> float:
    """Real tokens per second without gradients, on an even sample of the validation rows."""
    learner.model.eval()
    table = learner.job.validation_rows
    every = max(1, int(table.lengths.sum()) // SAMPLE_TOKENS)
    sample = np.arange(0, len(table), every)
    cuts = micro_batches(sample, table.lengths, PREDICT_TOKENS[learner.plan.device])
    with torch.inference_mode():
        for rows in [cuts[0], *cuts]:  # the first one warms up
            if rows is cuts[0]:
                began = time.perf_counter()
            batch = {name: tensor.to(learner.plan.device) for name, tensor in table.batch(rows).items()}
            learner.job.family.outputs(learner.model, batch, Loss())
    return float(table.lengths[sample].sum()) / (time.perf_counter() - began)
