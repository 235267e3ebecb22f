"""Split: train, validation and test rows, so that what is measured was not learnt.

A row's side follows from its group or its text alone, so it keeps its side as the data grows, and texts that differ
only in links, mentions, case or punctuation share one. Does not cover splits by time, or texts alike in other ways.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.data import HashSplit, OfficialSplit, Split
from schemas.errors import DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

SIDES = ("train", "validation", "test")
SPELLINGS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
"""What sources call their sides, in lower case."""
LINK_OR_MENTION = r"https?://\S+|www\.\S+|\brt\s+@\w+|@\w+"
NOT_ALPHANUMERIC = r"(?:[^\p{L}\p{M}\p{N}]|[\x{FE00}-\x{FE0F}])+"
"""Combining marks are part of words in many scripts; variation selectors are part of emoji."""
OWN_COLUMNS = frozenset({"id", "source", "row", "group", "split"})
"""Columns of every clean row; the others are the task's."""
SIDE = "__side"
LIKENESS = "__likeness"


def split_rows(split: Split, clean: Path, out: Path) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet`, `test.parquet`, `leaked.parquet` and a copy of `meta.json`.

    Args:
        split: How sides are decided.
        clean: Folder with the clean rows.
        out: Where to write.

    Returns:
        Rows of each side, `leaked` (taken from train and validation), and `labels` of each side.

    Raises:
        DataError: The source names a side that is none, a side is empty, or train lacks a label.
    """
    import polars as pl

    from schemas import frames

    rows = pl.read_parquet(clean / "rows.parquet", glob=False)
    meta = json.loads((clean / "meta.json").read_text())
    frames.clean_rows(column for column in rows.columns if column not in OWN_COLUMNS).validate(rows, lazy=True)

    rows = rows.with_columns(normalised(pl.col(meta["text_column"])).alias(LIKENESS))
    assert split.kind != "time"
    sides = hash_sides(rows, split.version, _bounds(split)) if split.kind == "hash" else official_sides(split, rows)
    rows = rows.with_columns(sides.alias(SIDE))
    rows = rows.with_columns(pl.when(leaks()).then(pl.lit("leaked")).otherwise(SIDE).alias(SIDE))
    dealt = {side: rows.filter(pl.col(SIDE) == side).drop(SIDE, LIKENESS) for side in (*SIDES, "leaked")}
    labels = {side: _label_counts(dealt[side]) for side in SIDES}
    _refuse_unusable(split, dealt, set(meta.get("labels", ())) - set(labels["train"]))

    for name, frame in dealt.items():
        frame.write_parquet(out / f"{name}.parquet")
    shutil.copyfile(clean / "meta.json", out / "meta.json")
    return {**{name: frame.height for name, frame in dealt.items()}, "labels": labels}


def normalised(text: pl.Expr) -> pl.Expr:
    """What near-identical texts have in common: letters and digits, lower-case, without links and mentions.

    A text that has none of these stands for itself.
    """
    import polars as pl

    lower = text.str.to_lowercase()
    bare = lower.str.replace_all(LINK_OR_MENTION, " ").str.replace_all(NOT_ALPHANUMERIC, " ").str.strip_chars()
    return pl.when(bare == "").then(lower).otherwise(bare)


def hash_sides(rows: pl.DataFrame, version: int, bounds: Mapping[str, float]) -> pl.Series:
    """The side of each row, by a number in [0, 1) that its group or normalised text is hashed to.

    Args:
        rows: Rows with their normalised text, and perhaps their group.
        version: Frozen; another one gives every row another number.
        bounds: Side → where it ends, ascending; what is left is for training.
    """
    import polars as pl

    group = [pl.col("group")] if "group" in rows.columns else []
    keys = rows.select(pl.coalesce(*group, LIKENESS)).to_series()
    numbers = pl.DataFrame({"u": [_uniform(version, key) for key in keys]}, schema={"u": pl.Float64})
    side = pl.lit("train")
    for name, end in reversed(list(bounds.items())):
        side = pl.when(pl.col("u") < end).then(pl.lit(name)).otherwise(side)
    return numbers.select(side).to_series()


def official_sides(split: OfficialSplit, rows: pl.DataFrame) -> pl.Series:
    """The side of each row, by the source; validation rows are dealt from train where the source has none.

    Raises:
        DataError: The source names a side that is none.
    """
    import polars as pl

    spelt = rows["split"].str.strip_chars().str.to_lowercase()
    sides = spelt.replace_strict(SPELLINGS, default=None, return_dtype=pl.String)
    unknown = rows.filter(sides.is_null())["split"].unique().sort().to_list()
    if unknown:
        raise DataError(
            Problem("collect.split_column", unknown, "names no side of a split", f"write one of {', '.join(SPELLINGS)}")
        )
    if "validation" in sides:
        return sides
    dealt = hash_sides(rows, split.version, {"validation": split.validation})
    return pl.select(pl.when(sides == "train").then(dealt).otherwise(sides)).to_series()


def leaks() -> pl.Expr:
    """A row whose normalised text is held out from it: test texts from all others, validation texts from training."""
    import polars as pl

    side = pl.col(SIDE)
    in_test = (side == "test").any().over(LIKENESS)
    in_validation = (side == "validation").any().over(LIKENESS)
    return ((side != "test") & in_test) | ((side == "train") & in_validation)


def _uniform(version: int, key: str) -> float:
    digest = hashlib.blake2b(f"{version}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _bounds(split: HashSplit) -> dict[str, float]:
    return {"test": split.test, "validation": split.test + split.validation}


def _label_counts(rows: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(rows["label"].value_counts().iter_rows())) if "label" in rows.columns else {}


def _refuse_unusable(split: Split, dealt: Mapping[str, pl.DataFrame], lacking: set[str]) -> None:
    problems = []
    total = sum(frame.height for frame in dealt.values())
    for side in SIDES:
        if dealt[side].is_empty():
            taken = f" after {dealt['leaked'].height} that leaked were taken" if dealt["leaked"].height else ""
            remedy = (
                "collect more rows, or give this side a larger share" if split.kind == "hash" else "name its source"
            )
            problems.append(Problem("split", split.kind, f"none of {total:,} rows is for {side}{taken}", remedy))
    if lacking and not problems:
        remedy = "remove the label or collect rows that have it"
        problems.append(Problem("task.labels", sorted(lacking), "no training row has this label", remedy))
    if problems:
        raise DataError(problems)


@stage_task
def split(context: Context, cleaned: Artifact) -> Artifact:
    """Deal the clean rows to train, validation and test."""
    return context.artifact(
        "split",
        split_rows,
        settings={"split": context.recipe.split},
        inputs={"clean": cleaned},
        libraries=("pandera", "polars"),
    )
