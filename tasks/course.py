"""How long training goes on, and how often it looks at the validation rows on its way.

Passes over the rows are a good measure where rows are many. Where they are few, a pass is a handful of optimiser steps:
two passes over 256 rows are eight, of which the first is warm-up. Steps are what a model learns by, so few rows are
passed more often. Evaluations are spread over the training then: two in every pass would take longer than the steps,
and early stopping would give up within the warm-up.

References:
    T. Zhang et al. (2021), Revisiting Few-sample BERT Fine-tuning (more steps).
    M. Mosbach et al. (2021), On the Stability of Fine-tuning BERT (more passes, for few rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schemas.recipe import Train
from schemas.records import Artifact

EPOCHS = 2.0
"""Passes over many rows, where the recipe names none."""
LEAST_STEPS = 100
"""Optimiser steps that few rows are learnt in; see docs/little-data.md for how it was measured."""
EVALUATIONS = 5
"""Of a training that few rows make longer."""
WARMUP_RATIO = 0.06
"""Of RoBERTa (Liu et al. 2019), where the recipe says nothing of the warm-up."""


@dataclass(frozen=True)
class Course:
    """How long training goes on.

    Attributes:
        steps: Optimiser steps in all.
        steps_per_epoch: In one pass over the rows.
        eval_steps: Between two evaluations.
        reason: Why so long.
    """

    steps: int
    steps_per_epoch: int
    eval_steps: int
    reason: str


def examples_in(tokens: Artifact) -> int:
    """Training rows of a tokenize artifact, or their windows where texts were cut into some."""
    return int(tokens.summary["rows"]["train"] + tokens.summary["windows"]["train"])


def course(train: Train, rows: int) -> Course:
    """The recipe's word where it gives one; else `EPOCHS`, but not fewer than `LEAST_STEPS`.

    Args:
        train: The recipe's section.
        rows: Training rows.
    """
    per_epoch = math.ceil(rows / train.global_batch_size)
    half = max(1, math.ceil(per_epoch / 2))
    steps, reason = math.ceil(per_epoch * (train.epochs or EPOCHS)), "the recipe says so"
    if train.max_steps is not None:
        steps = train.max_steps
    elif train.epochs is None:
        reason = f"{EPOCHS:g} epochs"
        if steps < LEAST_STEPS:
            half = math.ceil(LEAST_STEPS / EVALUATIONS)
            reason = f"at least {LEAST_STEPS}: {EPOCHS:g} epochs of {rows:,} rows would be {steps}"
            steps = LEAST_STEPS
    return Course(steps, per_epoch, train.eval_steps or half, reason)


def prolonged(train: Train, rows: int, most: int) -> Train:
    """The section for a part of the rows: as many epochs, but not fewer than `LEAST_STEPS` steps.

    Nor more steps for that than all the rows have; a recipe that names its steps keeps them.

    Args:
        train: The recipe's section.
        rows: In the part.
        most: Steps that all the rows have.
    """
    least = min(LEAST_STEPS, most)
    if train.max_steps is not None or course(train, rows).steps >= least:
        return train
    apart = train.eval_steps or math.ceil(least / EVALUATIONS)
    return train.model_copy(update={"max_steps": least, "eval_steps": apart})
