"""Clean: repair the text, then keep each row or set it aside with one reason.

Repairs mojibake, entities, Unicode form, invisible characters and white space; sets aside rows without text, out of the
length bounds, unfit for the task, contradicting each other, or repeated. What happens to a row does not depend on the
order of the rows. Does not cover near duplicates (the split keeps those on one side), languages or personal data.
"""

from __future__ import annotations

import json
import re
import unicodedata
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.data import Clean
from schemas.errors import DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.families import MEASURING, Family, family_of
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

MAY_NEED_REPAIR = r"[^\t\n -~]|&#?[0-9A-Za-z]{1,24};"
"""Text without a match is returned by ftfy as it is: ASCII that prints, with nothing shaped like an entity."""
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Soft hyphens, zero-width spaces, marks of direction. Joiners (U+200C, U+200D) stay: scripts and emoji need them."""
REASON = "reason"
COMPARED = "__compared"


def clean_rows(rules: Clean, task: TaskSection, raw: Path, out: Path) -> dict[str, Any]:
    """Write `rows.parquet` (`schemas.frames.CleanRows`), `quarantine.parquet`, and `meta.json`: what the rows teach.

    Args:
        rules: The recipe's rules.
        task: The recipe's task; its family adds rules of its own.
        raw: Folder with the collected rows.
        out: Where to write.

    Returns:
        Counts: `rows` kept, `collected`, `quarantined` by reason, `quarantined_share`, `repaired`, `labels`.

    Raises:
        DataError: More than `max_quarantined` of the rows fell out, or none is left.
    """
    import polars as pl

    from schemas import frames

    family = family_of(task)
    roles = list(task.columns())
    collected = frames.raw_rows(roles).validate(pl.read_parquet(raw / "rows.parquet", glob=False), lazy=True)
    unreadable = pl.read_parquet(raw / "quarantine.parquet", glob=False)

    repaired = repair(rules, family, collected)
    judged = judge(rules, task, family, repaired)
    kept = judged.filter(pl.col(REASON).is_null()).drop(REASON)
    fallen = judged.filter(pl.col(REASON).is_not_null())
    quarantine = pl.concat([fallen, unreadable], how="diagonal").select("source", "row", "id", *roles, "raw", REASON)
    total = kept.height + quarantine.height
    _refuse_great_loss(rules, kept, quarantine)

    meta = {**family.describe(task, kept), "text_column": family.text_columns[0]}
    frames.clean_rows(roles).validate(kept, lazy=True).write_parquet(out / "rows.parquet")
    quarantine.write_parquet(out / "quarantine.parquet")
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))
    return {
        "rows": kept.height,
        "collected": total,
        "quarantined": _counts(quarantine, REASON),
        "quarantined_share": quarantine.height / total,
        "repaired": _changed(collected, repaired, family.text_columns),
        "labels": _counts(kept, "label") if "label" in roles else {},
    }


def repair(rules: Clean, family: Family, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with their text put right, and no white space around their targets."""
    import polars as pl

    for column in family.text_columns:
        if rules.fix_text:
            rows = rows.with_columns(fix_text(rows[column]))
        if rules.collapse_whitespace:
            rows = rows.with_columns(collapse_whitespace(pl.col(column)))
    targets = [column for column in family.target_columns if column not in family.text_columns]
    return rows.with_columns(pl.col(targets).str.strip_chars())


def fix_text(texts: pl.Series) -> pl.Series:
    """Each text as it was meant: see `ftfy.fix_text`; and nothing invisible in it."""
    import ftfy
    import polars as pl

    config = ftfy.TextFixerConfig(explain=False)
    doubtful = texts.str.contains(MAY_NEED_REPAIR).fill_null(value=False)
    fixed = [
        unicodedata.normalize("NFC", INVISIBLE.sub("", ftfy.fix_text(text, config))) for text in texts.filter(doubtful)
    ]
    return texts.clone().scatter(doubtful.arg_true(), pl.Series(fixed, dtype=pl.String)) if fixed else texts


