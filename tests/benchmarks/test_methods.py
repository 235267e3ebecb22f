from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import methods

CONDITIONS = {"commit": "abc", "date": "2026-01-02T03:04:05", "cpu": "a cpu", "cores": 2, "python": "3.11"}


def line_of(case: methods.Case, validation: float) -> dict[str, object]:
    return {
        "family": "text-classification", "metric": "macro_f1", "validation": validation, "value": 0.7, "low": 0.65,
        "high": 0.75, "test_rows": 100, "trainable_parameters": 10, "parameters": 1_000, "tokens_per_second": 5_000.0,
        "peak_memory_bytes": 2**30, "checkpoint_bytes": 2**20, "seconds": 3.0, "precision": "fp32", "device": "cpu",
        "merge_difference": None if case.method == "full" else 2e-7, "cpu_seconds": 42.0, "case": vars(case),
        "conditions": CONDITIONS,
    }  # fmt: skip


def test_a_method_is_tried_at_its_own_rate_a_third_and_the_threefold() -> None:
    rates = [case.learning_rate for case in methods.cases("a.yaml", ["full", "ia3"], methods.FACTORS, 9)]
    assert rates == [1e-4, 1.5e-2, 3e-4, 4.5e-2, 3.3e-5, 5e-3]


def test_a_finished_case_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(command: list[str], **_: object) -> object:
        case = json.loads(command[-1])
        ran.append(case["learning_rate"])
        told = line_of(methods.Case(**case), 0.5)
        del told["case"], told["conditions"]
        return type("Child", (), {"stdout": "chatter\n" + json.dumps(told)})

    monkeypatch.setattr(methods.subprocess, "run", run)
    monkeypatch.setattr(methods, "conditions", lambda: CONDITIONS)
    wanted = list(methods.cases("a.yaml", ["lora"], methods.FACTORS, 9))
    results = tmp_path / "results" / "methods.jsonl"
    methods.run_cases(tmp_path / "a.yaml", wanted[:1], tmp_path, results)
    methods.run_cases(tmp_path / "a.yaml", wanted, tmp_path, results)
    assert ran == [case.learning_rate for case in wanted]
    assert [line["case"]["learning_rate"] for line in methods.recorded(results)] == ran


def test_the_rate_that_validation_liked_best_is_shown() -> None:
    (full, *_), lora = (list(methods.cases("a.yaml", [name], methods.FACTORS, 9)) for name in ("full", "lora"))
    lines = [line_of(full, 0.1), *map(line_of, lora, (0.6, 0.5, 0.4))]
    page = methods.report(lines)
    costs = "10 (1.00%) | 5,000 | 42 s | 1,024 MiB | 1.0 MiB"
    assert f"| lora | 0.0015 | 0.7000 (0.6500 to 0.7500) | {costs} | 2e-07 |" in page
    assert f"| full | 0.0001 | 0.7000 (0.6500 to 0.7500) | {costs} |  |" in page
    assert "lora 0.0005: 0.400, 0.0015: 0.600, 0.0045: 0.500" in page
