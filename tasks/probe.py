"""The plan, made and proven in the child process: what this model can do, whether it fits, and the longest batch.

The rules are those of `tasks.plan`. Here is what only the model can say: whether rows may be packed, what it keeps for
the backward pass, and hence the size of a micro-batch and whether activations are made anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from schemas.errors import EnvironmentMistake, Problem, RecipeError
from schemas.recipe import usual_learning_rate
from schemas.records import SMALLEST_MICRO_BATCH_TOKENS, Plan
from tasks import packing
from tasks.batches import EpochBatches, TokenTable, micro_batches, padded_width
from tasks.layers import attention_dropout
from tasks.learner import Emit, Job, autocast, prepare, step_losses
from tasks.memory import FLOAT32_BYTES, GIB, SHARE, Footprint, footprint, gib, memory, stored_parameters
from tasks.plan import EAGER_UP_TO, make_plan
from tasks.predict import loss_of
from tasks.rate_range import range_test

QUANTILES = (0.25, 0.75)
"""Of the rows, by length: those that show what a row keeps for the backward pass."""
PLAIN_MICRO_BATCH_TOKENS = 2_048
"""Larger ones were no faster by plain attention, and kept twice as much for the backward pass."""
PACKED_ROWS = 3
"""Rows that show whether a model may be taught packed ones."""


def plan_training(*, emit: Emit, limit: int | None = None, **spec: Any) -> dict[str, Any]:
    """Make the plan and prove it on the longest batch.

    Args:
        emit: Sends an event to the parent.
        limit: Most tokens of a micro-batch, after an earlier try ran out of memory.
        spec: See `tasks.learner.Job`.

    Raises:
        EnvironmentMistake: Training will not fit into this machine's memory.
        torch.OutOfMemoryError: The longest batch does not fit all the same; the parent tries again with half.
    """
    job = Job(**spec)
    how = "none" if job.train.sampling == "balanced" else job.train.class_weights
    weights, reason = job.family.loss_weights(job.training_rows.labels_of(), job.meta, how)
    plan = make_plan(
        job.train,
        dropout=job.model.dropout,
        rows=len(job.training_rows),
        longest=job.training_rows.longest,
        class_weights=weights,
        class_weights_reason=reason,
    )
    prepare(plan)
    _refuse_weights_alone(job, plan)
    plan, model = _loaded(job, plan)
    plan = _plain_where_faster(job, plan, model)
    model.to(plan.device)
    plan = _packed(job, plan, model)
    if job.train.learning_rate == "auto":  # until the range test knows better
        plan = plan.model_copy(update={"learning_rate": usual_learning_rate(job.task, job.train)})
    job.optimizer(model, plan)  # whatever keeps it from being made is said now
    plan = _fitting(job, plan, model)
    if limit is not None and limit < plan.micro_batch_tokens:
        plan = _with(plan, "micro_batch_tokens", limit, f"{plan.micro_batch_tokens} did not fit into memory")
    _prove(job, plan, job.ready(model, plan))
    if job.train.learning_rate == "auto":
        plan = _ranged(job, plan, model, emit)
    return plan.model_dump(mode="json")


def _prove(job: Job, plan: Plan, model: PreTrainedModel) -> None:
    """The largest micro-batch of the longest rows, beside the gradients of those before it: the most there ever is."""
    lengths = job.training_rows.lengths
    longest = np.argsort(lengths)[::-1][: plan.global_batch_size]
    largest, *_ = micro_batches(longest, lengths, plan.micro_batch_tokens, packed=plan.packs)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    step_losses(model, job, plan, largest)


def _ranged(job: Job, plan: Plan, model: PreTrainedModel, emit: Emit) -> Plan:
    """The plan with a learning rate by a range test on the recipe's first batches; the model is spent by it."""
    assert plan.learning_rate is not None, "the usual one until now"
    batches = _endless(EpochBatches(job.training_rows.lengths, plan.global_batch_size, job.train.seed))
    optimizer, learning = job.optimizer(model, plan), [p for p in model.parameters() if p.requires_grad]
    shares = [group["lr"] / plan.learning_rate for group in optimizer.param_groups]
    model.train()

    def step(number: int, rate: float) -> float:
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        _, losses = step_losses(model, job, plan, np.asarray(next(batches)))
        torch.nn.utils.clip_grad_norm_(learning, job.train.max_grad_norm or math.inf)
        optimizer.step()
        loss = float(losses.sum())
        emit("log", step=number, values={"range/loss": loss, "range/learning_rate": rate})
        return loss

    found = range_test(plan.learning_rate, step)
    return _with(plan, "learning_rate", found.chosen, found.told)


