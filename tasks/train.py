"""Training, seen from the flow: the plan first, then a child process that learns by it and can be started again.

Out of memory halves the micro-batch and goes on from the last checkpoint: the optimiser steps stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.base import TaskSection
from schemas.errors import EnvironmentMistake, OutOfMemory, Problem
from schemas.recipe import Model, Train
from schemas.records import Artifact, Plan
from tasks.base_model import base_model, refuse_other_labels
from tasks.child import children
from tasks.context import Context
from tasks.families import DRAWING
from tasks.machine import fingerprint
from tasks.stage import stage_task

log = logging.getLogger(__name__)

LIBRARIES = ("accelerate", "datasets", "numpy", "peft", "tokenizers", "torch", "transformers")

RunJob = Callable[[str, dict[str, Any]], Any]


def plan_training(
    *, task: TaskSection, model: Model, train: Train, metric: str, machine: dict[str, Any], base_digest: str,
    tokens: Path, base: Path, run_job: RunJob, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Have the plan made and proven on the longest batch; smaller micro-batches until it fits."""
    del machine, base_digest, out  # the child looks at the machine itself; the plan is all summary, no files
    spec = _spec(task=task, model=model, train=train, metric=metric, tokens=tokens, base=base)
    plan: dict[str, Any] | None = None
    limit: int | None = None
    while plan is None:
        try:
            plan = run_job("plan", spec | {"limit": limit})
        except OutOfMemory:
            limit = (limit or train.micro_batch_tokens or 16_384) // 2
            if limit < 64:
                raise
            log.warning("the longest batch does not fit into memory: trying micro-batches of %d tokens", limit)
    return plan


def try_model(**given: Any) -> dict[str, Any]:
    """Train as `train_model` does, and keep nothing but what it was worth."""
    return train_model(**given, keeps=False)


