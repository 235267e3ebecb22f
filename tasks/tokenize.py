"""Tokenize: text to token ids, once; texts longer than `max_seq_length` are measured, and refused above a limit.

Such a text is cut, becomes overlapping windows, its row is set aside, or the run stops, as the recipe says. Each file
of clean rows is encoded by itself (`tasks.tokens_part`); here the rows are dealt to their sides, as Arrow streams that
`datasets.Dataset.from_file` maps into memory. Does not cover padding, which is the collator's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from schemas.data import Tokenize
from schemas.errors import DamagedArtifact, DataError, Problem
from schemas.records import Artifact
from tasks.base_model import base_model
from tasks.context import Context
from tasks.families import MEASURING
from tasks.rows import Writer
from tasks.split import CODES, DEALT, SIDES
from tasks.stage import stage_task
from tasks.tokenizer import Base, longest_input
from tasks.tokens_part import BATCH_ROWS, FURTHER, read_tokens, tokens_part

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]

OVERLONG = "overlong.parquet"
"""Rows set aside for their length, where the recipe says so."""
SHOWN_IDS = 5
"""Overlong rows that an error names."""


def tokenize_rows(
    tokenize: Tokenize,
    *,
    notes: Mapping[str, Any],
    base_digest: str,  # noqa: ARG001  # part of the key: another model pads with another token
    split: Path,
    parts: Sequence[Path],
    base: Base,
    out: Path,
) -> dict[str, Any]:
    """Write `train.arrow`, `validation.arrow`, `test.arrow` (`id`, `input_ids`, `length`, `labels` …) and `meta.json`.

    With `overlong: drop`, `overlong.parquet` (`id`, `side`, `tokens`) has the rows that are in none of them; with
    `overlong: window`, the windows of a row follow each other under its id.

    Args:
        tokenize: Length of a sequence, what becomes of a longer one, and how many may be longer.
        notes: See `Family.of_base`.
        base_digest: Digest of the base model.
        split: Folder that says each row's side.
        parts: Folders that `tasks.tokens_part` wrote, one for each file of clean rows, in order.
        base: The base model.
        out: Where to write.

    Returns:
        `rows` and real `tokens` of each side, `windows` beyond the first of each row, the `longest` of all,
        `lengths` of all rows uncut, the share `truncated` and the number `dropped` of each side.

    Raises:
        DataError: A row is overlong where none may be, more than `max_truncated` are, or none of a side is left.
    """
    import numpy as np

    sides = np.fromfile(split / DEALT, np.uint8)
    uncut = _uncut(parts)
    by_side = {side: uncut[sides == CODES[side]] for side in SIDES}
    _refuse_overlong(tokenize, parts, sides, by_side, longest_input(base.config))
    _refuse_silent_loss(tokenize, np.concatenate([*by_side.values()]), longest_input(base.config))
    _refuse_empty_sides(tokenize, by_side)

    written = _write(tokenize, parts, sides, out)
    meta = json.loads((split / "meta.json").read_text())
    meta |= {**notes, "pad_token_id": base.tokenizer.pad_token_id}
    meta |= tokenize.model_dump(include={"max_seq_length", "overlong", "stride"})
    (out / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))
    return _summary(tokenize, by_side, written)


def dropped_rows(tokens: Path, side: str) -> pl.DataFrame:
    """`id` and `tokens` of a side's rows that `overlong: drop` left out of the tokenize artifact in `tokens`."""
    import polars as pl

    file = tokens / OVERLONG
    rows = pl.read_parquet(file, glob=False) if file.exists() else pl.DataFrame(schema=_overlong_schema())
    return rows.filter(pl.col("side") == side).drop("side")