def _endless(batches: EpochBatches) -> Iterator[list[int]]:
    """Batch after batch, epoch after epoch."""
    for epoch in count():
        batches.set_epoch(epoch)
        yield from batches


def _with(plan: Plan, field: str, value: Any, reason: str) -> Plan:
    return plan.model_copy(update={field: value, "reasons": plan.reasons | {field: reason}})


def _refuse_weights_alone(job: Job, plan: Plan) -> None:
    """A model whose weights are too large by themselves is not even loaded."""
    parameters = stored_parameters(job.base)
    if parameters is not None and parameters * FLOAT32_BYTES > SHARE * memory(plan.device):
        raise EnvironmentMistake(
            Problem(
                "model.base", job.base,
                f"its weights take {gib(parameters * FLOAT32_BYTES)} in float32, and this {plan.device} has "
                f"{gib(memory(plan.device))}",
                "choose a smaller one, or a larger machine",
            )
        )  # fmt: skip


def _loaded(job: Job, plan: Plan) -> tuple[Plan, PreTrainedModel]:
    """The model; with plain attention where it has no fused one.

    Raises:
        RecipeError: The recipe asks for fused attention, and it has none.
    """
    try:
        return plan, job.load(plan.attention)
    except ValueError as error:
        if plan.attention != "sdpa" or "attention implementation" not in str(error):
            raise
        if job.train.attention != "auto":
            rule = "this model has plain attention alone"
            raise RecipeError(Problem("train.attention", "sdpa", rule, "leave it out")) from error
    plan = _with(plan, "attention", "eager", "the model has no other")
    return plan, job.load(plan.attention)


def _plain_where_faster(job: Job, plan: Plan, model: PreTrainedModel) -> Plan:
    """The plan with plain attention, where the model drops nothing in it and its rows are short (1.3x on a CPU)."""
    short = plan.device == "cpu" and job.training_rows.longest <= EAGER_UP_TO
    if plan.attention != "sdpa" or job.train.attention != "auto" or not short or attention_dropout(model) != 0:
        return plan
    model.set_attn_implementation("eager")
    longest = job.training_rows.longest
    reason = f"short sequences, and the model drops nothing in attention, on a CPU (longest {longest})"
    plan = _with(plan, "attention", "eager", reason)
    if job.train.micro_batch_tokens is not None or plan.micro_batch_tokens <= PLAIN_MICRO_BATCH_TOKENS:
        return plan
    tokens = max(PLAIN_MICRO_BATCH_TOKENS, longest)
    return _with(plan, "micro_batch_tokens", tokens, "plain attention keeps its products: larger ones are no faster")


def _packed(job: Job, plan: Plan, model: PreTrainedModel) -> Plan:
    """The plan with packed rows where the recipe asks for them, or they pay, and the model can be taught so.

    Raises:
        RecipeError: The recipe asks, and it cannot.
    """
    asked, wasted = job.train.packing, _wasted(job, plan)
    worth_it = packing.WORTH_IT_BESIDE_PLAIN if plan.attention == "eager" else packing.WORTH_IT
    if asked is False or not job.family.packs or (asked is None and wasted < worth_it):
        return plan
    if asked is None and job.train.attention != "auto":
        return plan
    table = job.training_rows
    some = np.argsort(table.lengths)[np.linspace(0, len(table) - 1, PACKED_ROWS).astype(int)]
    batch = {name: tensor.to(plan.device) for name, tensor in table.batch(some).items()}
    model.eval()
    why_not = packing.packs(model, batch)
    if why_not is None:
        model.set_attn_implementation(packing.ATTENTION)
        reason = "the recipe says so" if asked else f"{wasted:.0%} of the tokens would be padding"
        return _with(plan, "attention", packing.ATTENTION, f"rows are packed: {reason}")
    if asked:
        raise RecipeError(Problem("train.packing", True, f"this model cannot: {why_not}", "leave it out"))
    return plan