def train_model(
    *, task: TaskSection, model: Model, train: Train, metric: str, plan: Plan, base_digest: str,
    tokens: Path, base: Path, save_steps: int | None, save_minutes: float, run_job: RunJob, work: Path, out: Path,
    keeps: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train by the plan, from the last whole checkpoint in `work`, into `out`."""
    del base_digest
    spec = _spec(task=task, model=model, train=train, metric=metric, tokens=tokens, base=base)
    spec |= {"plan": plan.model_dump(mode="json"), "work": str(work), "out": str(out)}
    saving = {"save_steps": save_steps, "save_minutes": save_minutes, "keeps": keeps}
    record: dict[str, Any] = run_job("train", spec | saving)
    return record | {"plan": plan.model_dump(mode="json")}


def _spec(*, task: TaskSection, model: Model, train: Train, metric: str, tokens: Path, base: Path) -> dict[str, Any]:
    """What `tasks.learner.Job` takes."""
    sections = {"task": task, "model": model, "train": train}
    return {name: section.model_dump(mode="json") for name, section in sections.items()} | {
        "base": str(base),
        "tokens": str(tokens),
        "metric": metric,
    }


def plan_artifact(context: Context, tokens: Artifact) -> Artifact:
    """The frozen plan of this recipe, data and machine."""
    recipe = context.recipe
    refuse_other_labels(recipe.model, context.home, lambda: context.path(tokens))
    defaults = Train()
    beside_the_plan = ["decay_power", "early_stopping_patience", *SAVING]
    if recipe.train.learning_rate != "auto":  # a range test goes by them, too
        beside_the_plan += ["learning_rate", "weight_decay", "max_grad_norm", "seed"]
    settings = _settings(context) | {
        "train": recipe.train.model_copy(update={name: getattr(defaults, name) for name in beside_the_plan}),
        "machine": fingerprint(),
    }
    return context.artifact(
        "plan",
        plan_training,
        settings=settings,
        inputs={"tokens": tokens},
        unkeyed=_unkeyed(context),
        modules=("tasks.probe", type(context.family).__module__),
        libraries=libraries_of(recipe.train),
        apart_from=DRAWING,
        part_of="train",
    )


SAVING = ("save_steps", "save_minutes")
"""How often to save changes nothing that is learnt, so it is no part of the key."""


def libraries_of(train: Train) -> tuple[str, ...]:
    """Distributions that shape what is learnt.

    Raises:
        EnvironmentMistake: One is not installed.
    """
    install, needing = "pip install 'hone[bitsandbytes]'", list[tuple[str, str, str]]()
    if train.optimizer == "adamw-8bit":
        needing.append(("train.optimizer", train.optimizer, f"{install}, or choose adafactor"))
    if train.method.kind == "qlora":
        needing.append(("train.method", "qlora", f"{install} on a machine with a CUDA GPU, or choose lora"))
    if needing and find_spec("bitsandbytes") is None:
        rule = "bitsandbytes is not installed"
        raise EnvironmentMistake([Problem(field, value, rule, remedy) for field, value, remedy in needing])
    return (*LIBRARIES, "bitsandbytes") if needing else LIBRARIES


def _settings(context: Context) -> dict[str, Any]:
    recipe = context.recipe
    _, digest = base_model(recipe.model, context.home)
    # Where the base model lies changes nothing either: its digest is in the key.
    model = recipe.model.model_copy(update={"base": "", "revision": None})
    return {"task": recipe.task.taught, "model": model, "metric": recipe.learns_by, "base_digest": digest}


def _unkeyed(context: Context) -> dict[str, Any]:
    base, _ = base_model(context.recipe.model, context.home)

    def run_job(job: str, spec: dict[str, Any]) -> Any:
        return children.run(context.home.logs, job, spec, context.observer.event)

    return {"base": base, "run_job": run_job}


def rehearsal(context: Context, tokens: Artifact, plan: Plan) -> dict[str, Any]:
    """What a few real steps foretell of the training; see `tasks.rehearsal`."""
    recipe, unkeyed = context.recipe, _unkeyed(context)
    spec = _spec(
        task=recipe.task,
        model=recipe.model,
        train=recipe.train,
        metric=recipe.learns_by,
        tokens=context.path(tokens),
        base=unkeyed["base"],
    )
    forecast: dict[str, Any] = unkeyed["run_job"]("rehearse", spec | {"plan": plan.model_dump(mode="json")})
    return forecast


@stage_task
def train(context: Context, tokens: Artifact) -> Artifact:
    """Fine-tune the base model in a child process; a retry resumes from the last whole checkpoint."""
    return learnt(context, tokens, "train", train_model)


def learnt(context: Context, tokens: Artifact, stage: str, compute: Callable[..., dict[str, Any]]) -> Artifact:
    """What a training by the plan left behind; running out of memory makes micro-batches smaller, and goes on.

    Args:
        context: The run's.
        tokens: What is learnt.
        stage: Named so in the store.
        compute: `train_model`, or `try_model`.
    """
    recipe = context.recipe
    planned = plan_artifact(context, tokens)
    plan = Plan.model_validate(planned.summary)
    defaults = Train()
    section = recipe.train.model_copy(update={name: getattr(defaults, name) for name in SAVING})
    while True:
        settings = _settings(context) | {"train": section, "plan": plan}
        comparable = plan.model_copy(update={"micro_batch_tokens": 0, "reasons": {}})
        try:
            return context.artifact(
                stage,
                compute,
                settings=settings,
                inputs={"tokens": tokens},
                unkeyed=_unkeyed(context) | {name: getattr(recipe.train, name) for name in SAVING},
                modules=("tasks.learner", type(context.family).__module__),
                libraries=libraries_of(recipe.train),
                apart_from=DRAWING,
                part_of="train",
                work_settings=settings | {"plan": comparable},
            )
        except OutOfMemory:
            smaller = plan.halved()
            if smaller is None:
                raise
            log.warning("out of memory: micro-batches of %d tokens from here on", smaller.micro_batch_tokens)
            plan = smaller
            context.replace(planned, plan.model_dump(mode="json"))
