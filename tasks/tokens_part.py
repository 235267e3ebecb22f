"""The tokens of one file of clean rows, so that a new file costs its own rows alone.

All rows are there, whichever side they are dealt to, in the order of the file: one after the other as they are cut, or
as several windows each. Reads and writes a batch of rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.errors import Problem, RecipeError
from tasks.families import Family, Meta, family_of
from tasks.tokenizer import Base, BaseTokenizer, longest_input

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

BATCH_ROWS, BATCH_BYTES = 10_000, 1 << 21
"""Most rows, and about how much text, encoded at once: it takes some forty times the memory of the text."""
TOKENS = "tokens.arrow"
FURTHER = -1
"""In `uncut`: another window of the text before it."""


def tokens_part(
    *,
    file: str,
    sha256: str,
    meta_sha256: str,
    max_seq_length: int,
    stride: int | None,
    task: TaskSection,
    notes: Meta,
    base_digest: str,
    folder: Callable[[], Path],
    base: Base,
    out: Path,
) -> dict[str, Any]:
    """Write the tokens of a file's rows: `tokens.arrow` as `encode_file` describes it; none for a file without rows.

    Args:
        file: Parquet file in the clean artifact.
        sha256: Its digest, which is part of the key as its name is not.
        meta_sha256: That of the clean rows' `meta.json`, which says what a label is.
        max_seq_length: Longest sequence in tokens.
        stride: Tokens that neighbouring windows share; none: longer texts are cut.
        task: The recipe's task; its family says what is encoded.
        notes: See `Family.of_base`.
        base_digest: Digest of the base model.
        folder: Where the clean artifact is, asked when needed.
        base: The base model.
        out: Where to write.

    Returns:
        The number of `rows`.

    Raises:
        RecipeError: The base model cannot read sequences this long, its special tokens leave no room for windows, it
            has no fast tokenizer, or that of another model.
    """
    del sha256, meta_sha256, base_digest
    _refuse_unreadable_length(max_seq_length, longest_input(base.config))
    if stride is not None:
        _refuse_wide_stride(stride, max_seq_length, base.tokenizer.special_tokens)
    meta = json.loads((folder() / "meta.json").read_text())
    meta |= notes
    meta |= {"max_seq_length": max_seq_length, "overlong": "truncate" if stride is None else "window", "stride": stride}
    rows = encode_file(
        family_of(task),
        meta,
        base.tokenizer,
        vocab_size=base.config.get("vocab_size"),
        rows=folder() / file,
        out=out / TOKENS,
    )
    return {"rows": rows}


def encode_file(
    family: Family, meta: Meta, tokenizer: BaseTokenizer, *, vocab_size: int | None, rows: Path, out: Path
) -> int:
    """Write the tokens of a file's rows: `id`, `input_ids`, `length`, `uncut`, and what the family adds: `labels`.

    `uncut` is the length of the whole text in tokens, or `FURTHER` for the second and later windows of one.

    Args:
        family: Says what is encoded.
        meta: The task's, with `max_seq_length`, `overlong` and `stride`: longer texts become windows, or are cut.
        tokenizer: The base model's.
        vocab_size: Ids that the model knows; none where it does not say.
        rows: Parquet file.
        out: Arrow stream to write; not written when there is no row.

    Returns:
        Rows read.

    Raises:
        RecipeError: The tokenizer makes an id that the model has no embedding for.
    """
    import pyarrow as pa

    from tasks.rows import batches

    writer, read = None, 0
    try:
        for batch in _bounded(batches([rows], size=BATCH_ROWS), family.text_columns):
            encoded = encode_rows(family, meta, tokenizer, batch)
            _refuse_foreign_ids(vocab_size, int(pa.compute.max(encoded["input_ids"].flatten()).as_py() or 0))
            writer = writer or pa.ipc.new_stream(str(out), encoded.schema)
            writer.write_batch(encoded)
            read += batch.height
    finally:
        if writer:
            writer.close()
    return read


def encode_rows(family: Family, meta: Meta, tokenizer: BaseTokenizer, rows: pl.DataFrame) -> pa.RecordBatch:
    """The tokens of some rows; see `encode_file`. None is longer than `max_seq_length`."""
    import numpy as np
    import pyarrow as pa

    encoded = family.encode(rows, meta, tokenizer)
    pieces = np.asarray(encoded.pieces, np.int64)
    of_row = np.repeat(np.arange(len(pieces)), pieces)
    uncut = np.full(len(of_row), FURTHER, np.int32)
    uncut[np.cumsum(pieces) - pieces] = encoded.uncut
    given = encoded.input_ids
    tokens = given if isinstance(given, pa.ListArray) else pa.array(given, pa.list_(pa.int32()))
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array(rows["id"].gather(of_row).to_list(), pa.string()),
            "input_ids": tokens,
            "length": pa.compute.list_value_length(tokens),
            **encoded.columns,
            "uncut": pa.array(uncut),
        }
    )


def read_tokens(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The batches of all parts, one after the other, mapped from disk."""
    import pyarrow as pa

    for file in (part / TOKENS for part in parts):
        if file.exists():
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                yield from stream


def _bounded(frames: Iterable[pl.DataFrame], text_columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows of each frame, in pieces of `BATCH_BYTES` of text."""
    import polars as pl

    size = pl.sum_horizontal(pl.col(column).str.len_bytes() for column in text_columns)
    for frame in frames:
        piece = frame.select((size.cum_sum() // BATCH_BYTES).alias("piece")).to_series()
        if piece.n_unique() <= 1:
            yield frame
        else:
            yield from (rows for _, rows in frame.group_by(piece, maintain_order=True))


def _refuse_unreadable_length(max_seq_length: int, limit: int | None) -> None:
    if limit is not None and max_seq_length > limit:
        rule = f"the base model reads at most {limit} tokens"
        raise RecipeError(Problem("tokenize.max_seq_length", max_seq_length, rule, f"set it to {limit} or less"))


def _refuse_wide_stride(stride: int, max_seq_length: int, special_tokens: int) -> None:
    room = max_seq_length - special_tokens
    if stride >= room:
        rule = f"a window of {max_seq_length} tokens has room for {room} of the text, so that no window would get on"
        raise RecipeError(Problem("tokenize.stride", stride, rule, f"set it to {room - 1} or less"))


def _refuse_foreign_ids(vocab_size: int | None, largest: int) -> None:
    if vocab_size is not None and largest >= vocab_size:
        rule = f"the tokenizer makes token {largest}, the model knows {vocab_size}: they do not belong together"
        raise RecipeError(Problem("model.base", largest, rule, "put the tokenizer of this model into its folder"))
