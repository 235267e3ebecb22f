from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.errors import EnvironmentMistake
from schemas.recipe import Registry
from tasks import onnx_job


def test_without_the_extra_a_recipe_that_wants_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    onnx_job.require(Registry())
    with pytest.raises(EnvironmentMistake) as refusal:
        onnx_job.require(Registry(onnx=True))
    (problem,) = refusal.value.problems
    assert str(problem).startswith("registry.onnx = True: needs the extra `onnx`; pip install 'hone[onnx]'")


@pytest.mark.parametrize("count", [1, 64, 100, 12_000])
def test_rows_of_all_lengths_are_compared_and_none_is_kept(tmp_path: Path, count: int) -> None:
    lengths = [1 + (i * 617) % count for i in range(count)]  # each from 1 to count, once
    split, out = tmp_path / "split", tmp_path / "out"
    split.mkdir()
    out.mkdir()
    pl.DataFrame({"text": ["x" * length for length in lengths], "id": "i"}).write_parquet(split / "test.parquet")
    asked: list[dict[str, Any]] = []

    def run_job(job: str, spec: Any) -> dict[str, Any]:
        rows = pl.read_parquet(spec["rows"])
        asked.append({"job": job, "columns": rows.columns, "lengths": rows["text"].str.len_bytes().to_list()})
        return {"inputs": ["input_ids"]}

    about = onnx_job.onnx_file(
        family="text-classification", serving="s", split=split, model=tmp_path, run_job=run_job, out=out
    )
    (job,) = asked
    assert (job["job"], job["columns"]) == ("onnx", ["text"])
    found = job["lengths"]
    assert found == sorted(found)
    assert len(found) == min(count, 64)
    assert (found[0] <= 3, found[-1] > 0.99 * count) == (True, True)
    assert sorted(file.relative_to(out).as_posix() for file in out.rglob("*")) == [
        "onnx",
        "onnx/README.md",
        "onnx/about.json",
    ]
    assert json.loads((out / "onnx" / "about.json").read_text()) == about
