"""Preparing data: hone beside a plain script of pandas and datasets, on the same CSV file.

    python -m benchmarks.plain_preparation                       # 10,000 to a million rows, three rounds
    python -m benchmarks.plain_preparation --rows 10000 --rounds 1
    python -m benchmarks.plain_preparation --report

Everyone reads a CSV file, takes markup out of its texts, drops exact duplicates, deals the rows to train, validation
and test, and writes their tokens to disk. The rows are those of `benchmarks.preparation`, every tenth of them inside
tags. hone is measured with the rules that it has by default, and with those alone that the script has, too; either way
it also validates rows, keeps those that fell out with their reasons, and leaves each step in its store. URLs stay where
they are: hone has no rule for them. Needs the demo extra.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.preparation import BATCH, ENCODER, PeakMemory, Texts
from benchmarks.side_by_side import Benchmark, Case, Line, by_contestant, main, middle, ratio, spread, times
from schemas.loading import validate_recipe
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.markdown import table
from tasks.sources.locations import locate_in_package
from tasks.split import split
from tasks.tokenize import tokenize

if TYPE_CHECKING:
    import polars as pl

ROWS = (10_000, 100_000, 1_000_000)
MAX_SEQ_LENGTH = 128
HELD_OUT = 0.1
"""Share of validation, and of test."""
MARKED = 10
"""One row in so many stands inside tags."""
BEFORE, AFTER = '<p class="a">', "</p><!-- end -->"
PLAIN, SAME, USUAL = "pandas and datasets", "hone, the same rules", "hone"
CONTESTANTS = {
    USUAL: "collect, clean, split and tokenize with the usual rules: also mojibake, contradicting labels, near "
    "duplicates across sides",
    SAME: "the same stages without those",
    PLAIN: "`pandas.read_csv`, a regular expression and `html.unescape`, `drop_duplicates`, "
    "`Dataset.train_test_split`, `Dataset.map(batched=True)` with the fast tokenizer, `save_to_disk`",
}
RULES: dict[str, dict[str, Any]] = {
    USUAL: {"clean": {}, "near_duplicates": {}},
    SAME: {"clean": {"fix_text": False, "drop_contradictions": False}, "near_duplicates": {"search": False}},
}
TAG = r"<!--.*?-->|</?[A-Za-z][^<>]*>"


def prepare(settings: Case, folder: Path) -> None:
    """The rows as one CSV file."""
    with (folder / "rows.csv").open("wb") as out:
        for place, frame in enumerate(frames(settings["rows"])):
            frame.write_csv(out, include_header=place == 0)


def frames(rows: int) -> Iterator[pl.DataFrame]:
    """The rows of `benchmarks.preparation`, some of them marked up."""
    import polars as pl

    texts, size = Texts(), min(BATCH, rows)
    tagged = (pl.int_range(pl.len()) % MARKED) == 0
    for start in range(0, rows, size):
        frame = texts.batch(start // size, min(size, rows - start))
        text = pl.col("text")
        yield frame.with_columns(pl.when(tagged).then(pl.lit(BEFORE) + text + pl.lit(AFTER)).otherwise(text))


def measure(case: Case, folder: Path) -> Line:
    """Seconds and peak memory from the file to tokens on disk, imports counted; rows and tokens that are left."""
    name, source = case["contestant"], folder / "rows.csv"
    work: Callable[[Path, Path], Callable[[], Line]] = plain if name == PLAIN else lambda *paths: hone(name, *paths)
    with tempfile.TemporaryDirectory(prefix="hone-home-") as out:
        with PeakMemory() as memory:
            began = time.perf_counter()
            left = work(source, Path(out))
            seconds = time.perf_counter() - began
        rate = case["rows"] / seconds
        return {**left(), "seconds": seconds, "rows_per_second": rate, "peak_memory_bytes": memory.peak}


def hone(name: str, source: Path, out: Path) -> Callable[[], Line]:
    """The stages that a recipe runs; says what is left."""
    os.environ["HONE_HOME"] = str(out)
    rules = RULES[name]
    recipe = validate_recipe(
        {
            "name": "preparation",
            "task": {"family": "text-classification"},
            "model": {"base": ENCODER},
            "collect": {"source": {"kind": "csv", "path": str(source)}},
            "clean": {"strip_markup": True, "max_quarantined": 0.3, **rules["clean"]},
            "split": {
                "kind": "hash",
                "validation": HELD_OUT,
                "test": HELD_OUT,
                "near_duplicates": rules["near_duplicates"],
            },
            "tokenize": {"max_seq_length": MAX_SEQ_LENGTH},
        }
    )
    context = Context(recipe, Home.open(out), run_id="")
    cleaned = clean(context, collect(context))
    tokens = tokenize(context, cleaned, split(context, cleaned))
    return lambda: {name: sum(tokens.summary[name].values()) for name in ("rows", "tokens")}


def plain(source: Path, out: Path) -> Callable[[], Line]:
    """What one writes in an afternoon; says what is left."""
    import datasets
    import pandas as pd
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    rows = pd.read_csv(source)
    rows["text"] = [stripped(text) for text in rows["text"]]
    rows = rows[rows["text"] != ""].drop_duplicates(["text", "label"])
    labels = {label: number for number, label in enumerate(sorted(rows["label"].unique()))}
    rows["label"] = rows["label"].map(labels)
    whole = datasets.Dataset.from_pandas(rows, preserve_index=False)
    first = whole.train_test_split(test_size=HELD_OUT, seed=0)
    second = first["train"].train_test_split(test_size=HELD_OUT / (1 - HELD_OUT), seed=0)
    sides = datasets.DatasetDict(train=second["train"], validation=second["test"], test=first["test"])
    tokenizer = AutoTokenizer.from_pretrained(locate_in_package(ENCODER, "model.base"))

    def tokenized(batch: dict[str, list[Any]]) -> Any:
        return tokenizer(batch["text"], truncation=True, max_length=MAX_SEQ_LENGTH)

    done = sides.map(tokenized, batched=True)
    done.save_to_disk(out / "tokens")
    return lambda: {
        "rows": sum(side.num_rows for side in done.values()),
        "tokens": sum(len(row["input_ids"]) for side in done.values() for row in side),
    }


def stripped(text: str) -> str:
    """Without markup, entities resolved, one space between words."""
    return " ".join(html.unescape(re.sub(TAG, " ", text, flags=re.DOTALL)).split())


def page(lines: Sequence[Line]) -> str:
    """Rows a second and memory, and both beside the script's."""
    groups = by_contestant(lines, CONTESTANTS)
    script = groups.get(PLAIN, [])
    head = ("contestant", "rows/s", "by the script", "seconds", "memory, MiB", "by the script", "rows left", "tokens")
    body = [
        (
            name,
            spread(measured, "rows_per_second"),
            times(ratio(measured, script, "rows_per_second")),
            spread(measured, "seconds", ",.2f"),
            f"{middle(measured, 'peak_memory_bytes') / 2**20:,.0f}",
            times(ratio(measured, script, "peak_memory_bytes")),
            f"{measured[0]['rows']:,}",
            f"{measured[0]['tokens']:,}",
        )
        for name, measured in groups.items()
    ]
    notes = "Medians over the rounds, in brackets the least and the most; imports are counted, generating rows is not."
    return "\n\n".join([table(head, body), notes])


BENCHMARK = Benchmark(
    name="plain_preparation",
    contestants=CONTESTANTS,
    settings=("rows",),
    prepare=prepare,
    measure=measure,
    page=page,
    title="Preparing data, side by side",
    introduction="so many generated texts of about 15 words in one CSV file, 3 % exact and 5 % near duplicates, every "
    "tenth inside tags, become tokens of MiniLM-L6 on disk.",
)


def run(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_preparation", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="how many rows, one or several numbers")
    return main(BENCHMARK, parser, arguments, expand=lambda asked: [{"rows": rows} for rows in asked.rows])


if __name__ == "__main__":
    sys.exit(run())
