"""Cleaning of one file of rows, as far as it concerns each row alone: repair, then keep it or name a reason.

Reads and writes batch by batch. What rows have to do with each other is for `tasks.clean`, which sees the digests that
are written here next to each kept row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.data import Clean
from tasks.families import Family, family_of
from tasks.rows import Writer, batches
from tasks.rules import language, moments, redaction, targets
from tasks.rules.repair import REDACT, Step, steps
from tasks.rules.several import KEYS, fingerprints

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

REASON = "reason"
COUNTS = "counts.json"
RAW_TIME = "__raw_time"


@dataclass
class Losses:
    """Rows that fell out: reason → count, and number and source of the first."""

    by_reason: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def add(self, reason: str, count: int, row: int, source: str) -> None:
        """More rows of this reason, of which the first is the one named."""
        before, first_row, first_source = self.by_reason.get(reason, (0, row, source))
        self.by_reason[reason] = (before + count, first_row, first_source)

    def add_frame(self, fallen: pl.DataFrame) -> None:
        """The rows of a frame with columns source, row and reason."""
        import polars as pl

        found = fallen.group_by(REASON, maintain_order=True).agg(pl.len(), pl.first("row"), pl.first("source"))
        for reason, count, row, source in found.iter_rows():
            self.add(reason, count, row, source)

    @property
    def counts(self) -> dict[str, int]:
        """Reason → count, by name."""
        return {reason: count for reason, (count, *_) in sorted(self.by_reason.items())}


@dataclass
class Counts:
    """What happened to the rows of one file or of all.

    Attributes:
        collected: Rows read.
        repaired: Rows whose text was changed.
        changed: Rule → rows it changed.
        lacking: Column → rows without a value there, as collected.
        losses: Rows that fell out.
    """

    collected: int = 0
    repaired: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)
    losses: Losses = field(default_factory=Losses)

    def write(self, folder: Path) -> None:
        """Leave them for `read`."""
        content = vars(self) | {"losses": self.losses.by_reason}
        (folder / COUNTS).write_text(json.dumps(content, ensure_ascii=False, indent=1))

    @classmethod
    def read(cls, folders: Iterable[Path]) -> Counts:
        """The sum of what was written to the folders, in their order."""
        total = cls()
        for folder in folders:
            part = json.loads((folder / COUNTS).read_text())
            total.collected += part["collected"]
            total.repaired += part["repaired"]
            total.changed.update(part["changed"])
            total.lacking.update(part["lacking"])
            for reason, (count, row, source) in part["losses"].items():
                total.losses.add(reason, count, row, source)
        return total


def clean_file(
    rules: Clean,
    task: TaskSection,
    *,
    sha256: str,  # noqa: ARG001  # part of the key: another file's rows are other rows
    rows: Callable[[], Path],
    out: Path,
) -> dict[str, Any]:
    """`clean_part` of a file that is only asked for when it is needed."""
    return clean_part(rules, task, rows(), out)


def clean_part(rules: Clean, task: TaskSection, rows: Path, out: Path) -> dict[str, Any]:
    """Write `rows.parquet`, the rows still kept with columns `KEYS`, `quarantine.parquet` and `counts.json`.

    Args:
        rules: The recipe's rules.
        task: The recipe's task; its family adds rules of its own.
        rows: File of collected rows.
        out: Where to write.

    Returns:
        Counts: `rows` kept, `collected`, `quarantined` by reason.
    """
    import polars as pl

    from schemas import frames

    family, counts = family_of(task), Counts()
    schema: dict[str, Any] = dict(pl.read_parquet_schema(rows))
    roles = list(task.columns())
    raw_schema = frames.raw_rows(roles)
    clean_schema = clean_frame(rules, task, family, roles)
    moment = {"time": pl.Datetime("us", "UTC")} if "time" in schema else {}
    with (
        Writer(out / "rows.parquet", pl.Schema({**schema, **moment, **dict.fromkeys(KEYS, pl.UInt64)})) as kept,
        Writer(out / "quarantine.parquet", quarantine_schema(roles)) as quarantine,
    ):
        for raw in batches([rows]):
            unlike_raw = frames.failures(raw_schema, raw)
            repaired = repair(rules, task, family, raw, counts)
            reason = judge(rules, task, family, repaired, unlike_raw)
            fit = reason.is_null()
            # What the rules let through must fit: a row that does not shows a fault in a rule or a family.
            reason = reason.scatter(fit.arg_true(), frames.failures(clean_schema, repaired.drop(RAW_TIME).filter(fit)))
            judged = repaired.with_columns(reason.alias(REASON))
            fallen = judged.filter(reason.is_not_null())
            counts.losses.add_frame(fallen)
            quarantine.write(fallen.with_columns(raw=pl.when(pl.col(REASON) == "bad_time").then(RAW_TIME)))
            still = judged.filter(reason.is_null()).drop(REASON, RAW_TIME)
            kept.write(still.with_columns(keys(family, still)))
    counts.write(out)
    return {"rows": kept.rows, "collected": counts.collected, "quarantined": counts.losses.counts}


def quarantine_schema(roles: Iterable[str]) -> pl.Schema:
    """Columns of a quarantine."""
    import polars as pl

    texts = dict.fromkeys(("id", *roles, "raw", REASON), pl.String)
    return pl.Schema({"source": pl.String, "row": pl.UInt32, **texts})


def clean_frame(rules: Clean, task: TaskSection, family: Family, roles: Iterable[str]) -> Any:
    """`schemas.frames.clean_rows` with the recipe's bounds and labels; ids may still be shared."""
    from schemas import frames

    labels = getattr(task, "labels", None)
    schema = frames.clean_rows(
        roles,
        lengths=dict.fromkeys(family.text_columns, (rules.min_chars, rules.max_chars)),
        allowed={family.labelled.column: labels} if labels and family.labelled and not family.labelled.several else {},
    )
    return schema.update_column("id", unique=False)


