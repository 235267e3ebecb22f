"""Rows on disk: Parquet files read and written batch by batch, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import polars as pl

BATCH_ROWS = 50_000
"""Rows that pass at once: a few ten megabytes of ordinary texts."""
COMPRESSION = "zstd"


def files(folder: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names; the file itself where it is one."""
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]


def batches(
    files: Sequence[Path], columns: Sequence[str] | None = None, size: int = BATCH_ROWS
) -> Iterator[pl.DataFrame]:
    """The rows of `files` in order, at most `size` at a time; no batch has rows of two files.

    Args:
        files: Parquet files.
        columns: Columns to read, in this order; default: all.
        size: Most rows of a batch.
    """
    import polars as pl
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(size, columns=columns):
                frame = pl.DataFrame(batch)
                yield frame if columns is None else frame.select(columns)


def count(files: Sequence[Path]) -> int:
    """Rows in all files together, from their footers alone."""
    import pyarrow.parquet as pq

    return sum(int(pq.read_metadata(path).num_rows) for path in files)


class Writer:
    """Writes frames to one Parquet file, each as a row group, when they come: one is written while the next is made.

    Args:
        path: The file.
        schema: What every frame has; with it a file without rows is written when none came, without it no file.

    Attributes:
        rows: Number of rows written.
        schema: As given.
    """

    def __init__(self, path: Path, schema: pl.Schema | None = None) -> None:
        self.rows = 0
        self._path = path
        self.schema = schema
        self._writer: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, frame: pl.DataFrame) -> None:
        """Append `frame`; its columns and types are those of the frames before it."""
        import polars as pl
        import pyarrow.parquet as pq

        frame = frame.select(self.schema.names()) if self.schema is not None else frame
        # Without views, which pyarrow 18 cannot write.
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression=COMPRESSION)
        if frame.height:
            self._wait()
            self._pending = self._thread.submit(self._writer.write_table, table, row_group_size=frame.height)
            self.rows += frame.height

    def _wait(self) -> None:
        """Until the last frame is written, or to say why it is not."""
        if self._pending is not None:
            self._pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import polars as pl

        if self._writer is None and self.schema is not None and kind is None:
            self.write(pl.DataFrame(schema=self.schema))
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown()
            if self._writer is not None:
                self._writer.close()
