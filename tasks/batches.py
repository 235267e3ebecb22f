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

from tasks.families import IGNORED

BUCKET_STEPS = 50
"""Steps whose rows are drawn together and sorted by length: enough for little padding, few enough to stay random."""

EQUAL_PIECES = 4
"""Micro-batches up to which the rows of a step are shared out equally."""

FILLING = {"token_type_ids": 0}
"""Column → what pads it, where that is not `IGNORED`."""
ALL = slice(None)

Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]


class TokenTable:
    """The rows of one `.arrow` file, memory-mapped: nothing is read until a batch needs it.

    Rows of one id, one after the other, are the windows of one text.

    Args:
        path: Arrow stream file with columns `id`, `input_ids`, `length`, `labels`, and what else the family encodes;
            see `tasks.families.Encoded`.
        pad_token_id: Fills `input_ids` behind the end of a row.
    """

    def __init__(self, path: Path, pad_token_id: int) -> None:
        import pyarrow as pa

        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            table = stream.read_all()
        self.ids = table.column("id")
        self.lengths: Ints = table.column("length").to_numpy()
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0
        self.pad_token_id = pad_token_id
        self._input_ids = _Lists(table.column("input_ids"))
        self._others = {
            name: _column(table.column(name))
            for name in table.column_names
            if name not in {"id", "input_ids", "length"}
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Another column, `[rows, …]`."""
        self._others[name] = values

    @cached_property
    def _of_tokens(self) -> set[str]:
        """Columns that hold one number for each token of a row."""
        lists = {name: column for name, column in self._others.items() if isinstance(column, _Lists)}
        return {name for name, column in lists.items() if np.array_equal(column.sizes(), self.lengths)}

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
        tokens: Ints = self._input_ids[index]
        return tokens

    def labels_of(self, rows: Ints | slice = ALL) -> np.ndarray[Any, Any]:
        """The labels of some rows: `[rows]`, `[rows, labels]`, or those of all tokens, one row after the other."""
        labels = self._others["labels"]
        if isinstance(labels, np.ndarray):
            return labels[rows]
        assert isinstance(labels, _Lists), "labels are numbers"
        places = np.arange(len(self))[rows]
        return labels.stacked(places) if labels.width else np.concatenate([labels[int(place)] for place in places])

    def columns_of(self, rows: slice) -> dict[str, Sequence[Any]]:
        """What the family encoded besides token ids, of rows that follow each other: column → a value for each row."""
        places = range(*rows.indices(len(self)))
        return {
            name: column[rows].tolist() if isinstance(column, np.ndarray) else [column[place] for place in places]
            for name, column in self._others.items()
        }

    def batch(self, rows: Sequence[int] | Ints) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` `[batch, padded_width of these rows]`, `labels` and what else is encoded.

        Numbers become `[batch]`, lists of fixed length `[batch, length]`, and lists of one number for each token are
        padded like these: with `IGNORED`, or with 0 where it is a `token_type_ids`. Lists of other lengths, such as
        what a decoder is to write, are padded to a width of their own.
        """
        rows = np.asarray(rows)
        width = min(padded_width(int(self.lengths[rows].max())), self.longest)
        mask = np.arange(width) < self.lengths[rows][:, None]
        batch = {
            "input_ids": self._input_ids.padded(rows, width, self.pad_token_id),
            "attention_mask": mask.astype(np.int64),
        }
        for name, column in self._others.items():
            if isinstance(column, np.ndarray):
                batch[name] = np.asarray(column[rows])
            elif isinstance(column, _Lists):
                filling = FILLING.get(name, IGNORED)
                own = width if name in self._of_tokens else padded_width(column.longest(rows))
                batch[name] = column.stacked(rows) if column.width else column.padded(rows, own, filling)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


class _Lists:
    """A column of lists of numbers, mapped from disk.

    Attributes:
        width: Numbers of each list, where all have the same by their type.
    """

    def __init__(self, column: Any) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self.width: int | None = getattr(column.type, "list_size", None)
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._chunks = [(self._offsets(chunk), chunk.flatten().to_numpy()) for chunk in chunks]

    def _offsets(self, chunk: Any) -> Ints:
        offsets = np.arange(len(chunk) + 1) * self.width if self.width else chunk.offsets.to_numpy()
        from_zero: Ints = offsets - offsets[0]
        return from_zero

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        offsets, values = self._chunks[chunk]
        within = index - self._starts[chunk]
        found: np.ndarray[Any, Any] = values[offsets[within] : offsets[within + 1]]
        return found

    def sizes(self) -> Ints:
        """Length of each list."""
        return np.concatenate([np.diff(offsets) for offsets, _ in self._chunks]) if self._chunks else np.empty(0, int)

    def longest(self, rows: Ints) -> int:
        """Length of the longest list among these, at least 1."""
        return max(1, *(len(self[int(row)]) for row in rows))

    def stacked(self, rows: Ints) -> np.ndarray[Any, Any]:
        """`[rows, width]`."""
        return np.stack([self[int(row)] for row in rows])

    def padded(self, rows: Ints, width: int, filling: int) -> np.ndarray[Any, Any]:
        """`[rows, width]` int64."""
        found = np.full((len(rows), width), filling, dtype=np.int64)
        for i, row in enumerate(rows):
            values = self[int(row)]
            found[i, : len(values)] = values
        return found


class _Texts:
    """A column of texts, mapped from disk."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __getitem__(self, index: int) -> str | None:
        text: str | None = self._column[index].as_py()
        return text


def _column(column: Any) -> np.ndarray[Any, Any] | _Lists | _Texts:
    from pyarrow import types

    if types.is_string(column.type):
        return _Texts(column)
    nested = types.is_list(column.type) or types.is_fixed_size_list(column.type)
    return _Lists(column) if nested else column.to_numpy()


def padded_width(longest: int) -> int:
    """Width of a batch whose longest row has this many tokens: on a grid of a 32nd to a 16th, so that shapes recur.

    Every new shape costs a compilation on a CPU (0.1 s and 10 MB for a small encoder) and a fresh block on a GPU; the
    grid costs 2 % more padding on average, and none up to 32 tokens.
    """
    grid = 1 << max(0, (longest - 1).bit_length() - 5)
    return -(-longest // grid) * grid


def shape_of(lengths: Ints, *, packed: bool = False) -> tuple[int, int]:
    """Rows and width that a model is given for rows of these lengths; packed, they are one."""
    if packed:
        return 1, padded_width(int(lengths.sum()))
    return len(lengths), padded_width(int(lengths.max()))


def micro_batches(rows: Ints, lengths: Ints, budget: int, *, packed: bool = False) -> list[Ints]:
    """Cut rows into micro-batches of at most `budget` tokens, padding counted; a row longer than that goes alone.

    A few cuts are of about equal size: a small rest would be one more shape.

    Args:
        rows: Row numbers.
        lengths: Length of every row of the table.
        budget: Most tokens of rows times longest row.
        packed: Rows follow each other in one sequence, so that there is no padding between them.
    """
    ordered = rows[np.argsort(lengths[rows], kind="stable")[::-1]]
    if packed:
        return _packed_cuts(ordered, lengths, budget)
    cuts, start = [], 0
    while start < len(ordered):
        most = max(1, budget // max(1, padded_width(int(lengths[ordered[start]]))))
        left = len(ordered) - start
        pieces = math.ceil(left / most)
        size = math.ceil(left / pieces) if pieces <= EQUAL_PIECES else most
        cuts.append(ordered[start : start + size])
        start += size
    return cuts


def _packed_cuts(ordered: Ints, lengths: Ints, budget: int) -> list[Ints]:
    """Cuts of about equally many tokens, as few as fit."""
    ends = np.cumsum(lengths[ordered])
    pieces = max(1, math.ceil(int(ends[-1]) / budget))
    while pieces < len(ordered):
        marks = ends[-1] * np.arange(1, pieces) / pieces
        cuts = [cut for cut in np.split(ordered, np.searchsorted(ends, marks)) if len(cut)]
        if all(len(cut) == 1 or int(lengths[cut].sum()) <= budget for cut in cuts):
            return cuts
        pieces += 1
    return np.split(ordered, len(ordered))


class EpochBatches:
    """Batch sampler: as many rows in every epoch as there are, in an order that seed and epoch alone decide.

    Every row once; or, balanced, every class equally often.

    Args:
        lengths: Length of every row.
        global_batch_size: Rows per optimiser step, over all processes.
        seed: The recipe's seed.
        balance: Class of every row, where classes are to be seen equally often.
        rank: This process; it takes every `world`-th row of each batch, so that the step's rows are the same on any
            number of devices.
        world: Number of processes.
    """

    def __init__(
        self,
        lengths: Ints,
        global_batch_size: int,
        seed: int,
        *,
        balance: Ints | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._lengths = lengths
        self._size = global_batch_size
        self._seed = seed
        self._classes = [] if balance is None else [np.flatnonzero(balance == name) for name in np.unique(balance)]
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
        order = random.permutation(self._balanced() if self._classes else len(self._lengths))
        bucket = self._size * BUCKET_STEPS
        batches: list[Ints] = []
        for start in range(0, len(order), bucket):
            rows = order[start : start + bucket]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += [rows[i : i + self._size] for i in range(0, len(rows), self._size)]
        for index in random.permutation(len(batches)):
            yield batches[index][self._rank :: self._world].tolist()

    def _balanced(self) -> Ints:
        """The epoch's rows, as many of each class but for a remainder.

        Each class deals its rows round after round, shuffled anew in every round, and goes on in the next epoch where
        it was: no row is seen twice before all others of its class were seen.
        """
        share, left = divmod(len(self._lengths), len(self._classes))
        drawn = []
        for number, rows in enumerate(self._classes):
            wanted = share + (number < left)
            first = self._epoch * wanted
            rounds = range(first // len(rows), -(-(first + wanted) // len(rows)))
            dealt = [np.random.default_rng([self._seed, number, each]).permutation(rows) for each in rounds]
            begin = first - rounds.start * len(rows)
            drawn.append(np.concatenate(dealt)[begin : begin + wanted])
        return np.concatenate(drawn)
