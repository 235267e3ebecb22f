"""Collect: the rows of the recipe's source, each with an id, its piece and its number there; nothing is judged yet.

A source comes in pieces (`tasks.sources`), each read once per content into an artifact of its own, `collect-part`, and
put together here. A line that cannot be read as a row goes to `quarantine.parquet` with its number and reason; a source
without rows, or without the columns that the recipe names, is a `DataError`. Rows pass in batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.data import Collect
from schemas.records import Artifact
from tasks.context import Context
from tasks.corrections import Corrections, correction_files, load
from tasks.forgotten import digest, leave_out
from tasks.forgotten import load as load_forgotten
from tasks.rows import BATCH_ROWS, Writer, batches
from tasks.sources import CONNECTORS, Batch, Piece, Wanted, listed, pieces, refusal
from tasks.sources.conversations import composed
from tasks.sources.word_lists import joined
from tasks.stage import stage_task
from tasks.store import link

if TYPE_CHECKING:
    import polars as pl

ROWS = "rows.parquet"
QUARANTINE = "quarantine.parquet"
DROPPED = "dropped_by_correction"
MAIN = "collect.source.path"
READING = ("kind", "separator", "word_column", "tag_column", "comment")
"""Fields of a source that say how its pieces are read."""
META = "meta."
"""Begins the names of the columns that the recipe keeps."""
ID_BYTES = 8
"""Length of the digest that is the id of a row without one."""


def collect_part(
    name: str,
    digest: str,
    side: str | None,
    how: dict[str, Any],
    columns: dict[str, str],
    *,
    id_column: str | None,
    group_column: str | None,
    time_column: str | None,
    split_column: str | None,
    keep: list[str],
    text_columns: list[str],
    word_lists: list[str],
    parts: dict[str, str],
    forgotten: str | None,
    hashes: Collection[str],
    read: Callable[[Wanted], Iterator[Batch]],
    out: Path,
) -> dict[str, Any]:
    """Write `rows.parquet` (`schemas.frames.RawRows`) and `quarantine.parquet` (lines that are no rows) of one piece.

    Args:
        name: The piece's.
        digest: What its content is known by; read for the key alone.
        side: The official side of all its rows, where it has one.
        how: What else the reading depends on; read for the key alone.
        columns: Role → column of the source.
        id_column: Column of the source that names each row.
        group_column: Column that names what stays together in the split.
        time_column: Column with the row's time.
        split_column: Column that names the side, where `side` does not.
        keep: Further columns, kept under `meta.<column>`.
        text_columns: Roles of the row's texts: their digest is the id of a row that brings none, and each may be one
            that must be left out.
        word_lists: Roles whose values may be lists of words.
        parts: Part → column of the source, where a row is a conversation; see `tasks.sources.conversations`.
        forgotten: Digest of `hashes`; read for the key alone.
        hashes: Of the ids and texts that must be left out, see `tasks.forgotten`.
        read: The piece's rows in batches.
        out: Where to write.

    Returns:
        Counts: `rows`, those `forgotten` and left out, `unreadable` by reason, the `first_unreadable`, `columns`
        found, rows with a `replacement_character`.

    Raises:
        DataError: It is not what the recipe says, or lacks a column.
    """
    import polars as pl

    del digest, how, forgotten
    named = {"group": group_column, "time": time_column, "split": None if side else split_column}
    extras = {target: column for target, column in named.items() if column}
    wanted = _wanted(parts or columns, id_column, extras, keep)
    kept = {META + column: column for column in keep}
    shape = dict.fromkeys((*columns, *extras, *(("split",) if side else ()), *kept), pl.String)
    schema = pl.Schema({"id": pl.String, "source": pl.String, "row": pl.UInt32, **shape})
    unreadable: Counter[str] = Counter()
    first: tuple[int, str] | None = None
    found: Sequence[str] = ()
    replaced = left_out = 0
    with Writer(out / ROWS, schema) as rows, Writer(out / QUARANTINE, _fallen_schema()) as quarantine:
        for batch in read(wanted):
            batch = composed(joined(batch, [columns[role] for role in word_lists]), parts)  # noqa: PLW2901
            found = batch.columns
            ids = _ids(batch, id_column, [columns[role] for role in text_columns])
            shaped = _shape(batch, name, ids, columns | extras | kept, side)
            lines = _unreadable_frame(name, batch.unreadable)
            read_rows = shaped.height + lines.height
            shaped, lines = leave_out(shaped, text_columns, hashes), leave_out(lines, ["raw"], hashes)
            left_out += read_rows - shaped.height - lines.height
            fallen = [lines]
            if id_column:
                shaped, unnamed = _set_aside_unnamed(shaped)
                fallen.append(unnamed)
            replaced += _with_replacement_character(shaped, columns)
            for frame in fallen:
                if frame.height:
                    first = first or (frame["row"][0], frame["reason"][0])
                    unreadable.update(frame["reason"].to_list())
                    quarantine.write(frame)
            for part in shaped.iter_slices(BATCH_ROWS):
                rows.write(part)
    return {
        "rows": rows.rows,
        "forgotten": left_out,
        "unreadable": dict(sorted(unreadable.items())),
        "first_unreadable": first,
        "columns": list(found),
        "replacement_character": replaced,
    }


def _wanted(
    columns: Mapping[str, str], id_column: str | None, extras: Mapping[str, str], keep: Sequence[str]
) -> dict[str, str]:
    wanted = {f"task.{role}_column": column for role, column in columns.items()}
    wanted |= {"collect.id_column": id_column} if id_column else {}
    wanted |= {f"collect.{target}_column": column for target, column in extras.items()}
    return wanted | {f"collect.keep.{place}": column for place, column in enumerate(keep)}


def _shape(batch: Batch, source: str, ids: pl.Series, columns: Mapping[str, str], side: str | None) -> pl.DataFrame:
    """The batch's rows under the names of roles."""
    import polars as pl

    rows = batch.values.select(
        ids.alias("id"),
        pl.lit(source).alias("source"),
        pl.Series("row", batch.numbers, pl.UInt32),
        *(
            (_name_in(column) if target in {"group", "time", "split"} else pl.col(column)).alias(target)
            for target, column in columns.items()
        ),
    )
    return rows.with_columns(split=pl.lit(side)) if side else rows


