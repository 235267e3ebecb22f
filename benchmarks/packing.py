"""Packed rows against padded ones, and one large batch against many small ones: the same step of a real language model.

    python -m benchmarks.packing

SmolLM2-135M with LoRA on the conversations of `deployments/assistant.yaml`. Ways alternate; differences are of the loss
and of the gradients of the same 32 rows, in float32; seconds are of whole steps in the machine's own precision. Needs
the extra demo-llm; writes `results/packing.jsonl` and `results/packing.md`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.preparation import conditions
from schemas.loading import load_recipe
from schemas.records import Plan
from tasks import packing, probe
from tasks.base_model import base_model
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.learner import Job, prepare, step_losses
from tasks.markdown import table
from tasks.split import split
from tasks.tokenize import tokenize

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "packing.jsonl"
ROWS = 32
STEPS = 12
"""Timed steps of each way, of rows that go together by length and of rows at random."""
WAYS = {
    "padded, one micro-batch": {"attention": "sdpa", "micro_batch_tokens": 1 << 20},
    "padded, accumulated": {"attention": "sdpa", "micro_batch_tokens": 512},
    "packed, one micro-batch": {"attention": packing.ATTENTION, "micro_batch_tokens": 1 << 20},
    "packed, accumulated": {"attention": packing.ATTENTION, "micro_batch_tokens": 512},
}


def gradients(model: torch.nn.Module, job: Job, plan: Plan, rows: np.ndarray[Any, Any]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step, the gradient as one vector."""
    model.zero_grad()
    _, losses = step_losses(model, job, plan, rows)
    parts = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(losses.sum()), torch.cat(parts).clone()


def main() -> int:
    """Measure, and write the record."""
    os.environ.setdefault("HONE_HOME", str(Path(tempfile.gettempdir()) / "hone-packing"))
    recipe = load_recipe(ROOT / "deployments" / "assistant.yaml", [])
    context = Context(recipe, Home.open(ROOT), run_id="")
    cleaned = clean(context, collect(context))
    tokens = context.path(tokenize(context, cleaned, split(context, cleaned)))
    base, _ = base_model(recipe.model, context.home)
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("task", "model", "train")}
    spec: dict[str, Any] = {**sections, "base": str(base), "tokens": str(tokens), "metric": recipe.learns_by}
    planned = Plan.model_validate(probe.plan_training(emit=lambda *_, **__: None, **spec))
    job = Job(**spec)
    prepare(planned)
    model = job.load("sdpa")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():  # adapters that are zero have no gradient to speak of
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.train()
    lengths, draw = job.training_rows.lengths, np.random.default_rng(0)
    ordered = np.argsort(lengths, kind="stable")
    batches = {
        "rows of like length": [ordered[start : start + ROWS] for start in range(0, len(ordered) - ROWS, ROWS)][:STEPS],
        "rows at random": [draw.choice(len(lengths), ROWS, replace=False) for _ in range(STEPS)],
    }
    plans = {name: planned.model_copy(update=changes) for name, changes in WAYS.items()}
    lines: list[dict[str, Any]] = []
    exact = {name: plan.model_copy(update={"precision": "fp32"}) for name, plan in plans.items()}
    found = {}
    for name, plan in exact.items():
        model.set_attn_implementation(plan.attention)
        found[name] = gradients(model, job, plan, batches["rows at random"][0])
    loss, gradient = found["padded, one micro-batch"]
    seconds: dict[tuple[str, str], list[float]] = {}
    for kind, steps in batches.items():
        for number, rows in enumerate([steps[0], *steps]):
            for name, plan in plans.items():
                model.set_attn_implementation(plan.attention)
                began = time.perf_counter()
                gradients(model, job, plan, rows)
                if number:
                    seconds.setdefault((kind, name), []).append(time.perf_counter() - began)
    for name, (other, moved) in found.items():
        lines.append(
            {
                "way": name,
                "loss_difference": abs(other - loss) / abs(loss),
                "gradient_difference": float((moved - gradient).norm() / gradient.norm()),
                **{kind: median(seconds[kind, name]) for kind in batches},
            }
        )
    padding = packing.wasted(lengths, ROWS, planned.micro_batch_tokens)
    record = {"ways": lines, "padding": padding, "precision": planned.precision, "conditions": conditions()}
    RESULTS.write_text(json.dumps(record) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(record), encoding="utf-8")
    return 0


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    first, under = record["ways"][0], record["conditions"]
    kinds = [name for name in first if name.startswith("rows ")]
    head = ("way", "loss", "gradient", *(f"step, {kind}" for kind in kinds))
    rows = [
        (
            way["way"], f"{way['loss_difference']:.1e}", f"{way['gradient_difference']:.1e}",
            *(f"{way[kind]:.2f} s ({way[kind] / first[kind]:.2f})" for kind in kinds),
        )
        for way in record["ways"]
    ]  # fmt: skip
    parts = [
        "# Packed rows, and accumulated ones",
        f"`benchmarks/packing.py`: SmolLM2-135M, LoRA of rank 16, {ROWS} conversations a step. Relative differences of "
        "loss and gradient from those of one padded batch, float32; seconds of forward and backward, median of "
        f"{STEPS} steps each, taken in turns, and their ratio. As the recipe goes through its rows "
        f"{record['padding']:.1%} of the tokens would be padding.",
        table(head, rows),
        f"{under['cpu']}, {under['cores']} cores, {record['precision']}, Python {under['python']}, commit "
        f"{under['commit']}, {under['date'][:10]}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
