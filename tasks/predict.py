"""Predictions, in the child process: batches of like length under a token budget, kept as numbers, written in parts.

A text that was cut into windows has one prediction, which the family makes of its windows. Of every window only its
outputs stay, as float32, in a temporary file where they are many.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from schemas.base import load_family
from schemas.records import Plan
from tasks.batches import ALL, Ints, TokenTable, micro_batches
from tasks.families import Family, Loss, Meta
from tasks.kept_answers import KeptAnswers
from tasks.machine import cores
from tasks.rows import Writer
from tasks.rules.quick import quickened

PREDICT_TOKENS = {"cpu": 2_048, "cuda": 4_096}
"""Most tokens, padding counted, of a batch without gradients; on a CPU twice as many are slower, by 5 %."""
IN_MEMORY_BYTES = 64 << 20
"""Outputs up to this size stay in memory; larger ones go to a file that is mapped into it."""
TEXTS_AT_ONCE = 20_000
"""Texts whose columns are made, and written, together."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Windows:
    """What is known of some texts once their windows are predicted.

    Attributes:
        outputs: Of each window, as `Family.outputs` gives them: `[windows, …]`, or one array `[tokens, …]` for each.
        starts: First window of each text, ascending from 0.
        columns: What the family encoded, one value for each window.
    """

    outputs: Floats | Sequence[Floats]
    starts: Ints
    columns: Mapping[str, Sequence[Any]]

    def means(self) -> Floats:
        """One output for each text, `[texts, …]`: the mean over its windows."""
        outputs = np.asarray(self.outputs, np.float32)
        if len(self.starts) == len(outputs):
            return outputs
        windows = np.diff(self.starts, append=len(outputs)).reshape(-1, *[1] * (outputs.ndim - 1))
        means: Floats = np.divide(np.add.reduceat(outputs, self.starts, axis=0), windows, dtype=np.float32)
        return means

    def of_texts(self, column: str) -> list[Any]:
        """The value that the first window of each text has."""
        values = self.columns[column]
        return [values[start] for start in self.starts.tolist()]


class Outputs:
    """The outputs of all windows of a table, filled batch by batch; those that are large lie in a file.

    Args:
        lengths: Tokens of each window.
        folder: Where the file is; default: the system's folder for temporary files.
    """

    def __init__(self, lengths: Ints, folder: Path | None = None) -> None:
        self._lengths = lengths
        self._folder = folder
        self._starts: Ints | None = None
        self._room: Floats = np.empty(0, np.float32)

    def put(self, rows: Ints, found: Floats | Sequence[Floats]) -> None:
        """Keep what was found for these windows."""
        if isinstance(found, np.ndarray):
            if not len(self._room):
                self._room = _room((len(self._lengths), *found.shape[1:]), self._folder)
            self._room[rows] = found
            return
        if self._starts is None:
            self._starts = np.cumsum([0, *self._lengths.tolist()])
            self._room = _room((int(self._starts[-1]), *found[0].shape[1:]), self._folder)
        for row, of_tokens in zip(rows.tolist(), found, strict=True):
            self._room[self._starts[row] : self._starts[row + 1]] = of_tokens

    def part(self, windows: slice) -> Floats | list[Floats]:
        """The outputs of windows that follow each other."""
        if self._starts is None:
            return self._room[windows]
        places = range(*windows.indices(len(self._lengths)))
        return [self._room[self._starts[place] : self._starts[place + 1]] for place in places]