class Stream:
    """Writes batches of tokens to one Arrow stream, `BATCH_ROWS` rows or more at a time; no file when no row came.

    Attributes:
        rows: Rows written.
        tokens: In all of them.
        longest: Tokens of the longest.
    """

    def __init__(self, path: Path) -> None:
        self.rows = self.tokens = self.longest = 0
        self._path = path
        self._waiting: list[pa.RecordBatch] = []
        self._writer: Any = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append `batch`, now or later."""
        if not batch.num_rows:
            return
        lengths = batch["length"].to_numpy()
        self.rows += len(lengths)
        self.tokens += int(lengths.sum(dtype="int64"))
        self.longest = max(self.longest, int(lengths.max()))
        self._waiting.append(batch)
        if sum(waiting.num_rows for waiting in self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            table = pa.Table.from_batches(self._waiting).combine_chunks()
            self._writer = self._writer or pa.ipc.new_stream(str(self._path), table.schema)
            self._writer.write_table(table)
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()


def _write(tokenize: Tokenize, parts: Sequence[Path], sides: Ints, out: Path) -> dict[str, Stream]:
    """Write the rows of each side to its file, in the order of the clean rows, and those that are dropped to theirs."""
    written = {side: Stream(out / f"{side}.arrow") for side in SIDES}
    with ExitStack() as stack:
        dropped = None
        if tokenize.overlong == "drop":
            dropped = stack.enter_context(Writer(out / OVERLONG, _overlong_schema()))
        for side, stream in written.items():
            stack.enter_context(stream)
            for batch in _rows_of(parts, sides, CODES[side]):
                fits = batch["uncut"].to_numpy() <= tokenize.max_seq_length
                if dropped is not None and not fits.all():
                    dropped.write(_overlong(side, _chosen(batch, ~fits)))
                    stream.write(_trained(_chosen(batch, fits)))
                else:
                    stream.write(_trained(batch))
    return written


def _rows_of(parts: Sequence[Path], sides: Ints, code: int) -> Iterator[pa.RecordBatch]:
    """The tokens of one side's rows, in order; see `tasks.tokens_part.encode_file`.

    Args:
        parts: Where the tokens of all rows are.
        sides: Code of each row's side.
        code: Of the side that is wanted.
    """
    import numpy as np

    read = 0
    for batch in read_tokens(parts):
        rows = read + np.cumsum(batch["uncut"].to_numpy() != FURTHER)
        read = int(rows[-1])
        yield _chosen(batch, sides[rows - 1] == code)


def _trained(batch: pa.RecordBatch) -> pa.RecordBatch:
    """All that training and prediction read."""
    return batch.select([name for name in batch.schema.names if name != "uncut"])


def _chosen(batch: pa.RecordBatch, which: np.ndarray[Any, Any]) -> pa.RecordBatch:
    import pyarrow as pa

    return batch.filter(pa.array(which))


def _uncut(parts: Sequence[Path]) -> Ints:
    """Length in tokens of every row before the cut, `[rows]`."""
    import numpy as np

    lengths = (batch["uncut"].to_numpy() for batch in read_tokens(parts))
    return np.concatenate([np.empty(0, np.int32), *(found[found != FURTHER] for found in lengths)])


def _overlong(side: str, batch: pa.RecordBatch) -> pl.DataFrame:
    import polars as pl

    columns = {"id": pl.Series(batch["id"]), "tokens": pl.Series(batch["uncut"])}
    return pl.DataFrame(columns).with_columns(side=pl.lit(side))


def _overlong_schema() -> pl.Schema:
    import polars as pl

    return pl.Schema({"id": pl.String, "side": pl.String, "tokens": pl.Int32})


def _summary(tokenize: Tokenize, by_side: Mapping[str, Ints], written: Mapping[str, Stream]) -> dict[str, Any]:
    import numpy as np

    longer = {side: int((uncut > tokenize.max_seq_length).sum()) for side, uncut in by_side.items()}
    nothing = dict.fromkeys(longer, 0)
    cut = longer if tokenize.overlong == "truncate" else nothing
    dropped = longer if tokenize.overlong == "drop" else nothing
    rows = {side: len(uncut) - dropped[side] for side, uncut in by_side.items()}
    uncut = np.concatenate([*by_side.values()])
    return {
        "rows": rows,
        "tokens": {side: stream.tokens for side, stream in written.items()},
        "windows": {side: stream.rows - rows[side] for side, stream in written.items()},
        "longest": max(stream.longest for stream in written.values()),
        "lengths": {
            "median": int(np.median(uncut)),
            "p95": int(np.percentile(uncut, 95)),
            "longest_uncut": int(uncut.max()),
        },
        "truncated": {side: cut[side] / len(lengths) for side, lengths in by_side.items()},
        "truncated_rows": sum(cut.values()),
        "dropped": dropped,
    }


def _refuse_overlong(
    tokenize: Tokenize, parts: Sequence[Path], sides: Ints, by_side: Mapping[str, Ints], limit: int | None
) -> None:
    """Where none may be: the first side that has some is named, with its first ones."""
    overlong = [side for side, uncut in by_side.items() if (uncut > tokenize.max_seq_length).any()]
    if tokenize.overlong != "raise" or not overlong:
        return
    side, ids = overlong[0], list[str]()
    for batch in _rows_of(parts, sides, CODES[overlong[0]]):
        ids += _chosen(batch, batch["uncut"].to_numpy() > tokenize.max_seq_length)["id"].to_pylist()
        if len(ids) > SHOWN_IDS:
            break
    longest = int(by_side[side].max())
    enough = longest + -longest % 8
    longer = f"raise tokenize.max_seq_length to {enough} or more, " if limit is None or enough <= limit else ""
    shown = ", ".join(ids[:SHOWN_IDS]) + (" …" if len(ids) > SHOWN_IDS else "")
    rule = f"{side} rows have more than {tokenize.max_seq_length} tokens, up to {longest}: {shown}"
    remedy = f"{longer}shorten them, or set it to truncate, window or drop"
    raise DataError(Problem("tokenize.overlong", tokenize.overlong, rule, remedy))


def _refuse_silent_loss(tokenize: Tokenize, uncut: Ints, limit: int | None) -> None:
    import numpy as np

    share = float((uncut > tokenize.max_seq_length).mean())
    if share <= tokenize.max_truncated or tokenize.overlong == "window":
        return
    enough = int(np.quantile(uncut, 1 - tokenize.max_truncated, method="higher"))
    enough += -enough % 8
    longer = f"raise tokenize.max_seq_length to {enough} or " if limit is None or enough <= limit else ""
    happens = "lose text to the cut at" if tokenize.overlong == "truncate" else "are set aside for having more than"
    rule = (
        f"{share:.1%} of {len(uncut):,} rows {happens} {tokenize.max_seq_length} tokens "
        f"(95 % of the rows have up to {int(np.percentile(uncut, 95))}, the longest has {int(uncut.max())})"
    )
    remedy = f"{longer}raise tokenize.max_truncated above {share:.3f}"
    raise DataError(Problem("tokenize.max_truncated", tokenize.max_truncated, rule, remedy))


def _refuse_empty_sides(tokenize: Tokenize, by_side: Mapping[str, Ints]) -> None:
    empty = [side for side, uncut in by_side.items() if (uncut > tokenize.max_seq_length).all()]
    if tokenize.overlong == "drop" and empty:
        rule = f"every row of {' and '.join(empty)} has more than {tokenize.max_seq_length} tokens"
        raise DataError(Problem("tokenize.overlong", tokenize.overlong, rule, "raise tokenize.max_seq_length"))


@stage_task
def tokenize(context: Context, cleaned: Artifact, sides: Artifact) -> Artifact:
    """Turn the rows' text into the base model's tokens."""
    recipe = context.recipe
    folder, digest = base_model(recipe.model, context.home)
    base = Base(folder, recipe.model.trust_remote_code)
    notes = context.family.of_base(recipe.task, base)
    tokens = context.artifact(
        "tokenize",
        tokenize_rows,
        settings={"tokenize": recipe.tokenize, "notes": notes, "base_digest": digest},
        inputs={"split": sides, "parts": _parts(context, cleaned, base, {"notes": notes, "base_digest": digest})},
        unkeyed={"base": base},
        libraries=("numpy", "polars", "pyarrow", "tokenizers"),
    )
    base.release()
    return tokens


def _parts(context: Context, cleaned: Artifact, base: Base, of_base: Mapping[str, Any]) -> list[Artifact]:
    """The tokens of each file of the clean rows; only of a new file are they made."""
    manifest = context.store.find(cleaned.stage, cleaned.key)
    if manifest is None:
        raise DamagedArtifact(f"{context.store.location(cleaned.stage, cleaned.key)} is gone")
    asked = context.recipe.tokenize
    return [
        context.artifact(
            "tokens-part",
            tokens_part,
            settings={
                "sha256": about["sha256"],
                "meta_sha256": manifest.files["meta.json"]["sha256"],
                "max_seq_length": asked.max_seq_length,
                "stride": asked.stride if asked.overlong == "window" else None,
                "task": context.recipe.task.taught,
                **of_base,
            },
            unkeyed={"file": name, "folder": lambda: context.path(cleaned), "base": base},
            modules=(type(context.family).__module__,),
            apart_from=MEASURING,
            libraries=("polars", "pyarrow", "tokenizers"),
            part_of="tokenize",
            part=name,
        )
        for name, about in sorted(manifest.files.items())
        if name.startswith("rows/")
    ]
