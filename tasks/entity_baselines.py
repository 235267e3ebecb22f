"""Trivial taggers that a fine-tuned model has to beat: one tag for every word, and the usual tag of each word.

Neither looks at the words around. Tags that make no sense together count as conlleval counts them: an I- that nothing
of its type goes before begins an entity.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.rows import Writer, batches

if TYPE_CHECKING:
    import polars as pl

WORD = r"[^\s\x1c-\x1f]+"
"""What stands between white space, as Python has it: `tasks.rules.tagging.WORD` in Rust's regex."""


def tagging(split: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Fit both on the training rows and write their predictions of the test rows.

    Args:
        split: Folder with `train.parquet` and `test.parquet`: columns id, text, tags.
        out: Where `majority.parquet` and `dictionary.parquet` go: columns id, truth, prediction.

    Returns:
        Name → what was chosen.
    """
    import polars as pl

    counts = _counts(split / "train.parquet")
    majority = counts.group_by("tag").agg(pl.col("words").sum()).sort(["words", "tag"], descending=[True, False]).row(0)
    usual = counts.sort(["words", "tag"], descending=[True, False]).unique("word", keep="first", maintain_order=True)
    tags = pl.List(pl.String)
    schema = pl.Schema([("id", pl.String), ("truth", tags), ("prediction", tags)])
    with (
        Writer(out / "majority.parquet", schema) as of_majority,
        Writer(out / "dictionary.parquet", schema) as of_dictionary,
    ):
        for rows in batches([split / "test.parquet"], ["id", "text", "tags"]):
            told = rows.select("id", truth=pl.col("tags").str.split(" "))
            all_alike = pl.col("truth").list.eval(pl.lit(majority[0]).repeat_by(pl.len()).explode())
            of_majority.write(told.with_columns(prediction=all_alike))
            of_dictionary.write(told.with_columns(_looked_up(rows, usual, majority[0])))
    return {
        "majority": {"tag": majority[0], "share": round(majority[1] / counts["words"].sum(), 4)},
        "dictionary": {"words": usual.height},
    }


def _counts(file: Path) -> pl.DataFrame:
    """How often each `word` has each `tag`, as `words`."""
    import polars as pl

    pairs = pl.scan_parquet(file, glob=False).select(
        word=pl.col("text").str.extract_all(WORD), tag=pl.col("tags").str.split(" ")
    )
    return pairs.explode("word", "tag").group_by("word", "tag").agg(words=pl.len()).collect(engine="streaming")


def _looked_up(rows: pl.DataFrame, usual: pl.DataFrame, otherwise: str) -> pl.Series:
    """The usual tag of each word; `otherwise` for one that no training row has."""
    import polars as pl

    words = rows.select("id", word=pl.col("text").str.extract_all(WORD)).explode("word")
    tags = words.join(usual.select("word", "tag"), on="word", how="left", maintain_order="left")
    return tags.group_by("id", maintain_order=True).agg(prediction=pl.col("tag").fill_null(otherwise))["prediction"]
