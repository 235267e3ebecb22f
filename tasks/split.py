"""Split: train, validation and test rows, so that what is measured was not learnt.

A row's side follows from its group or text alone, from its time, or from the source, so it keeps its side as the data
grows. Rows that resemble a held-out row are taken out, wherever the sides come from; see `near_duplicates`. Rows pass
in batches; of each only a side, two numbers and what it resembles are kept. Does not cover texts alike in meaning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.data import HashSplit, OfficialSplit, Split, TimeSplit
from schemas.errors import DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.families import MEASURING, family_of
from tasks.labels import Labelled
from tasks.near_duplicates import NOWHERE, REASONS, TEST, TRAIN, VALIDATION, Findings, Rows, find
from tasks.rows import BATCH_ROWS, Writer, batches, files
from tasks.rules.several import fingerprints
from tasks.signatures import Signatures, digests, normalised, signature_part
from tasks.split_checks import label_shift, refuse_unusable, smallest_visible_difference, warn
from tasks.stage import stage_task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

SIDES = ("train", "validation", "test")
CODES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
NAMES = {code: name for name, code in CODES.items()}
DEALT = "sides.u8"
"""Code of every clean row's side, one byte each, in the order of the clean rows; `NOWHERE` for what is taken out."""
SPELLINGS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
"""What sources call their sides, in lower case."""
OWN_COLUMNS = frozenset({"id", "source", "row", "group", "time", "split"})
"""Columns of every clean row; those of the task and `meta.` ones are beside them."""
LIKENESS = "__likeness"
UNTIMED = "no_time"


