"""What the benchmarks of side-by-side runs make of their measurements, and one contestant for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import encoder, gpu, prediction, sft
from benchmarks.side_by_side import Line


def training(contestant: str, scores: list[float], seconds: float) -> Line:
    """Evaluated every `seconds` seconds."""
    curve = [{"step": n, "seconds": seconds * n, "macro_f1": score} for n, score in enumerate(scores, 1)]
    return {
        "case": {"contestant": contestant, "round": 0, "rows": 9}, "curve": curve, "seconds": seconds * len(scores),
        "learning_seconds": 5.0, "tokens_per_second": 100.0 / seconds, "model_flops": 4e9, "matmul_flops": 16e9,
        "final": {"value": scores[-1], "low": 0.1, "high": 0.9}, "peak_memory_bytes": 2**30, "planning_seconds": 1.0,
        "steps": 3, "parameters": 1_000, "precision": "bf16", "attention": "eager",
    }  # fmt: skip


def test_seconds_are_counted_until_what_everyone_reached() -> None:
    lines = [training("hone", [0.2, 0.6, 0.7], 1.0), training("run_classification", [0.4, 0.5, 0.45], 10.0)]
    assert encoder.reached(lines) == 0.5
    assert [encoder.until(line, 0.5) for line in lines] == [2.0, 20.0]
    page = encoder.page(lines)
    assert "until F1 0.500, s" in page
    assert "| hone | 100 | 1.00x | 5.0 | 3.0 | 2.0 | 0.700 (0.100 to 0.900) | 1,024 | 25.0% | 1.0 |" in page
    assert "| run_classification | 10 | 10.00x | 5.0 | 30.0 | 20.0 | 0.450" in page


def test_every_row_is_seen_once_in_a_pass_of_the_loop() -> None:
    steps = list(sft.shuffled(10, 4, 2, seed=0))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    for rows in (steps[:3], steps[3:]):
        assert sorted(row for step in rows for row in step) == list(range(10))
    assert len(list(sft.shuffled(10, 4, 0.5, seed=0))) == 2


def test_padding_is_neither_attended_to_nor_learnt() -> None:
    given = sft.padded([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [-100]}])
    assert given["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert given["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]


def predicting(contestant: str, rate: float, differ: int = 0) -> Line:
    return {
        "case": {"contestant": contestant, "round": 0, "rows": 1_000}, "rows_per_second": rate, "seconds": 1.0,
        "differ": differ, "peak_memory_bytes": 2**30,
    }  # fmt: skip


def test_hone_is_compared_with_the_pipeline_at_its_best() -> None:
    rates = {"hone, batch": 900.0, "pipeline, 1": 100.0, "pipeline, 32": 300.0, "pipeline, 128": 200.0}
    page = prediction.page([predicting(name, rate, differ=5) for name, rate in rates.items()])
    assert "by pipeline, 32" in page
    assert "| hone, batch | 900 | 3.00x | 1.00 | 5 of 1,000 | 1,024 |" in page


def test_other_labels_are_an_error() -> None:
    with pytest.raises(ValueError, match="6 of 1000 labels differ"):
        prediction.page([predicting("hone, batch", 900.0, differ=6)])


def test_what_does_not_fit_is_tried_with_fewer_rows_and_then_with_activations_made_anew() -> None:
    case = {"shape": "1B", "method": "full", "sequence": 64, "rows": 0, "base": "bf16", "seconds": 1.0}
    ways = [(way.rows, way.remade) for way in gpu.ways(case, "cpu")]
    assert ways == [(4, False), (2, False), (1, False), (4, True), (2, True), (1, True)]


def test_what_does_not_fit_is_said_not_to_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tasks.memory.main_memory", lambda: 2**30)
    case = {"contestant": "Trainer", "round": 0, "shape": "8B", "method": "full", "sequence": 64, "rows": 0}
    line = gpu.measure({**case, "base": "bf16", "seconds": 1.0}, tmp_path)
    needed = 16 * 8_030_261_248 / 2**30  # parameters of Llama-3.1-8B
    assert line["failed"].endswith(f"weights, gradients and moments alone take {needed:.1f} GiB of 1.0 GiB")
    fitting = {
        "tokens_per_second": 10.0, "model_flops": 98.9e12, "matmul_flops": 500e12, "peak_memory_bytes": 2**30,
        "rows_a_pass": 1, "remade": True, "device": "NVIDIA H100 80GB HBM3",
    }  # fmt: skip
    page = gpu.page([{"case": case, **line}, {"case": {"contestant": "hone", "round": 0}, **fitting}])
    assert "| hone | 10 | 1.00x | 98.9 | 10.0% | 19.8% | 1.0 | 1 | made anew |" in page
    assert "| Trainer | does not fit into memory" in page


@pytest.mark.parametrize("method", gpu.METHODS)
def test_hones_step_teaches_a_model_made_from_its_configuration(method: str, tmp_path: Path) -> None:
    case = {"contestant": "hone", "round": 0, "shape": "tiny", "method": method, "sequence": 16, "rows": 2}
    line = gpu.measure({**case, "base": "bf16", "seconds": 0.05}, tmp_path)
    assert line["timed_steps"] >= 1
    assert line["tokens_per_second"] == pytest.approx(32 * line["timed_steps"] / line["timed_seconds"])
    assert line["parameters"] == 512 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
    assert json.dumps(line)