def repair(rules: Clean, task: TaskSection, family: Family, rows: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """The rows put right, and counted; `time` becomes a moment, with what the source wrote in `RAW_TIME`."""
    import polars as pl

    from schemas import frames

    counts.collected += rows.height
    counts.lacking.update(lacking(rows))
    before = rows
    kept = [column for column in rows.columns if column.startswith(frames.META_PREFIX)]
    followed = text_rules(rules)
    for name, rule in steps(followed):
        # A kept column may name a person as well as a text does.
        columns = (*family.text_columns, *kept) if name.startswith(REDACT) else family.text_columns
        rows = _applied(name, rule, rows, columns, counts)
    counts.repaired += _changed(before, rows, family.text_columns)
    rows = family.follow(before, rows, followed)
    own_targets = [column for column in family.target_columns if column not in family.text_columns]
    for name, rule in target_repairs(rules, task, family):
        rows = _applied(name, rule, rows, own_targets, counts)
    if "time" not in rows.columns:
        return rows.with_columns(pl.lit(None, pl.String).alias(RAW_TIME))
    return rows.with_columns(moments.moments(rows["time"]), rows["time"].alias(RAW_TIME))


def text_rules(rules: Clean) -> dict[str, Any]:
    """The rules for texts that are on, in order: markup before entities, placeholders when no tag can be meant.

    They travel with the rows and the model, see `tasks.rules.repair`.
    """
    on: list[dict[str, Any]] = []
    if rules.strip_markup:
        on.append({"rule": "strip_markup"})
    if rules.fix_text:
        on.append({"rule": "fix_text", "form": rules.unicode_form})
    on += ({"rule": "redact", "redactor": name} for name in redaction.redactors(rules.redact))
    if rules.collapse_whitespace:
        on.append({"rule": "collapse_whitespace"})
    return {"steps": on}


def target_repairs(rules: Clean, task: TaskSection, family: Family) -> Sequence[Step]:
    """The rules for targets that are on, in order."""
    usual: list[Step] = [("strip_targets", targets.strip)]
    if rules.label_aliases:
        aliases = targets.folded(rules.label_aliases)
        usual.append(("label_aliases", partial(targets.replace_aliases, aliases=aliases)))
    return family.target_repairs(task, usual)


def judge(rules: Clean, task: TaskSection, family: Family, rows: pl.DataFrame, unlike_raw: pl.Series) -> pl.Series:
    """Why each repaired row is set aside, by the first rule that fits; null when it is kept.

    Args:
        rules: The recipe's rules.
        task: The recipe's task.
        family: The task's family.
        rows: Repaired rows.
        unlike_raw: Why a row was no raw row to begin with.
    """
    reason = _first_reason(rows, unlike_raw, [*missing_text(family), *length_bounds(rules, family)])
    if rules.languages:
        fit = reason.is_null()
        candidates = rows.filter(fit)[family.text_columns[0]]
        wrong = language.wrong_language(candidates, rules.languages)
        reason = reason.scatter(fit.arg_true().filter(wrong), "wrong_language")
    return _first_reason(rows, reason, [*bad_time(rows), *family.rejects(task)])


def missing_text(family: Family) -> list[tuple[str, pl.Expr]]:
    """A text is null, or white space alone."""
    import polars as pl

    return [("missing_text", pl.any_horizontal(is_blank(column) for column in family.text_columns))]


def length_bounds(rules: Clean, family: Family) -> list[tuple[str, pl.Expr]]:
    """A text is shorter or longer than the recipe allows."""
    import polars as pl

    lengths = [pl.col(column).str.len_chars() for column in family.text_columns]
    return [
        ("too_short", pl.any_horizontal(length < rules.min_chars for length in lengths)),
        ("too_long", pl.any_horizontal(length > rules.max_chars for length in lengths)),
    ]


def bad_time(rows: pl.DataFrame) -> list[tuple[str, pl.Expr]]:
    """The source wrote a time, and it cannot be read."""
    import polars as pl

    return [("bad_time", pl.col("time").is_null() & ~is_blank(RAW_TIME))] if "time" in rows.columns else []


def is_blank(column: str) -> pl.Expr:
    """A value is null, or white space alone."""
    import polars as pl

    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")


def lacking(rows: pl.DataFrame) -> dict[str, int]:
    """Column → rows without a value there."""
    names = [name for name in rows.columns if name not in {"id", "source", "row"}]
    return dict(rows.select(is_blank(name).sum().alias(name) for name in names).row(0, named=True))


def keys(family: Family, rows: pl.DataFrame) -> list[pl.Series]:
    """Columns `KEYS` of these rows: what rows about several are judged by.

    Official sides are judged apart, because the side is part of what makes texts the same: a training row must not
    decide which test rows there are.
    """
    import polars as pl

    first, *others = family.text_columns
    place = [column for column in ("split", *others) if column in rows.columns and column not in family.target_columns]
    content = sorted(column for column in rows.columns if column not in {"source", "row"})
    digested = {
        "id_key": fingerprints(rows["id"]),
        "text_key": fingerprints(_joined(rows.with_columns(comparable(rows[first])), [first, *place])),
        "target_key": fingerprints(_joined(rows, family.target_columns)),
        "rank": digests(_joined(rows, content)),
    }
    return [pl.Series(name, values) for name, values in digested.items()]


def comparable(texts: pl.Series) -> pl.Series:
    """What two texts have in common when they differ in case and white space alone."""
    # For printable ASCII with single spaces, most of what there is, lower case is all of it, and Polars' is faster.
    other = texts.str.contains(r"[^ -~]|  |^ | $").fill_null(value=False)
    folded = texts.str.to_lowercase()
    if not other.any():
        return folded
    return folded.scatter(other.arg_true(), [" ".join(text.casefold().split()) for text in texts.filter(other)])


def digests(values: pl.Series) -> np.ndarray[Any, Any]:
    """64 bits of each text, the same in every process and version: `[rows]` uint64."""
    import numpy as np

    joined = b"".join([hashlib.blake2b(value.encode(), digest_size=8).digest() for value in values])
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def _joined(rows: pl.DataFrame, columns: Iterable[str]) -> pl.Series:
    """One text per row that no other values of these columns have; a column that is not there counts as nulls."""
    import polars as pl

    values = {column: pl.col(column).to_physical().cast(pl.String) for column in columns}
    parts = [
        pl.when(value.is_not_null()).then(pl.format("{}={}:{}", pl.lit(column), value.str.len_bytes(), value))
        for column, value in values.items()
    ]
    return rows.select(pl.concat_str(parts, ignore_nulls=True)).to_series()


def _first_reason(rows: pl.DataFrame, before: pl.Series, rejects: list[tuple[str, pl.Expr]]) -> pl.Series:
    import polars as pl

    named = [pl.when(unfit).then(pl.lit(name)) for name, unfit in rejects]
    return rows.select(pl.coalesce(before, *named).alias(REASON)).to_series()


def _applied(
    name: str, rule: Callable[[pl.Series], pl.Series], rows: pl.DataFrame, columns: Iterable[str], counts: Counts
) -> pl.DataFrame:
    columns = tuple(columns)
    after = rows.with_columns(rule(rows[column]).alias(column) for column in columns)
    counts.changed[name] += _changed(rows, after, columns)
    return after


def _changed(before: pl.DataFrame, after: pl.DataFrame, columns: tuple[str, ...]) -> int:
    import polars as pl

    if not columns:
        return 0
    changed = pl.any_horizontal(before[column].ne_missing(after[column]) for column in columns)
    return int(before.select(changed.sum()).item())
