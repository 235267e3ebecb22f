"""A part of the training rows: what a model would learn from if there were no more of them.

Every row has a number in [0, 1) that the seed and its id decide; a share of the rows is those with a smaller one. So a
share is contained in every larger one, the order of the rows plays no part, and a row that is chosen stays chosen as
the data grows. Each label's rows are drawn alike; its row with the smallest number is always there, so that no label
is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.records import Artifact
from tasks.context import Context
from tasks.held_out import known_by
from tasks.lessons import has_classes, training_batches, write_lessons
from tasks.stage import stage_task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Numbers = npt.NDArray[np.float64]


def subset_rows(*, share: float, seed: int, tokens: Path, out: Path) -> dict[str, Any]:
    """Write tokens whose training rows are a share of those in `tokens`.

    Args:
        share: In (0, 1].
        seed: Another one chooses other rows.
        tokens: Folder of the tokenize artifact.
        out: Where to write.

    Returns:
        `rows`: texts that are learnt; `examples`: these or, where texts were cut into them, their windows; `tokens`.
    """
    import numpy as np

    lowest = _lowest(tokens, seed)
    written = [np.empty(0)]

    def chosen(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        numbers = numbers_of(batch["id"].to_pylist(), seed)
        classes, places = np.unique(_classes(batch), return_inverse=True)
        least = np.array([lowest[int(one)] for one in classes])[places]
        here: npt.NDArray[np.bool_] = (numbers < share) | (numbers == least)
        written.append(np.unique(numbers[here]))
        return here

    stream = write_lessons(tokens, out, chosen)
    return {"rows": len(np.unique(np.concatenate(written))), "examples": stream.rows, "tokens": stream.tokens}


def numbers_of(ids: list[str], seed: int) -> Numbers:
    """Each row's number in [0, 1), `[rows]`."""
    import numpy as np

    numbers: Numbers = (known_by(f"{seed}:{name}" for name in ids) >> np.uint64(11)).astype(np.float64) / 2**53
    return numbers


def _lowest(tokens: Path, seed: int) -> dict[int, float]:
    """Class → smallest number of its rows."""
    import numpy as np

    found: dict[int, float] = {}
    for batch in training_batches(tokens):
        numbers, classes = numbers_of(batch["id"].to_pylist(), seed), _classes(batch)
        for one in np.unique(classes).tolist():
            found[one] = min(found.get(one, 1.0), float(numbers[classes == one].min()))
    return found


def _classes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The class of each row; where labels are no classes, all rows are alike."""
    import numpy as np

    labels: npt.NDArray[np.int64] = (
        batch["labels"].to_numpy() if has_classes(batch) else np.zeros(batch.num_rows, np.int64)
    )
    return labels


@stage_task
def subset(context: Context, tokens: Artifact, share: float) -> Artifact:
    """Choose a share of the training rows."""
    return context.artifact(
        "subset",
        subset_rows,
        settings={"share": share, "seed": context.recipe.train.seed},
        inputs={"tokens": tokens},
        libraries=("numpy", "pyarrow"),
        part_of="train",
        part=f"{share:g} by {context.recipe.train.seed}",
    )