def predict(
    *,
    emit: Callable[..., None],
    family: str,
    model: str,
    tokens: Mapping[str, str],
    notes: Meta | None = None,
    shown: Sequence[Mapping[str, Any]] = (),
    work: str | None = None,
    write: bool = True,
) -> dict[str, Any]:
    """Predict every row of some token files with a trained model, in float32 as it will serve; loads the model once.

    Args:
        emit: Sends an event to the parent.
        family: Name of the task family.
        model: Folder that `tasks.learner.save_model` wrote.
        tokens: `.arrow` file of the tokenize artifact → Parquet file to write: id, truth, prediction and what the
            family adds, one row for each text.
        notes: See `schemas.base.TaskSection.notes`.
        shown: Turns that come before every conversation, for families that write.
        write: Whether families that write do; likelihoods alone take a fraction of the time.
        work: Folder in which what is written is kept until all of it is; default: it is not.

    Returns:
        Rows, tokens and seconds, of all files together.
    """
    del emit
    torch.set_num_threads(cores())
    chosen: Family = load_family(family)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A model that hone has trained says what it knows of the task; of a base model the tokens' own notes are the ones.
    own = Path(model) / "hone.json"
    meta = json.loads((own if own.exists() else Path(next(iter(tokens))).with_name("meta.json")).read_text())
    meta |= notes or {}
    if shown:
        meta |= {"shown": list(shown)}
    loaded = quickened(chosen.load_model(model, meta).to(device).eval())
    done: dict[str, Any] = {"rows": 0, "tokens": 0}
    began = time.monotonic()
    for file, out in tokens.items():
        table = TokenTable(Path(file), meta["pad_token_id"])
        outputs, _ = outputs_of(loaded, chosen, table, None, Path(out).parent)
        written: Mapping[str, Sequence[Any]] = {}
        if chosen.writes and write:
            with _kept(work, out) as kept:
                written = chosen.written(loaded, Path(model), table.columns_of(ALL), meta, kept)
        with Writer(Path(out)) as writer:
            done["rows"] += _write(writer, frames_of(chosen, table, outputs, meta), written)
        done["tokens"] += int(table.lengths.sum(dtype=np.int64))
    return done | {"seconds": time.monotonic() - began}


@contextmanager
def _kept(work: str | None, out: str) -> Iterator[KeptAnswers | None]:
    """Answers of an earlier try, and those that come, in a file named as what they are for."""
    if work is None:
        yield None
        return
    kept = KeptAnswers(Path(work) / f"{Path(out).stem}.jsonl")
    try:
        yield kept
    finally:
        kept.close()


def _write(writer: Writer, frames: Iterator[pl.DataFrame], written: Mapping[str, Sequence[Any]]) -> int:
    """Write the frames, with the columns that came of writing texts, one value for each of their rows."""
    begin = 0
    for frame in frames:
        here = slice(begin, begin + frame.height)
        writer.write(frame.with_columns(pl.Series(name, values[here]) for name, values in written.items()))
        begin += frame.height
    return begin


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
) -> tuple[Outputs, float]:
    """The family's outputs for every window of a table, and the mean loss; see `predictions_of`.

    Longest rows first, so that running out of memory shows at once; logits never pile up.

    Args:
        model: In evaluation mode, on its device.
        family: Knows what an output is.
        table: The rows.
        plan: Class weights for the loss; none for plain.
        folder: Where many outputs are kept meanwhile; default: the system's folder for temporary files.
    """
    device = next(model.parameters()).device
    how = loss_of(plan, device)
    outputs = Outputs(table.lengths, folder)
    loss = torch.zeros((), device=device)
    count = torch.zeros((), device=device)
    with torch.inference_mode():
        for rows in micro_batches(np.arange(len(table)), table.lengths, PREDICT_TOKENS[device.type]):
            batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
            found, batch_loss = family.outputs(model, batch, how)
            loss += batch_loss
            count += family.loss_count(torch.from_numpy(np.array(table.labels_of(rows))).to(device), how)
            outputs.put(rows, found)
    return outputs, float(loss / count)


def loss_of(plan: Plan | None, device: torch.device | str) -> Loss:
    """How the plan has losses made; plain without one."""
    if plan is None:
        return Loss()
    weights = None if plan.class_weights is None else torch.tensor(plan.class_weights, device=device)
    return Loss(weights, plan.label_smoothing, plan.focal_gamma, plan.preference_beta)


def frames_of(family: Family, table: TokenTable, outputs: Outputs, meta: Meta) -> Iterator[pl.DataFrame]:
    """`id` and the family's columns for each text, `TEXTS_AT_ONCE` at a time, from the outputs for each window."""
    every = table.text_starts
    for place in range(0, len(every), TEXTS_AT_ONCE):
        begin, after = int(every[place]), place + TEXTS_AT_ONCE
        here = slice(begin, int(every[after]) if after < len(every) else len(table))
        starts = every[place:after] - begin
        columns = family.predictions(Windows(outputs.part(here), starts, table.columns_of(here)), meta)
        ids = table.ids.slice(begin, here.stop - begin).take(starts)
        yield pl.DataFrame({"id": ids.to_pylist(), **columns})


def _room(shape: tuple[int, ...], folder: Path | None) -> Floats:
    """An array to be filled; one that is large lies in a file, which is gone when the array is."""
    if math.prod(shape) * np.dtype(np.float32).itemsize <= IN_MEMORY_BYTES:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
