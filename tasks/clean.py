"""Clean: repair the rows, then keep each or set it aside with one reason; stop when what is left is not as expected.

Each file of collected rows is cleaned by itself (`tasks.rules.part`), so that a new file costs its own rows alone; then
contradictions and duplicates are found among all. What happens to a row does not depend on the order of the rows. Does
not cover near duplicates, which the split looks for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.data import Clean
from schemas.errors import DamagedArtifact, DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.families import MEASURING, Family, family_of
from tasks.rows import Writer, batches, count, files
from tasks.rules import expectations, language, redaction, several
from tasks.rules.part import REASON, Counts, Losses, clean_file, clean_part, quarantine_schema, text_rules
from tasks.rules.personal_data import Redactor, redact
from tasks.stage import stage_task

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = ["clean", "clean_part", "clean_rows"]

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
ABOUT_ALL_ROWS = ("drop_duplicates", "drop_contradictions", "max_quarantined", "expect")
"""Rules that are no matter of one file: a change in them cleans no file anew."""


def clean_rows(
    rules: Clean, task: TaskSection, *, own_ids: bool, parts: Sequence[Path], raw: Path, out: Path
) -> dict[str, Any]:
    """Write `rows/<nnnnn>.parquet` (`schemas.frames.CleanRows`), `quarantine.parquet` and `meta.json`.

    Args:
        rules: The recipe's rules.
        task: The recipe's task.
        own_ids: Ids come from a column of the source, so that each must name one row.
        parts: Folders that `tasks.rules.part.clean_part` wrote, in order.
        raw: Folder with collect's `quarantine.parquet`: lines that are no rows.
        out: Where to write.

    Returns:
        Counts: `rows` kept, `collected`, `quarantined` by reason, `quarantined_share`, `repaired`, rows `changed` by
        rule, `labels`, and `lengths` of the texts in characters.

    Raises:
        DataError: The rows are not as expected, or teach nothing.
    """
    import polars as pl

    family, counts = family_of(task), Counts.read(parts)
    unreadable = raw / "quarantine.parquet"
    clean_files = [part / "rows.parquet" for part in parts]
    keys = _read_keys(clean_files)
    reason = several.judge(
        keys, own_ids=own_ids, contradictions=rules.drop_contradictions, duplicates=rules.drop_duplicates
    )
    _add_losses(counts.losses, clean_files, reason, unreadable)
    rows = int((reason == several.KEPT).sum())
    labels = count_labels(task, family, clean_files, reason)
    total = counts.collected + count([unreadable])
    _refuse_unexpected(rules, rows, total, labels, counts)

    number = several.numbers(keys, reason)
    del keys
    (out / "rows").mkdir()
    lengths = _write(rules, task, parts, unreadable, reason=reason, number=number, out=out)
    meta = {
        **family.describe(task, pl.scan_parquet(files(out / "rows"))),
        "text_column": family.text_columns[0],
        **({"further_text_columns": list(family.text_columns[1:])} if family.text_columns[1:] else {}),
        "target_columns": list(family.target_columns),
        **(family.labelled.as_meta() if family.labelled else {}),
        "text_rules": text_rules(rules),
    }
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))
    return {
        "rows": rows,
        "collected": total,
        "quarantined": counts.losses.counts,
        "quarantined_share": (total - rows) / total,
        "repaired": counts.repaired,
        "changed": dict(sorted(counts.changed.items())),
        "lengths": quantiles(lengths),
        "labels": {label: found for label, found in labels.items() if found},
    }


def count_labels(
    task: TaskSection, family: Family, clean_files: Sequence[Path], reason: np.ndarray[Any, Any]
) -> dict[str, int]:
    """Label → rows kept, with those that the recipe names and no row has; none where the task has no labels."""
    import polars as pl

    if family.labelled is None:
        return {}
    labels = Counter(dict.fromkeys(getattr(task, "labels", None) or (), 0))
    for batch, here in _with_places(batches(clean_files, [family.labelled.column])):
        labels.update(family.labelled.counts(batch.filter(pl.Series(reason[here] == several.KEPT))))
    return dict(sorted(labels.items()))


def quantiles(lengths: Mapping[int, int]) -> dict[str, int]:
    """The smallest length that this share of the rows does not exceed.

    Args:
        lengths: Length → rows.
    """
    import numpy as np

    ascending = np.array(sorted(lengths))
    reached = np.cumsum([lengths[int(length)] for length in ascending])
    return {name: int(ascending[np.searchsorted(reached, share * reached[-1])]) for name, share in QUANTILES.items()}


def _read_keys(clean_files: Sequence[Path]) -> several.Keys:
    import numpy as np

    found = {name: np.empty(count(clean_files), np.uint64) for name in several.KEYS}
    for batch, here in _with_places(batches(clean_files, several.KEYS)):
        for name, values in found.items():
            values[here] = batch[name].to_numpy()
    return several.Keys(**found)


def _with_places(frames: Iterable[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, slice]]:
    """Each frame, and where its rows are among those of all."""
    at = 0
    for frame in frames:
        yield frame, slice(at, at + frame.height)
        at += frame.height


def _add_losses(losses: Losses, clean_files: Sequence[Path], reason: np.ndarray[Any, Any], unreadable: Path) -> None:
    import numpy as np

    for code in (several.DUPLICATE_ID, several.CONTRADICTING_LABEL, several.DUPLICATE):
        fallen = np.flatnonzero(reason == code)
        if len(fallen):
            row, source = _row_at(clean_files, int(fallen[0]))
            losses.add(str(several.REASONS[code]), len(fallen), row, source)
    for batch in batches([unreadable], ["source", "row", REASON]):
        losses.add_frame(batch)


def _row_at(clean_files: Sequence[Path], place: int) -> tuple[int, str]:
    import polars as pl

    for path in clean_files:
        if place < count([path]):
            found = pl.scan_parquet(path, glob=False).slice(place, 1).select("row", "source").collect()
            row, source = found.row(0)
            return int(row), str(source)
        place -= count([path])
    raise IndexError(place)


def _write(
    rules: Clean,
    task: TaskSection,
    parts: Sequence[Path],
    unreadable: Path,
    *,
    reason: np.ndarray[Any, Any],
    number: np.ndarray[Any, Any],
    out: Path,
) -> Counter[int]:
    """Kept rows to `rows/`, all others to `quarantine.parquet`; length → rows kept."""
    import polars as pl

    text = family_of(task).text_columns[0]
    lengths: Counter[int] = Counter()
    schema = _common_schema([part / "rows.parquet" for part in parts])
    set_aside = quarantine_schema(task.columns())
    at = 0
    with Writer(out / "quarantine.parquet", set_aside) as quarantine:
        for place, part in enumerate(parts):
            with Writer(out / "rows" / f"{place:05}.parquet", schema) as writer:
                for batch in batches([part / "rows.parquet"]):
                    here = slice(at, at + batch.height)
                    at += batch.height
                    judged = _judged(batch, reason[here], number[here], schema)
                    kept = judged.filter(pl.col(REASON).is_null())
                    lengths.update(kept[text].str.len_chars().to_list())
                    writer.write(kept)
                    quarantine.write(_like(judged.filter(pl.col(REASON).is_not_null()), set_aside))
            for batch in batches([part / "quarantine.parquet"]):
                quarantine.write(_like(batch, set_aside))
        hide = partial(_redacted, redactors=redaction.redactors(rules.redact))
        for batch in batches([unreadable]):
            quarantine.write(_like(batch.with_columns(hide(batch["raw"])), set_aside))
    return lengths


def _judged(
    batch: pl.DataFrame, reason: np.ndarray[Any, Any], number: np.ndarray[Any, Any], schema: pl.Schema
) -> pl.DataFrame:
    """The rows of `schema` with their reason; of rows of one id, all but the first are numbered."""
    import polars as pl

    nth = pl.Series(number)
    return _like(batch, schema).with_columns(
        id=pl.when(nth > 0).then(pl.format("{}-{}", "id", nth)).otherwise("id"),
        reason=pl.Series(reason).replace_strict(dict(enumerate(several.REASONS)), return_dtype=pl.String),
    )


def _redacted(raw: pl.Series, redactors: Mapping[str, Redactor]) -> pl.Series:
    """A line that is no row may hold what is hidden in rows."""
    for redactor in redactors.values():
        raw = redact(raw, redactor)
    return raw


def _common_schema(clean_files: Sequence[Path]) -> pl.Schema:
    """All columns of all files but the digests: a source without official sides may stand next to one with them."""
    import polars as pl

    found: dict[str, Any] = {}
    for path in clean_files:
        found |= pl.read_parquet_schema(path)
    return pl.Schema({name: dtype for name, dtype in found.items() if name not in several.KEYS})


def _like(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    import polars as pl

    return frame.select(
        pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name) for name, dtype in schema.items()
    )


def _refuse_unexpected(rules: Clean, rows: int, total: int, labels: Mapping[str, int], counts: Counts) -> None:
    problems = _great_loss(rules, rows, total, counts.losses)
    if rows:
        problems += expectations.unmet(
            rules.expect, rows=rows, labels=labels, lacking=counts.lacking, collected=counts.collected
        )
    if problems:
        raise DataError(problems)


def _great_loss(rules: Clean, rows: int, total: int, losses: Losses) -> list[Problem]:
    share = (total - rows) / total if total else 1.0
    if rows and share <= rules.max_quarantined:
        return []
    lost = f"{share:.1%} of {total:,} rows fell out" if rows else f"none of {total:,} rows is left"
    remedy = "fix the rows, or the rule that took them" + (
        f", or raise it to {ceil(100 * share) / 100:.2f}" if rows else ""
    )
    return [Problem("clean.max_quarantined", rules.max_quarantined, f"{lost}: {_worst_reasons(losses)}", remedy)]


def _worst_reasons(losses: Losses, most: int = 3) -> str:
    """The commonest reasons, each with its count and its first row."""
    worst = sorted(losses.by_reason.items(), key=lambda loss: (-loss[1][0], loss[0]))
    shown = [f"{reason} {count:,} (row {row} of {source})" for reason, (count, row, source) in worst]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


@stage_task
def clean(context: Context, raw: Artifact) -> Artifact:
    """Repair the rows, and set aside those that are not fit to learn from."""
    recipe = context.recipe
    rules = recipe.clean
    if rules.languages:
        language.require(rules.languages)
    parts = [_part(context, raw, name, sha256) for name, sha256 in _collected_files(context, raw).items()]
    return context.artifact(
        "clean",
        clean_rows,
        settings={"rules": rules, "task": recipe.task.taught, "own_ids": recipe.collect.id_column is not None},
        inputs={"parts": parts, "raw": raw},
        modules=_modules(context),
        apart_from=MEASURING,
        libraries=("pandera", "polars"),
    )


def _part(context: Context, raw: Artifact, name: str, sha256: str) -> Artifact:
    rules = context.recipe.clean
    defaults = {field: Clean.model_fields[field].get_default() for field in ABOUT_ALL_ROWS}
    return context.artifact(
        "clean-part",
        clean_file,
        settings={"rules": rules.model_copy(update=defaults), "task": context.recipe.task.taught, "sha256": sha256},
        unkeyed={"rows": lambda: context.path(raw) / name},
        modules=_modules(context),
        apart_from=MEASURING,
        libraries=("ftfy", "pandera", "polars", *(language.LIBRARIES if rules.languages else ())),
        part_of="clean",
        part=name,
    )


def _collected_files(context: Context, raw: Artifact) -> dict[str, str]:
    """Name → SHA-256 of each file of collected rows, in order."""
    manifest = context.store.find(raw.stage, raw.key)
    if manifest is None:
        raise DamagedArtifact(f"{context.store.location(raw.stage, raw.key)} is gone")
    return {name: file["sha256"] for name, file in sorted(manifest.files.items()) if name.startswith("rows/")}


def _modules(context: Context) -> list[str]:
    """Code from elsewhere that shapes the rows: the family's, and that of redactors which other packages bring."""
    redactors = redaction.redactors(context.recipe.clean.redact).values()
    return sorted({type(context.family).__module__, *(redactor.module for redactor in redactors)})
