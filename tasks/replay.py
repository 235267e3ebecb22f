"""Replay: a model that goes on learning is given the rows it has not learnt, and a share of those it has.

Of rows that are never seen again a network forgets what it knew; a part of them, learnt again beside the new ones,
keeps most of it. A row is known by its normalised text (`tasks.held_out`), so one whose label was corrected counts as
learnt. Which rows are learnt again follows from their texts alone: a row that is chosen stays chosen as the data grows.
Of a label that would have no row left, all are learnt again. Rows pass in batches; of each only two numbers are kept.

References:
    M. McCloskey, N. Cohen (1989), Catastrophic Interference in Connectionist Networks.
    A. Robins (1995), Catastrophic Forgetting, Rehearsal and Pseudorehearsal.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.held_out import among, known_by, row_hashes
from tasks.lessons import has_classes, mask, training_batches, write_lessons
from tasks.stage import stage_task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from tasks.held_out import Hashes


def replay_rows(
    *, share: float, known: str, learnt: Hashes, split: Path, tokens: Path, out: Path
) -> dict[str, Any]:  # fmt: skip
    """Write tokens whose `train.arrow` has the rows that are new, and of the others `share`.

    Args:
        share: Of the rows that the model has learnt.
        known: What `learnt` is known by; read for the key alone.
        learnt: Hashes of the rows that it has learnt, sorted; see `tasks.held_out.training_hashes`.
        split: Folder of the split artifact.
        tokens: Folder of the tokenize artifact.
        out: Where to write.

    Returns:
        Training rows that are `new`, that are `known`, and of these the `replayed` ones; their real `tokens`.

    Raises:
        DataError: Nothing is left to learn.
    """
    import numpy as np

    del known
    ids, new, again = _chosen(split, learnt, share)
    kept, fresh = np.unique(ids[new | again]), np.unique(ids[new])
    lost = _labels_lost(tokens, kept)
    written = [np.empty(0, np.uint64)]

    def learn(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        found = known_by(batch["id"].to_pylist())
        chosen = among(found, kept) | _has_one_of(lost, batch)
        written.append(np.unique(found[chosen]))
        return chosen

    stream = write_lessons(tokens, out, learn)
    _refuse_nothing(share, stream.rows)
    rows = np.unique(np.concatenate(written))
    count = int(among(rows, fresh).sum())
    return {"new": count, "known": int((~new).sum()), "replayed": len(rows) - count, "tokens": stream.tokens}


def count_new(split: Path, learnt: Hashes) -> tuple[int, int]:
    """Training rows that a model has not learnt, and all of them.

    Args:
        split: Folder of the split artifact.
        learnt: Hashes of the rows that it has learnt, sorted.
    """
    new = rows = 0
    for _, hashes in row_hashes(split, "train"):
        rows += len(hashes)
        new += int((~among(hashes, learnt)).sum())
    return new, rows


def _chosen(split: Path, learnt: Hashes, share: float) -> tuple[Hashes, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of every training row: the hash of its id, whether it is new, and whether it is learnt again."""
    import numpy as np

    ids, new, again = [np.empty(0, np.uint64)], [np.empty(0, bool)], [np.empty(0, bool)]
    for names, hashes in row_hashes(split, "train"):
        unknown = ~among(hashes, learnt)
        number = (hashes >> np.uint64(11)).astype(np.float64) / 2**53  # in [0, 1)
        ids.append(known_by(names))
        new.append(unknown)
        again.append(~unknown & (number < share))
    return np.concatenate(ids), np.concatenate(new), np.concatenate(again)


def _labels_lost(tokens: Path, kept: Hashes) -> list[int]:
    """The classes that some row has, but none of those that are kept; none where labels are not classes."""
    there, left = set[int](), set[int]()
    for batch in training_batches(tokens):
        if not has_classes(batch):
            return []
        there.update(batch["labels"].unique().to_pylist())
        chosen = batch.filter(mask(among(known_by(batch["id"].to_pylist()), kept)))
        left.update(chosen["labels"].unique().to_pylist())
    return sorted(there - left)


def _has_one_of(labels: list[int], batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    import numpy as np

    return np.isin(batch["labels"].to_numpy(), labels) if labels else np.zeros(batch.num_rows, bool)


def _refuse_nothing(share: float, rows: int) -> None:
    if not rows:
        rule = "leaves nothing to learn: every row that is new is too long"
        raise DataError(Problem("retrain.replay", share, rule, "raise it, or set retrain.start_from to base"))


@stage_task
def replay(context: Context, sides: Artifact, tokens: Artifact, learnt: Hashes) -> Artifact:
    """Choose the rows that a model which goes on learning is given."""
    return context.artifact(
        "replay",
        replay_rows,
        settings={"share": context.recipe.retrain.replay, "known": hashlib.sha256(learnt.tobytes()).hexdigest()},
        inputs={"split": sides, "tokens": tokens},
        unkeyed={"learnt": learnt},
        libraries=("numpy", "polars", "pyarrow"),
        part_of="train",
    )
