"""Predictions, in the child process: batches of like length under a token budget, written as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from schemas.base import load_family
from schemas.records import Plan
from tasks.batches import TokenTable, micro_batches
from tasks.families import Family, Meta
from tasks.machine import cores

PREDICT_TOKENS = 4_096
"""Most tokens, padding counted, of one batch without gradients."""


def predict(*, emit: Callable[..., None], family: str, model: str, tokens: str, out: str) -> dict[str, Any]:
    """Predict every row of a token file with a trained model, in float32 as it will serve, and write them as Parquet.

    Args:
        emit: Sends an event to the parent.
        family: Name of the task family.
        model: Folder that `tasks.learner.save_model` wrote.
        tokens: `.arrow` file of the tokenize artifact.
        out: Parquet file to write: id, truth, prediction and what the family adds.

    Returns:
        Rows, tokens and seconds.
    """
    del emit
    torch.set_num_threads(cores())
    chosen: Family = load_family(family)
    meta = json.loads((Path(model) / "hone.json").read_text())
    table = TokenTable(Path(tokens), meta["pad_token_id"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = chosen.load_model(model, meta).to(device).eval()
    began = time.monotonic()
    columns, _ = predictions_of(loaded, chosen, table, meta, None)
    seconds = time.monotonic() - began
    pl.DataFrame({"id": table.ids.to_pylist(), **columns}).write_parquet(out)
    return {"rows": len(table), "tokens": int(table.lengths.sum()), "seconds": seconds}


def predictions_of(
    model: torch.nn.Module, family: Family, table: TokenTable, meta: Meta, plan: Plan | None
) -> tuple[dict[str, Any], float]:
    """Predictions for every row of a table, in its order, and the mean loss.

    Longest rows first, so that running out of memory shows at once; logits never pile up, only the family's outputs do.

    Args:
        model: In evaluation mode, on its device.
        family: Knows what an output is.
        table: The rows.
        meta: Labels and the like.
        plan: Class weights for the loss; none for plain.
    """
    device = next(model.parameters()).device
    weights = None if plan is None or plan.class_weights is None else torch.tensor(plan.class_weights, device=device)
    outputs: list[Any] = [None] * len(table)
    loss = torch.zeros((), device=device)
    count = torch.zeros((), device=device)
    with torch.inference_mode():
        for rows in micro_batches(np.arange(len(table)), table.lengths, PREDICT_TOKENS):
            batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
            found, batch_loss = family.outputs(model, batch, weights)
            loss += batch_loss
            count += family.loss_count(batch["labels"], weights)
            for row, output in zip(rows, found, strict=True):
                outputs[row] = output
    return family.predictions(np.stack(outputs), table.labels.tolist(), meta), float(loss / count)
