"""Predictions, in the child process: batches of like length under a token budget, kept as numbers, written in parts.

A text that was cut into windows has one prediction: the mean of its windows' outputs. Of every row only its outputs
stay, as float32, in a temporary file where they are many. Does not cover outputs whose shape differs among rows.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from schemas.base import load_family
from schemas.records import Plan
from tasks.batches import Ints, TokenTable, micro_batches
from tasks.families import Family, Meta
from tasks.machine import cores
from tasks.rows import Writer

PREDICT_TOKENS = 4_096
"""Most tokens, padding counted, of one batch without gradients."""
IN_MEMORY_BYTES = 64 << 20
"""Outputs up to this size stay in memory; larger ones go to a file that is mapped into it."""
TEXTS_AT_ONCE = 20_000
"""Texts whose columns are made, and written, together."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


def predict(*, emit: Callable[..., None], family: str, model: str, tokens: Mapping[str, str]) -> dict[str, Any]:
    """Predict every row of some token files with a trained model, in float32 as it will serve; loads the model once.

    Args:
        emit: Sends an event to the parent.
        family: Name of the task family.
        model: Folder that `tasks.learner.save_model` wrote.
        tokens: `.arrow` file of the tokenize artifact → Parquet file to write: id, truth, prediction and what the
            family adds, one row for each text.

    Returns:
        Rows, tokens and seconds, of all files together.
    """
    del emit
    torch.set_num_threads(cores())
    chosen: Family = load_family(family)
    meta = json.loads((Path(model) / "hone.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = chosen.load_model(model, meta).to(device).eval()
    done: dict[str, Any] = {"rows": 0, "tokens": 0}
    began = time.monotonic()
    for file, out in tokens.items():
        table = TokenTable(Path(file), meta["pad_token_id"])
        outputs, _ = outputs_of(loaded, chosen, table, None, Path(out).parent)
        with Writer(Path(out)) as writer:
            for frame in frames_of(chosen, table, outputs, meta):
                writer.write(frame)
        done = {"rows": done["rows"] + writer.rows, "tokens": done["tokens"] + int(table.lengths.sum(dtype=np.int64))}
    return done | {"seconds": time.monotonic() - began}


def predictions_of(
    model: torch.nn.Module, family: Family, table: TokenTable, meta: Meta, plan: Plan | None
) -> tuple[pl.DataFrame, float]:
    """Predictions for every text of a table, in its order, and the mean loss of its rows.

    Args:
        model: In evaluation mode, on its device.
        family: Knows what an output is.
        table: The rows.
        meta: Labels and the like.
        plan: Class weights for the loss; none for plain.
    """
    outputs, loss = outputs_of(model, family, table, plan)
    return pl.concat(frames_of(family, table, outputs, meta)), loss


def outputs_of(
    model: torch.nn.Module, family: Family, table: TokenTable, plan: Plan | None, folder: Path | None = None
) -> tuple[Floats, float]:
    """The family's outputs for every row of a table, `[rows, …]`, and the mean loss; see `predictions_of`.

    Longest rows first, so that running out of memory shows at once; logits never pile up.

    Args:
        model: In evaluation mode, on its device.
        family: Knows what an output is.
        table: The rows.
        plan: Class weights for the loss; none for plain.
        folder: Where many outputs are kept meanwhile; default: the system's folder for temporary files.
    """
    device = next(model.parameters()).device
    weights = None if plan is None or plan.class_weights is None else torch.tensor(plan.class_weights, device=device)
    outputs = np.empty(0, np.float32)
    loss = torch.zeros((), device=device)
    count = torch.zeros((), device=device)
    with torch.inference_mode():
        for rows in micro_batches(np.arange(len(table)), table.lengths, PREDICT_TOKENS):
            batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
            found, batch_loss = family.outputs(model, batch, weights)
            loss += batch_loss
            count += family.loss_count(batch["labels"], weights)
            if not len(outputs):
                outputs = _room((len(table), *found.shape[1:]), folder)
            outputs[rows] = found
    return outputs, float(loss / count)


def frames_of(family: Family, table: TokenTable, outputs: Floats, meta: Meta) -> Iterator[pl.DataFrame]:
    """`id` and the family's columns for each text, `TEXTS_AT_ONCE` at a time, from the outputs for each row."""
    every = table.text_starts
    for place in range(0, len(every), TEXTS_AT_ONCE):
        begin, after = int(every[place]), place + TEXTS_AT_ONCE
        here = slice(begin, int(every[after]) if after < len(every) else len(table))
        starts = every[place:after] - begin
        columns = family.predictions(joined(outputs[here], starts), table.labels[here][starts].tolist(), meta)
        ids = table.ids.slice(begin, here.stop - begin).take(starts)
        yield pl.DataFrame({"id": ids.to_pylist(), **columns})


def joined(outputs: Floats, starts: Ints) -> Floats:
    """One output for each text, `[texts, …]`: the mean over its windows.

    Args:
        outputs: Of each window, `[windows, …]`.
        starts: First window of each text, ascending from 0.
    """
    if len(starts) == len(outputs):
        return outputs
    windows = np.diff(starts, append=len(outputs)).reshape(-1, *[1] * (outputs.ndim - 1))
    means: Floats = np.divide(np.add.reduceat(outputs, starts, axis=0), windows, dtype=np.float32)
    return means


def _room(shape: tuple[int, ...], folder: Path | None) -> Floats:
    """An array to be filled; one that is large lies in a file, which is gone when the array is."""
    if math.prod(shape) * np.dtype(np.float32).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