def _name_in(column: str) -> pl.Expr:
    """An id, group, time or side; of white space alone it is none."""
    import polars as pl

    stripped = pl.col(column).str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def _ids(batch: Batch, id_column: str | None, text_columns: Sequence[str]) -> pl.Series:
    """The source's ids, or those of the texts."""
    if id_column:
        return batch.values.select(_name_in(id_column)).to_series()
    return text_ids(batch.values.select(text_columns))


def text_ids(texts: pl.DataFrame) -> pl.Series:
    """Ids from the texts as they are in the source: rows of the same texts share one."""
    import polars as pl

    digest = hashlib.blake2b
    joined = texts.select(pl.concat_str(pl.all().fill_null(""), separator="\0")).to_series()
    return pl.Series([digest(t.encode(), digest_size=ID_BYTES).hexdigest() for t in joined], dtype=pl.String)


def _set_aside_unnamed(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that have an id, and the others as unreadable ones."""
    import polars as pl

    return rows.filter(pl.col("id").is_not_null()), _fallen(rows.filter(pl.col("id").is_null()), "missing_id")


def _fallen(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Rows as lines of a quarantine."""
    import polars as pl

    raw = pl.struct(pl.exclude("source", "row")).struct.json_encode()
    return rows.select("source", "row", raw.alias("raw"), pl.lit(reason).alias("reason"))


def _fallen_schema() -> pl.Schema:
    import polars as pl

    return pl.Schema({"source": pl.String, "row": pl.UInt32, "raw": pl.String, "reason": pl.String})


def _unreadable_frame(source: str, unreadable: Sequence[tuple[int, str, str]]) -> pl.DataFrame:
    import polars as pl

    schema = {"row": pl.UInt32, "raw": pl.String, "reason": pl.String}
    frame = pl.DataFrame(list(unreadable), schema=schema, orient="row")
    return frame.select(pl.lit(source).alias("source"), "row", "raw", "reason")


def _with_replacement_character(rows: pl.DataFrame, columns: Mapping[str, str]) -> int:
    import polars as pl

    marked = pl.any_horizontal(pl.col(role).str.contains("\ufffd", literal=True) for role in columns)
    return rows.select(marked.sum()).item() or 0


def assemble(
    names: list[str],
    digests: list[str],
    columns: dict[str, str],
    *,
    id_column: str | None,
    corrections: list[str],
    text_columns: list[str],
    forgotten: str | None,
    hashes: Collection[str],
    parts: list[Path],
    made: Sequence[Artifact],
    fields: Sequence[str],
    kind: str,
    correction_files: Sequence[tuple[Path, str]],
    out: Path,
) -> dict[str, Any]:
    """Put the parts together: `rows/<nnnnn>.parquet`, one per piece in order, and one `quarantine.parquet`.

    Args:
        names: Name of each piece.
        digests: What each piece's content is known by.
        columns: Role → column of the source.
        id_column: The recipe's.
        corrections: Digests of the files of corrections, in the order in which they apply; read for the key alone.
        text_columns: Roles whose text may be one that must be left out.
        forgotten: Digest of `hashes`; read for the key alone.
        hashes: Of the ids and texts that must be left out, see `tasks.forgotten`.
        parts: Folder of each piece's part.
        made: The parts themselves, for their summaries.
        fields: Recipe field that each piece comes from.
        kind: The source's, for errors.
        correction_files: Path and kind of each file of corrections.
        out: Where to write.

    Returns:
        Counts: `rows`, those `forgotten` and left out, `files` and `pieces` by name, `unreadable` by reason, `columns`
        found, rows with a `replacement_character`, and what `corrections` did.

    Raises:
        DataError: No piece of a field has a row, or a file of corrections is wrong.
    """
    del forgotten
    _refuse_rowless(names, made, fields, kind)
    right = load(correction_files, columns, id_column)
    (out / "rows").mkdir()
    digits = max(5, len(str(len(parts))))
    counts = []
    keep = partial(leave_out, text_columns=text_columns, hashes=hashes)
    with Writer(out / QUARANTINE, _fallen_schema()) as quarantine:
        for place, (part, artifact) in enumerate(zip(parts, made, strict=True)):
            if artifact.summary["unreadable"]:
                for frame in batches([part / QUARANTINE]):
                    quarantine.write(frame)
            target = out / "rows" / f"{place:0{digits}d}.parquet"
            counts.append(_corrected(part / ROWS, target, right, quarantine, keep))
    summaries = [artifact.summary for artifact in made]
    changed, dropped, left_out = (sum(count[i] for count in counts) for i in (0, 1, 2))
    unreadable = sum((Counter(summary["unreadable"]) for summary in summaries), Counter({DROPPED: dropped}))
    return {
        "rows": sum(summary["rows"] for summary in summaries) - dropped - left_out,
        "forgotten": sum(summary["forgotten"] for summary in summaries) + left_out,
        "files": {
            name: {"rows": summary["rows"], "unreadable": sum(summary["unreadable"].values()), "sha256": digest}
            for name, digest, summary in zip(names, digests, summaries, strict=True)
        },
        "pieces": {
            name: {"rows": artifact.summary["rows"], "cached": artifact.cached}
            for name, artifact in zip(names, made, strict=True)
        },
        "unreadable": dict(sorted((+unreadable).items())),
        "columns": list(dict.fromkeys(column for summary in summaries for column in summary["columns"])),
        "replacement_character": sum(summary["replacement_character"] for summary in summaries),
        "corrections": {"files": len(corrections), "rows_changed": changed, "rows_dropped": dropped} | right.summary(),
    }


def _refuse_rowless(names: Sequence[str], made: Sequence[Artifact], fields: Sequence[str], kind: str) -> None:
    for field in dict.fromkeys(fields):
        own = [(name, artifact.summary) for name, artifact, of in zip(names, made, fields, strict=True) if of == field]
        if not any(summary["rows"] for _, summary in own):
            first = next((summary["first_unreadable"] for _, summary in own if summary["first_unreadable"]), None)
            found = f": {first[1]} in row {first[0]}" if first else ""
            raise refusal(
                field, listed((name for name, _ in own), 3), f"holds no {kind} row{found}", "name a file with rows"
            )


def _corrected(
    part: Path, target: Path, right: Corrections, quarantine: Writer, keep: Callable[[pl.DataFrame], pl.DataFrame]
) -> tuple[int, int, int]:
    """Link a part's rows, or write them anew where corrections concern them.

    Returns:
        Rows changed, rows dropped, and rows left out because a correction made them a forgotten text.
    """
    concerned = right.rows.height and sum([right.concern(ids["id"]) for ids in batches([part], ["id"])])
    if not concerned:
        link(part, target)
        return 0, 0, 0
    changed = dropped = left_out = 0
    with Writer(target, _schema(part)) as writer:
        for rows in batches([part]):
            kept, gone, corrected = right.apply(rows)
            changed += corrected
            dropped += gone.height
            remembered = keep(kept)
            left_out += kept.height - remembered.height
            writer.write(remembered)
            if gone.height:
                quarantine.write(_fallen(gone, DROPPED))
    return changed, dropped, left_out


def _schema(path: Path) -> pl.Schema:
    import polars as pl

    return pl.Schema(pl.read_parquet_schema(path))


@stage_task
def collect(context: Context) -> Artifact:
    """Read the source's rows, piece by piece; their content decides the key, wherever they lie."""
    asked = context.recipe.collect
    columns = context.recipe.task.columns()
    found = pieces(asked.source, context.home)
    hashes = load_forgotten(context.home)
    leaving_out = {"text_columns": list(context.family.text_columns), "forgotten": digest(hashes)}
    parts = [_part(context, asked, piece, leaving_out, hashes) for piece in found]
    corrections = correction_files(asked.corrections, context.home)
    return context.artifact(
        "collect",
        assemble,
        settings={
            "names": [piece.name for piece in found],
            "digests": [piece.digest for piece in found],
            "columns": columns,
            "id_column": asked.id_column,
            "corrections": list(corrections),
            **leaving_out,
        },
        inputs={"parts": parts},
        unkeyed={
            "made": parts,
            "fields": [piece.field for piece in found],
            "kind": asked.source.kind,
            "correction_files": list(corrections.values()),
            "hashes": hashes,
        },
        apart_from=("tasks.signatures",),
        libraries=("polars",),
    )


def _part(
    context: Context,
    asked: Collect,
    piece: Piece,
    leaving_out: dict[str, Any],
    hashes: frozenset[str],
) -> Artifact:
    # The files of other sides are by themselves; the main ones may say it row by row.
    side = None if asked.split_column and piece.field == MAIN else piece.side
    how = {name: getattr(asked.source, name) for name in READING if hasattr(asked.source, name)}
    return context.artifact(
        "collect-part",
        collect_part,
        settings={
            "name": piece.name,
            "digest": piece.digest,
            "side": side,
            "how": how,
            "columns": context.recipe.task.columns(),
            "id_column": asked.id_column,
            "group_column": asked.group_column,
            "time_column": asked.time_column,
            "split_column": asked.split_column,
            "keep": list(asked.keep),
            "word_lists": list(context.recipe.task.word_lists),
            "parts": context.recipe.task.parts(),
            **leaving_out,
        },
        unkeyed={"read": piece.read, "hashes": hashes},
        modules=(CONNECTORS[asked.source.kind],),
        apart_from=("tasks.corrections", "tasks.signatures"),
        libraries=("polars",),
        part_of="collect",
        part=piece.name,
    )
