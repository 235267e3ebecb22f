"""What is kept of a step whose loss or gradient is no number any more: the batch that it met, and what led there.

A run that went on would only spoil its weights. Does not say whose fault it was: the learning rate's, a row's or the
base model's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas.errors import Mistake, Problem
from schemas.recipe import Train
from tasks.batches import Ints, TokenTable
from tasks.digests import write_atomically


@dataclass(frozen=True)
class Step:
    """An optimiser step whose gradients are there.

    Attributes:
        number: From 1.
        learning_rate: Of this step.
        cuts: Rows of each micro-batch.
        losses: What each micro-batch added to the step's loss, `[micro_batches]`.
        norm_before: Norm of the last step's gradient, before clipping; none for the first step of a process.
    """

    number: int
    learning_rate: float
    cuts: list[Ints]
    losses: torch.Tensor
    norm_before: float | None


def keep_step(step: Step, table: TokenTable, gradient_norm: float | None, folder: Path) -> Path:
    """Write `nan-step-<number>.json`: row ids, all that the model was given, losses and norms; not finite ones as text.

    Args:
        step: What was met.
        table: The training rows.
        gradient_norm: Before clipping; none where the loss is no number, so that there is no gradient.
        folder: Where the file goes.
    """
    content = {
        "step": step.number,
        "learning_rate": step.learning_rate,
        "loss": _number(step.losses.sum().item()),
        "gradient_norm": None if gradient_norm is None else _number(gradient_norm),
        "gradient_norm_of_last_step": step.norm_before,
        "micro_batches": [
            {
                "loss": _number(loss),
                "ids": table.ids.take(rows).to_pylist(),
                **{name: values.tolist() for name, values in table.batch(rows).items()},
            }
            for rows, loss in zip(step.cuts, step.losses.tolist(), strict=True)
        ],
    }
    file = folder / f"nan-step-{step.number}.json"
    write_atomically(file, json.dumps(content, allow_nan=False))
    return file


def diverged(what: str, value: float, step: Step, train: Train, file: Path) -> Mistake:
    """The mistake that ends the run.

    Args:
        what: `loss` or `gradient norm`.
        value: What it became.
        step: When.
        train: The recipe's section.
        file: What was kept of the step.
    """
    rule = f"the {what} became {value} at step {step.number}; its batch is kept in {file}"
    if step.number == 1:
        remedy = "nothing was learnt yet: look at its rows, or choose another model"
        return Mistake(Problem("model.base", None, rule, remedy))
    return Mistake(Problem("train.learning_rate", train.learning_rate, rule, "lower it, or warm up for longer"))


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