def collapse_whitespace(text: pl.Expr) -> pl.Expr:
    """Every run of Unicode white space as one space, none at the ends."""
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def judge(rules: Clean, task: TaskSection, family: Family, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a column `reason`: why a row is set aside, null when it is kept. The first rule that fits names it.

    Rules about one row come before rules about several, so that a row that goes anyway takes no other with it.
    """
    import polars as pl

    alone = [*missing_text(family), *length_bounds(rules, family), *family.rejects(task)]
    reason = pl.coalesce(
        *(pl.when(unfit).then(pl.lit(name)) for name, unfit in alone),
        pl.lit(None, pl.String),
    )
    judged = rows.with_columns(reason.alias(REASON), comparable(rows[family.text_columns[0]]).alias(COMPARED))
    # Official sides are judged apart: a training row must not decide which test rows there are.
    place = [COMPARED, *(column for column in ("split",) if column in rows.columns)]
    others = [column for column in family.text_columns[1:] if column not in family.target_columns]
    if rules.drop_contradictions:
        judged = _reject(judged, "contradicting_label", contradicts([*place, *others], list(family.target_columns)))
    if rules.drop_duplicates:
        judged = _reject(judged, "duplicate", repeats([*place, *others, *family.target_columns]))
    return judged.drop(COMPARED)


def missing_text(family: Family) -> list[tuple[str, pl.Expr]]:
    """A text is null, or white space alone."""
    import polars as pl

    empty = [pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "") for column in family.text_columns]
    return [("missing_text", pl.any_horizontal(empty))]


def length_bounds(rules: Clean, family: Family) -> list[tuple[str, pl.Expr]]:
    """A text is shorter or longer than the recipe allows."""
    import polars as pl

    lengths = [pl.col(column).str.len_chars() for column in family.text_columns]
    return [
        ("too_short", pl.any_horizontal(length < rules.min_chars for length in lengths)),
        ("too_long", pl.any_horizontal(length > rules.max_chars for length in lengths)),
    ]


def contradicts(text: list[str], targets: list[str]) -> pl.Expr:
    """Another row has this text and a different target."""
    import polars as pl

    return pl.struct(targets).n_unique().over(text) > 1


def repeats(content: list[str]) -> pl.Expr:
    """Another row has this text and target, and a smaller id."""
    import polars as pl

    return pl.col("id") != pl.col("id").min().over(content)


def comparable(texts: pl.Series) -> pl.Series:
    """What two texts have in common when they differ in case and white space alone."""
    import polars as pl

    folded = [None if text is None else " ".join(text.casefold().split()) for text in texts]
    return pl.Series(texts.name, folded, dtype=pl.String)


def _reject(judged: pl.DataFrame, name: str, unfit: pl.Expr) -> pl.DataFrame:
    """The rows among those still kept that are `unfit`, which compares rows, get this reason."""
    import polars as pl

    kept = judged.filter(pl.col(REASON).is_null())
    out = kept.filter(unfit).select("id", pl.lit(name).alias("__new"))
    return judged.join(out, on="id", how="left", maintain_order="left").select(
        pl.exclude(REASON, "__new"), pl.coalesce(REASON, "__new").alias(REASON)
    )


def _changed(before: pl.DataFrame, after: pl.DataFrame, columns: tuple[str, ...]) -> int:
    import polars as pl

    changed = pl.any_horizontal(before[column].ne_missing(after[column]) for column in columns)
    return int(before.select(changed.sum()).item())


def _counts(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(sorted(rows[column].value_counts().iter_rows()))


def _refuse_great_loss(rules: Clean, kept: pl.DataFrame, quarantine: pl.DataFrame) -> None:
    total = kept.height + quarantine.height
    share = quarantine.height / total
    if kept.height and share <= rules.max_quarantined:
        return
    lost = f"{share:.1%} of {total:,} rows fell out" if kept.height else f"none of {total:,} rows is left"
    remedy = "fix the rows, or the rule that took them" + (
        f", or raise it to {ceil(100 * share) / 100:.2f}" if kept.height else ""
    )
    raise DataError(
        Problem("clean.max_quarantined", rules.max_quarantined, f"{lost}: {_worst_reasons(quarantine)}", remedy)
    )


def _worst_reasons(quarantine: pl.DataFrame, most: int = 3) -> str:
    """The commonest reasons, each with its count and its first row."""
    import polars as pl

    worst = (
        quarantine.sort("source", "row")
        .group_by(REASON)
        .agg(pl.len().alias("count"), pl.first("row"), pl.first("source"))
        .sort(["count", REASON], descending=[True, False])
    )
    shown = [f"{reason} {count:,} (row {row} of {source})" for reason, count, row, source in worst.iter_rows()]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


@stage_task
def clean(context: Context, raw: Artifact) -> Artifact:
    """Repair the rows, and set aside those that are not fit to learn from."""
    return context.artifact(
        "clean",
        clean_rows,
        settings={"rules": context.recipe.clean, "task": context.recipe.task},
        inputs={"raw": raw},
        modules=(type(context.family).__module__,),
        apart_from=MEASURING,
        libraries=("ftfy", "pandera", "polars"),
    )
