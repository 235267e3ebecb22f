"""Batches of tokens: memory-mapped rows, an order that puts like lengths together, micro-batches under a token budget.

An optimiser step always sees `global_batch_size` rows, whatever the memory: only their cut into micro-batches depends
on the budget, and the loss is summed over the cut, so the budget changes memory and rounding but not what is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

BUCKET_STEPS = 50
"""Steps whose rows are drawn together and sorted by length: enough for little padding, few enough to stay random."""

EQUAL_PIECES = 4
"""Micro-batches up to which the rows of a step are shared out equally."""

Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]


class TokenTable:
    """The rows of one `.arrow` file, memory-mapped: nothing is read until a batch needs it.

    Rows of one id, one after the other, are the windows of one text.

    Args:
        path: Arrow stream file with columns `id`, `input_ids`, `length`, `labels`.
        pad_token_id: Fills `input_ids` behind the end of a row.
    """

    def __init__(self, path: Path, pad_token_id: int) -> None:
        from datasets import Dataset

        table = Dataset.from_file(str(path)).data.table
        chunks = table.column("input_ids").chunks
        self._chunk_starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self.ids = table.column("id")
        self.lengths: Ints = table.column("length").to_numpy()
        self.labels = table.column("labels").to_numpy()
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def text_starts(self) -> Ints:
        """First row of each text, `[texts]`."""
        from pyarrow import compute

        if len(self) == 0:
            return np.empty(0, np.int64)
        others = compute.not_equal(self.ids.slice(1), self.ids.slice(0, len(self) - 1)).to_numpy()
        return np.flatnonzero(np.append(True, others))

    def row(self, index: int) -> Ints:
        """Token ids of one row, without a copy."""
        chunk = int(np.searchsorted(self._chunk_starts, index, side="right")) - 1
        offsets, values = self._chunks[chunk]
        within = index - self._chunk_starts[chunk]
        tokens: Ints = values[offsets[within] : offsets[within + 1]]
        return tokens

    def batch(self, rows: Sequence[int] | Ints) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` `[batch, padded_width of these rows]`, `labels` `[batch]`."""
        width = min(padded_width(int(self.lengths[rows].max())), self.longest)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        for i, row in enumerate(rows):
            tokens = self.row(int(row))
            input_ids[i, : len(tokens)] = tokens
        mask = np.arange(width) < self.lengths[rows][:, None]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(np.asarray(self.labels[rows])),
        }


def padded_width(longest: int) -> int:
    """Width of a batch whose longest row has this many tokens: on a grid of a 32nd to a 16th, so that shapes recur.

    Every new shape costs a compilation on a CPU (0.1 s and 10 MB for a small encoder) and a fresh block on a GPU; the
    grid costs 2 % more padding on average, and none up to 32 tokens.
    """
    grid = 1 << max(0, (longest - 1).bit_length() - 5)
    return -(-longest // grid) * grid


def micro_batches(rows: Ints, lengths: Ints, budget: int) -> list[Ints]:
    """Cut rows into micro-batches of at most `budget` tokens, padding counted; a row longer than that goes alone.

    A few cuts are of about equal size: a small rest would be one more shape.

    Args:
        rows: Row numbers.
        lengths: Length of every row of the table.
        budget: Most tokens of rows times longest row.
    """
    ordered = rows[np.argsort(lengths[rows], kind="stable")[::-1]]
    cuts, start = [], 0
    while start < len(ordered):
        most = max(1, budget // max(1, padded_width(int(lengths[ordered[start]]))))
        left = len(ordered) - start
        pieces = math.ceil(left / most)
        size = math.ceil(left / pieces) if pieces <= EQUAL_PIECES else most
        cuts.append(ordered[start : start + size])
        start += size
    return cuts


class EpochBatches:
    """Batch sampler: every epoch's rows once, in an order that seed and epoch alone decide.

    Args:
        lengths: Length of every row.
        global_batch_size: Rows per optimiser step, over all processes.
        seed: The recipe's seed.
        rank: This process; it takes every `world`-th row of each batch, so that the step's rows are the same on any
            number of devices.
        world: Number of processes.
    """

    def __init__(self, lengths: Ints, global_batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._lengths = lengths
        self._size = global_batch_size
        self._seed = seed
        self._rank = rank
        self._world = world
        self._epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass over the batches is for."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        bucket = self._size * BUCKET_STEPS
        batches: list[Ints] = []
        for start in range(0, len(order), bucket):
            rows = order[start : start + bucket]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += [rows[i : i + self._size] for i in range(0, len(rows), self._size)]
        for index in random.permutation(len(batches)):
            yield batches[index][self._rank :: self._world].tolist()
