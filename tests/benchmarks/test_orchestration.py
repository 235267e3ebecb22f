from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import orchestration
from benchmarks.orchestration import BESIDE, DONE, EMBEDDED, FRESH, KNOWN, Line, overhead

CONDITIONS = {
    "commit": "abc", "date": "2026-01-02T03:04:05", "cpu": "a cpu", "cores": 2, "python": "3.11",
    "libraries": {"prefect": "3"},
}  # fmt: skip


def run_of(seconds: float, *, learns: bool = True) -> Line:
    stages = {"collect": 1.0, "train": 6.0 if learns else 0.25, "evaluate": 4.0 if learns else 0.5}
    found: Line = {"seconds": seconds, "stages": stages, "computed": ["train", "evaluate", "gate"], "steps": 9}
    if not learns:
        return {**found, "computed": ["gate"], "learning_seconds": 0.0}
    return {**found, "learning_seconds": 2.5, "first_step_seconds": seconds / 2}


def line_of(case: str, seconds: float) -> Line:
    runs = {FRESH: run_of(seconds), KNOWN: run_of(seconds - 4), DONE: run_of(5.0, learns=False)}
    return {"case": case, **runs, "conditions": CONDITIONS}


def test_learning_and_evaluating_are_left_out_and_the_start_of_the_child_is_not() -> None:
    assert overhead(run_of(20.0)) == {"collect": 1.0, "train": 3.5, "beside stages": 9.0}
    assert sum(overhead(run_of(20.0)).values()) == 20.0 - 2.5 - 4.0


def test_a_run_that_finds_all_done_is_all_overhead() -> None:
    found = overhead(run_of(5.0, learns=False))
    assert found == {"collect": 1.0, "train": 0.25, "evaluate": 0.5, "beside stages": 3.25}


def test_the_page_has_medians_of_every_kind_of_run() -> None:
    helps: Line = {"case": "help 3", "seconds": [0.1, 0.3, 0.2], "conditions": CONDITIONS}
    page = orchestration.report([helps, *(line_of(f"{EMBEDDED} {n}", 20.0 + n) for n in range(3)), line_of(BESIDE, 16)])
    assert "`hone --help`: 0.20 s (0.10 to 0.30), 3 times." in page
    assert "| embedded, fresh home | 3 | 10.5 s (10.0 to 11.0) | 21.0 s (20.0 to 22.0) | 2.5 s (2.5 to 2.5) |" in page
    assert "| beside servers, all done | 1 |  | 5.0 s |  | 5.0 s |" in page
    assert "| train | 3.50 | 3.50 | 0.25 | 3.50 | 3.50 | 0.25 |" in page
    assert "| beside stages | 10.00 | 6.00 | 3.25 | 5.00 | 1.00 | 3.25 |" in page
    assert "| all | 14.50 | 10.50 | 5.00 | 9.50 | 5.50 | 5.00 |" in page
    assert "prefect 3, commit abc, 2026-01-02." in page


def test_a_finished_case_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(orchestration, "conditions", lambda libraries: CONDITIONS)
    monkeypatch.setattr(orchestration, "help_case", lambda work, times: ran.append(times) or {"seconds": [0.1]})
    monkeypatch.setattr(orchestration, "run_case", lambda work, how, number: ran.append((how, number)) or {})
    results = tmp_path / "results" / "orchestration.jsonl"
    orchestration.run_cases(orchestration.cases(10, 1), tmp_path / "work", results)
    orchestration.run_cases(orchestration.cases(10, 2), tmp_path / "work", results)
    assert ran == [10, (EMBEDDED, 0), (BESIDE, 0), (EMBEDDED, 1), (BESIDE, 1)]
    assert [json.loads(line)["case"] for line in results.read_text().splitlines()] == [
        "help 10", "embedded 0", "beside servers 0", "embedded 1", "beside servers 1",
    ]  # fmt: skip