def _wasted(job: Job, plan: Plan) -> float:
    return packing.wasted(job.training_rows.lengths, plan.global_batch_size, plan.micro_batch_tokens)


def _fitting(job: Job, plan: Plan, model: PreTrainedModel) -> Plan:
    """The plan with micro-batches, and activations made anew where it must be, that fit into memory.

    Raises:
        EnvironmentMistake: Nothing that a plan may change makes it fit.
    """
    counted = _footprint(job, plan, model)
    longest = padded_width(job.training_rows.longest)
    room = SHARE * memory(plan.device)

    def needed(tokens: int, *, remade: bool) -> float:
        return counted.needed(max(1, tokens // longest), longest, remade=remade)

    remade = bool(job.train.activation_checkpointing)
    tokens = plan.micro_batch_tokens
    if job.train.micro_batch_tokens is None:
        while needed(tokens, remade=remade) > room and tokens // 2 >= max(longest, SMALLEST_MICRO_BATCH_TOKENS):
            tokens //= 2
    possible = model.supports_gradient_checkpointing and job.train.activation_checkpointing is None
    if needed(tokens, remade=remade) > room and possible:
        remade = True
    estimate = needed(tokens, remade=remade)
    if estimate > room:
        raise EnvironmentMistake(_too_large(job, plan, counted, longest, estimate))
    if tokens != plan.micro_batch_tokens:
        reason = f"more would not fit into the {gib(memory(plan.device))} of this {plan.device}"
        plan = _with(plan, "micro_batch_tokens", tokens, reason)
    if remade:
        reason = "the recipe says so" if job.train.activation_checkpointing else "they would not fit into memory"
        plan = _with(plan, "activation_checkpointing", True, reason)
    return plan.model_copy(update={"memory_bytes": int(estimate)})


def _footprint(job: Job, plan: Plan, model: PreTrainedModel) -> Footprint:
    table, how = job.training_rows, loss_of(plan, plan.device)
    model.train()

    def forward(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with autocast(plan):
            return job.family.loss_sum(model, job.as_taught(batch, plan), how)

    order = np.argsort(table.lengths, kind="stable")
    rows = {int(table.lengths[row]): int(row) for row in (order[int(q * (len(table) - 1))] for q in QUANTILES)}
    batches = [(_width(table, row), table.batch([row]), table.batch([row, row])) for row in rows.values()]
    return footprint(model, job.train, forward, batches)


def _width(table: TokenTable, row: int) -> int:
    return min(padded_width(int(table.lengths[row])), table.longest)


def _too_large(job: Job, plan: Plan, counted: Footprint, longest: int, estimate: float) -> Problem:
    """What would be needed, and what to change, the largest part first."""
    activations = counted.passing(1, longest, remade=plan.activation_checkpointing)
    parts = {
        f"weights {counted.weights / GIB:.1f}": (counted.weights, "a smaller model"),
        f"gradients and optimiser {counted.learning / GIB:.1f}": (
            counted.learning,
            "train.method lora" if job.train.method.kind == "full" else "train.optimizer adafactor",
        ),
        f"activations {activations / GIB:.1f}": (
            activations,
            f"tokenize.max_seq_length below {longest}"
            if job.train.micro_batch_tokens is None
            else "train.micro_batch_tokens left out",
        ),
    }
    told = ", ".join(parts)
    remedies = [remedy for _, remedy in sorted(parts.values(), key=lambda part: part[0], reverse=True)]
    return Problem(
        "train.method", job.train.method.kind,
        f"training needs about {gib(estimate)} ({told}), and this {plan.device} has {gib(memory(plan.device))}",
        f"try {', or '.join(remedies)}",
    )  # fmt: skip