def split_rows(
    split: Split, task: TaskSection, clean: Path, signatures: Sequence[Path] | None, out: Path
) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet`, `test.parquet`, `leaked.parquet` and `meta.json`.

    The rows of each are in the order of the clean rows, and `sides.u8` says where each clean row went. The meta is that
    of the clean rows, and what the training rows alone say of the task.

    Args:
        split: How sides are decided.
        task: The recipe's task.
        clean: Folder with the clean rows.
        signatures: What `signature_part` wrote for each file of them; none: only equal texts are found across sides.
        out: Where to write.

    Returns:
        Rows of each side, `leaked` (taken out) and `leaked_by_reason`; `labels` of each side and `label_shift` from the
        whole; `smallest_visible_difference` of the test.

    Raises:
        DataError: The source names a side that is none, a side is empty or too small, or train lacks a label.
    """
    import numpy as np
    import polars as pl

    meta = json.loads((clean / "meta.json").read_text())
    labelled = Labelled.by(meta)
    paths = files(clean / "rows")
    taught = [*meta["target_columns"], *meta.get("further_text_columns", ())]
    rows = deal(split, paths, meta["text_column"], taught)
    kept = Signatures.open(signatures) if signatures else None
    found = find(rows, kept, split.near_duplicates.threshold)

    np.where(found.why == 0, rows.sides, np.uint8(NOWHERE)).tofile(out / DEALT)
    counts, labels, reasons = _write(paths, rows.sides, found, labelled, out)
    refuse_unusable(split, counts, labels, set(meta["labels"]) if labelled else set())
    shifts = label_shift(labels)
    visible = smallest_visible_difference(counts["test"])
    warn(counts["test"], visible, shifts)
    meta |= family_of(task).of_training(pl.scan_parquet(out / "train.parquet", glob=False), meta)
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))
    return {
        **counts,
        "leaked_by_reason": reasons,
        "labels": labels,
        "label_shift": shifts,
        "smallest_visible_difference": visible,
    }


def deal(split: Split, paths: Sequence[Path], text_column: str, taught: Sequence[str]) -> Rows:
    """The side of every row, and what it is compared by.

    Args:
        split: How sides are decided.
        paths: Files of clean rows.
        text_column: What sides and likeness go by.
        taught: Columns of which rows of one text may differ and both teach: targets, and what is asked of the text.

    Raises:
        DataError: The source names a side that is none, or the rows have no times to go by.
    """
    import numpy as np
    import polars as pl

    _refuse_timeless(split, paths)
    optional = [name for name in ("group", "time", "split") if name in _schema(paths)]
    wanted = ["id", *dict.fromkeys([text_column, *taught]), *optional]
    sides, keys, ranks, targets = [], [], [], []
    dealt: list[npt.NDArray[np.uint8]] = []
    for batch in batches(paths, wanted):
        rows = batch.with_columns(normalised(pl.col(text_column)).alias(LIKENESS))
        keys.append(fingerprints(rows[LIKENESS]))
        ranks.append(digests(rows["id"]))
        targets.append(fingerprints(rows.select(pl.concat_str(taught, separator="\0")).to_series()))
        match split:
            case HashSplit():
                sides.append(_codes(hash_sides(rows, split.version, _bounds(split))))
            case TimeSplit():
                sides.append(_codes(time_sides(split, rows)))
            case OfficialSplit():
                sides.append(_codes(official_sides(rows)))
                dealt.append(_codes(hash_sides(rows, split.version, {"validation": split.validation})))
    every = np.concatenate(sides)
    if dealt:
        _refuse_unknown_sides(every, paths)
        if not (every == VALIDATION).any():
            every = np.where(every == TRAIN, np.concatenate(dealt), every)
    return Rows(every, np.concatenate(keys), np.concatenate(ranks), np.concatenate(targets))


def hash_sides(rows: pl.DataFrame, version: int, bounds: Mapping[str, float]) -> pl.Series:
    """The side of each row, by a number in [0, 1) that its group or normalised text is hashed to.

    Args:
        rows: Rows with their normalised text, and perhaps their group.
        version: Frozen; another one gives every row another number.
        bounds: Side → where it ends, ascending; what is left is for training.
    """
    import numpy as np
    import polars as pl

    group = [pl.col("group")] if "group" in rows.columns else []
    keys = rows.select(pl.format("{}:{}", pl.lit(str(version)), pl.coalesce(*group, LIKENESS))).to_series()
    numbers = (digests(keys) >> np.uint64(11)).astype(np.float64) / 2**53
    side = pl.lit("train")
    for name, end in reversed(list(bounds.items())):
        side = pl.when(pl.col("u") < end).then(pl.lit(name)).otherwise(side)
    return pl.DataFrame({"u": numbers}).select(side).to_series()


def official_sides(rows: pl.DataFrame) -> pl.Series:
    """The side of each row, by the source; null where that is none."""
    import polars as pl

    spelt = rows["split"].str.strip_chars().str.to_lowercase()
    return spelt.replace_strict(SPELLINGS, default=None, return_dtype=pl.String)


def time_sides(split: TimeSplit, rows: pl.DataFrame) -> pl.Series:
    """The side of each row, by its time; null where it has none."""
    import polars as pl

    moment = pl.col("time")
    side = (
        pl.when(moment >= _in_utc(split.test_from))
        .then(pl.lit("test"))
        .when(moment >= _in_utc(split.validation_from))
        .then(pl.lit("validation"))
        .when(moment.is_not_null())
        .then(pl.lit("train"))
    )
    return rows.select(side).to_series()


class Buffered:
    """Writes frames to one file in row groups of `BATCH_ROWS`, however small they come."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0

    def write(self, frame: pl.DataFrame) -> None:
        """Append `frame`, now or later."""
        self._waiting.append(frame)
        self._rows += frame.height
        if self._rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        import polars as pl

        if self._rows:
            self._writer.write(pl.concat(self._waiting))
        self._waiting, self._rows = [], 0


def _write(
    paths: Sequence[Path], sides: npt.NDArray[np.uint8], found: Findings, labelled: Labelled | None, out: Path
) -> tuple[dict[str, int], dict[str, dict[str, int]], dict[str, int]]:
    """Write every row to its file.

    Returns:
        Rows of each file, rows of each label on each side, rows taken out by reason.
    """
    import polars as pl

    from schemas import frames

    schema = _schema(paths)
    roles = [name for name in schema if name not in OWN_COLUMNS and not name.startswith(frames.META_PREFIX)]
    looks = frames.clean_rows(roles)
    leaked_schema = pl.Schema([*schema.items(), ("reason", pl.String), ("twin", pl.String)])
    labels: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(Writer(out / f"{name}.parquet", leaked_schema if name == "leaked" else schema))
            for name in (*SIDES, "leaked")
        }
        buffers = {name: Buffered(writer) for name, writer in writers.items()}
        for batch in _judged(paths, sides, found):
            looks.validate(batch.select(schema.names()), lazy=True)
            for (name,), part in batch.partition_by("__side", as_dict=True).items():
                buffers[name].write(part.select(leaked_schema.names() if name == "leaked" else schema.names()))
                if name == "leaked":
                    reasons.update(dict(part["reason"].value_counts().iter_rows()))
                elif labelled:
                    labels[name].update(labelled.counts(part))
        for buffer in buffers.values():
            buffer.flush()
    counts = {name: writer.rows for name, writer in writers.items()}
    return counts, {side: dict(sorted(labels[side].items())) for side in SIDES}, dict(sorted(reasons.items()))


def _judged(paths: Sequence[Path], sides: npt.NDArray[np.uint8], found: Findings) -> Iterator[pl.DataFrame]:
    """The rows with `__side`, or why they are taken out and the id of the row they resemble."""
    import numpy as np
    import polars as pl

    names = pl.Series([NAMES.get(code) for code in range(NOWHERE + 1)], dtype=pl.String)
    whys = pl.Series([None, *REASONS[1:], UNTIMED], dtype=pl.String)
    why = np.where(sides == NOWHERE, len(REASONS), found.why).astype(np.uint8)
    wanted = np.unique(found.twin[found.twin >= 0])
    ids = _ids(paths, wanted)
    start = 0
    for batch in batches(paths):
        here = slice(start, start + batch.height)
        start += batch.height
        twin = found.twin[here]
        place = pl.Series(np.searchsorted(wanted, twin), dtype=pl.UInt32).zip_with(
            pl.Series(twin >= 0), pl.Series([None], dtype=pl.UInt32)
        )
        reason = whys.gather(why[here])
        yield batch.with_columns(
            reason.alias("reason"),
            ids.gather(place).alias("twin"),
            pl.when(reason.is_null()).then(names.gather(sides[here])).otherwise(pl.lit("leaked")).alias("__side"),
        )


def _ids(paths: Sequence[Path], wanted: npt.NDArray[np.int32]) -> pl.Series:
    """The ids of the rows at these places, which ascend."""
    import numpy as np
    import polars as pl

    parts = [pl.Series([], dtype=pl.String)]
    start = 0
    for batch in batches(paths, ["id"]):
        first, last = np.searchsorted(wanted, [start, start + batch.height])
        parts.append(batch["id"].gather(wanted[first:last] - start))
        start += batch.height
    return pl.concat(parts)


def _codes(sides: pl.Series) -> npt.NDArray[np.uint8]:
    import polars as pl

    return sides.replace_strict(CODES, default=NOWHERE, return_dtype=pl.UInt8).to_numpy()


def _schema(paths: Sequence[Path]) -> pl.Schema:
    import polars as pl

    return pl.Schema(pl.read_parquet_schema(paths[0]))


def _bounds(split: HashSplit) -> dict[str, float]:
    return {"test": split.test, "validation": split.test + split.validation}


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _refuse_timeless(split: Split, paths: Sequence[Path]) -> None:
    if split.kind == "time" and "time" not in _schema(paths):
        raise DataError(
            Problem("collect.time_column", None, "rows have no time to be split by", "name the column that has it")
        )


def _refuse_unknown_sides(sides: npt.NDArray[np.uint8], paths: Sequence[Path]) -> None:
    import polars as pl

    if not (sides == NOWHERE).any():
        return
    spelt = pl.concat(
        rows.filter(official_sides(rows).is_null())["split"].unique() for rows in batches(paths, ["split"])
    )
    unknown = spelt.unique().sort().to_list()
    raise DataError(
        Problem("collect.split_column", unknown, "names no side of a split", f"write one of {', '.join(SPELLINGS)}")
    )


def _signatures(context: Context, cleaned: Artifact) -> list[Artifact]:
    """The signatures of each file of the clean rows; only of a new file are they computed."""
    manifest = context.store.find(cleaned.stage, cleaned.key)
    assert manifest is not None
    settings = context.recipe.split.near_duplicates
    return [
        context.artifact(
            "signature-part",
            signature_part,
            settings={
                "sha256": about["sha256"],
                "text_column": context.family.text_columns[0],
                "permutations": settings.permutations,
                "bands": settings.bands,
            },
            unkeyed={"file": name, "folder": lambda: context.path(cleaned)},
            libraries=("datasketch", "numpy", "polars"),
            part_of="split",
            part=name,
        )
        for name, about in sorted(manifest.files.items())
        if name.startswith("rows/")
    ]


@stage_task
def split(context: Context, cleaned: Artifact) -> Artifact:
    """Deal the clean rows to train, validation and test."""
    settings = context.recipe.split
    search = settings.near_duplicates.search
    return context.artifact(
        "split",
        split_rows,
        settings={"split": settings, "task": context.recipe.task.taught},
        inputs={"clean": cleaned, "signatures": _signatures(context, cleaned) if search else []},
        modules=(type(context.family).__module__,),
        apart_from=MEASURING,
        libraries=("numpy", "pandera", "polars"),
    )
