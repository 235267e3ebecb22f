"""Lessons: tokens that teach some of the training rows of other tokens; validation and test rows are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.store import link
from tasks.tokenize import Stream

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

UNCHANGED = ("validation.arrow", "test.arrow", "meta.json")
"""Files of the tokens that are the same here."""


def write_lessons(
    tokens: Path, out: Path, chosen: Callable[[pa.RecordBatch], npt.NDArray[np.bool_]]
) -> Stream:  # fmt: skip
    """Write those training rows that are chosen; rows pass in batches.

    Args:
        tokens: Folder of the tokenize artifact.
        out: Where to write.
        chosen: Mask of a batch's rows that are learnt.

    Returns:
        What was written; where no row was chosen, the folder has no training rows.
    """
    with Stream(out / "train.arrow") as stream:
        for batch in training_batches(tokens):
            stream.write(batch.filter(mask(chosen(batch))))
    for name in UNCHANGED:
        link(tokens / name, out / name)
    return stream


def training_batches(tokens: Path) -> Iterator[pa.RecordBatch]:
    """The training rows of a folder with tokens, a batch at a time."""
    import pyarrow as pa

    with pa.memory_map(str(tokens / "train.arrow")) as source, pa.ipc.open_stream(source) as stream:
        yield from stream


def mask(chosen: npt.NDArray[np.bool_]) -> pa.Array:
    """A mask as Arrow has it."""
    import pyarrow as pa

    return pa.array(chosen)


def has_classes(batch: pa.RecordBatch) -> bool:
    """Whether every row has one class for a label, so that rows can be counted by it."""
    import pyarrow as pa

    return "labels" in batch.schema.names and pa.types.is_integer(batch["labels"].type)
