from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import side_by_side
from benchmarks.side_by_side import Benchmark, Case, Line, Watch, middle, ratio, spread, turns

CONDITIONS = {
    "commit": "abc", "date": "2026-01-02T03:04:05", "cpu": "a cpu", "cores": 2, "python": "3.11",
    "libraries": {"torch": "2.0"},
}  # fmt: skip


def told(lines: Any) -> str:
    return f"{len(lines)} lines"


BENCHMARK = Benchmark(
    name="none", contestants={"ours": "what we have", "theirs": "what others have"}, settings=("rows",),
    prepare=None, measure=lambda case, _: {"rate": case["rows"]}, page=told, title="A title", introduction="It is so.",
)  # fmt: skip


def line(contestant: str, number: int, rate: float) -> Line:
    return {"case": {"contestant": contestant, "round": number, "rows": 9}, "rate": rate, "conditions": CONDITIONS}


def test_everyone_is_first_in_one_of_the_rounds() -> None:
    order = [case["contestant"] for case in turns(["a", "b", "c"], 3, {})]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_ratio_compares_what_was_measured_in_the_same_round() -> None:
    ours = [line("ours", 0, 10.0), line("ours", 1, 40.0), line("ours", 2, 30.0)]
    theirs = [line("theirs", 2, 10.0), line("theirs", 0, 5.0), line("theirs", 1, 80.0)]
    assert ratio(ours, theirs, "rate") == 2.0  # of 2, 0.5 and 3
    assert middle(ours, "rate") / middle(theirs, "rate") == 3.0  # which is another thing
    assert ratio(ours, theirs[:1], "rate") == 3.0
    assert ratio(ours, [], "rate") is None


def test_a_single_round_has_no_spread() -> None:
    assert spread([line("ours", 0, 1234.4)], "rate") == "1,234"
    assert spread([line("ours", n, rate) for n, rate in enumerate((5, 1, 2))], "rate", ".1f") == "2.0 (1.0 to 5.0)"


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Case] = []

    def child(command: list[str], **_: Any) -> SimpleNamespace:
        ran.append(json.loads(command[-1]))
        if len(ran) == 3:
            raise subprocess.CalledProcessError(1, command)
        return SimpleNamespace(stdout='chatter\n{"rate": 3.0}\n')

    monkeypatch.setattr(subprocess, "run", child)
    monkeypatch.setattr(side_by_side, "conditions", lambda _: CONDITIONS)
    results, cases = tmp_path / "new" / "none.jsonl", list(turns(list(BENCHMARK.contestants), 2, {"rows": 9}))
    with pytest.raises(subprocess.CalledProcessError):
        side_by_side.run_cases(BENCHMARK, cases, tmp_path, results)
    assert [found["case"] for found in side_by_side.recorded(results)] == cases[:2]  # what failed has no line
    side_by_side.run_cases(BENCHMARK, cases, tmp_path, results)
    assert ran == [*cases[:3], *cases[2:]]
    assert [found["case"] for found in side_by_side.recorded(results)] == cases
    side_by_side.run_cases(BENCHMARK, list(turns(["ours"], 1, {"rows": 10})), tmp_path, results)
    assert ran[-1]["rows"] == 10  # other settings are another case


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("began"))
    side_by_side.run_cases(BENCHMARK, list(turns(["ours"], 1, {})), tmp_path, tmp_path / "none.jsonl", within=-1)


def test_rows_are_prepared_once_for_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared: list[int] = []

    def prepare(settings: Case, folder: Path) -> None:
        prepared.append(settings["rows"])
        (folder / "rows").write_text("some")

    bench = Benchmark(**{**vars(BENCHMARK), "prepare": prepare})
    case = {"contestant": "ours", "round": 0, "rows": 9}
    folder = side_by_side.folder_of(case, tmp_path)
    assert folder == side_by_side.folder_of({**case, "round": 7, "contestant": "theirs"}, tmp_path)
    assert folder != side_by_side.folder_of({**case, "rows": 8}, tmp_path)
    arguments = ["--work", str(tmp_path), "--here", json.dumps({"rows": 9, "prepare": True})]
    side_by_side.main(bench, argparse.ArgumentParser(), arguments)
    assert (folder / side_by_side.READY).exists()
    assert prepared == [9]
    side_by_side.main(bench, argparse.ArgumentParser(), ["--work", str(tmp_path), "--here", json.dumps(case)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"rate": 9}


def test_the_page_has_a_section_for_each_settings_and_says_who_took_part(tmp_path: Path) -> None:
    results = tmp_path / "none.jsonl"
    other = line("ours", 0, 2.0)
    other["case"]["rows"] = 10
    results.write_text("".join(json.dumps(one) + "\n" for one in (line("ours", 0, 1.0), line("ours", 1, 1.0), other)))
    side_by_side.main(BENCHMARK, argparse.ArgumentParser(), ["--results", str(results), "--report"])
    page = results.with_suffix(".md").read_text()
    assert "## Rows 9\n\n2 lines\n\na cpu, 2 cores, Python 3.11, torch 2.0, commit abc, 2026-01-02." in page
    assert "## Rows 10\n\n1 lines" in page
    assert "- ours: what we have" in page
    assert "- theirs" not in page


def test_evaluations_are_told_apart_from_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Learner:
        state = SimpleNamespace(global_step=0)

        def train(self) -> None:
            for step in (1, 2):
                now[0] += 10
                self.state.global_step = step
                self.evaluate()

        def evaluate(self) -> dict[str, float]:
            now[0] += 3
            return {"eval_f1": 0.5 * self.state.global_step, "other": 1.0}

    watch = Watch(Learner, {"f1": "eval_f1"})
    Learner().train()
    assert watch.seconds == 26
    assert watch.evaluating == 6
    assert watch.curve == [{"step": 1, "seconds": 13, "f1": 0.5}, {"step": 2, "seconds": 26, "f1": 1.0}]


def test_memory_is_that_of_the_process_at_its_most() -> None:
    told = "import benchmarks.side_by_side as s; before = s.peak_memory(); held = bytearray(b'x' * 2**27); del held; "
    command = [sys.executable, "-c", f"{told} print(s.peak_memory() - before, before)"]
    more, before = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert 2**26 < more < 2**28
    assert 2**23 < before < 2**30


def llama(*, tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def test_parameters_that_are_looked_up_are_not_multiplied() -> None:
    layer = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32 + 3 * 16  # queries and output, keys and values, the rest, norms
    assert side_by_side.parameters_multiplied(llama(tied=True)) == layer + 100 * 16
    assert side_by_side.parameters_multiplied(llama(tied=False)) == layer + 100 * 16
    assert side_by_side.parameters_multiplied(llama(tied=True), head=False) == layer


def test_adapters_do_not_count_as_parameters_of_the_model() -> None:
    from peft import LoraConfig, get_peft_model

    expected = side_by_side.parameters_multiplied(llama(tied=True))
    adapted = get_peft_model(llama(tied=True), LoraConfig(r=2, target_modules="all-linear"))
    assert side_by_side.parameters_multiplied(adapted) == expected
