from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks import latency
from tasks.families.text_classification import TextClassification
from tests.tiny_classifier import WORDS, tiny_model

SERVING = """
import json, time
from pathlib import Path


class Model:
    def load_context(self, context):
        self.folder = Path(context.artifacts["model"])
        self.asked = 0

    def predict(self, context, rows, params=None):
        with (self.folder / "requests.jsonl").open("a") as log:
            log.write(json.dumps([list(rows.columns), rows["text"].tolist()]) + "\\n")
        cold = self.asked < 5
        self.asked += 1
        time.sleep(COLD if cold else PAUSE)


MODEL = Model()
"""


class Timed:
    """Times a serving file that writes down what it is asked, and takes as long as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rows: int, pause: float = 0.0, cold: float = 0.0) -> dict[str, Any]:
        serving, file = self.folder / "serve.py", self.folder / "rows.parquet"
        serving.write_text(SERVING.replace("COLD", str(cold)).replace("PAUSE", str(pause)))
        pl.DataFrame({"text": [f"t{i}" for i in range(rows)], "other": 1}).write_parquet(file)
        return latency.latency(
            emit=lambda *args: None, serving=str(serving), model=str(self.folder), rows=str(file), columns=["text"]
        )

    @property
    def requests(self) -> list[list[str]]:
        lines = (self.folder / "requests.jsonl").read_text().splitlines()
        assert {tuple(json.loads(line)[0]) for line in lines} == {("text",)}
        return [json.loads(line)[1] for line in lines]


@pytest.fixture
def timed(tmp_path: Path) -> Timed:
    return Timed(tmp_path)


def test_all_requests_are_made_where_the_time_suffices(timed: Timed) -> None:
    found = timed(rows=1_000)
    assert (found["single_requests"], found["batches"]) == (200, 24)
    assert set(found) == {"latency_ms_p50", "latency_ms_p95", "rows_per_second", "single_requests", "batches"}
    sizes = [len(request) for request in timed.requests]
    assert sizes == [1] * (latency.WARM_UP + 200) + [32] * (latency.WARM_UP + 24)


def test_single_requests_are_spread_over_all_rows(timed: Timed) -> None:
    timed(rows=999)
    asked = [request[0] for request in timed.requests[latency.WARM_UP : latency.WARM_UP + 200]]
    assert (asked[0], asked[-1], len(set(asked))) == ("t0", "t998", 200)


def test_few_rows_are_each_asked_once(timed: Timed) -> None:
    found = timed(rows=40)
    assert (found["single_requests"], found["batches"]) == (40, 1)
    assert [request[0] for request in timed.requests[latency.WARM_UP :][:40]] == [f"t{i}" for i in range(40)]
    # The last eight rows would be a batch of another size.
    assert [len(request) for request in timed.requests[-2:]] == [32, 32]


def test_less_than_a_batch_is_the_batch(timed: Timed) -> None:
    found = timed(rows=7, pause=0.01)
    assert (found["single_requests"], found["batches"]) == (7, 1)
    assert len(timed.requests[-1]) == 7
    assert 50 < found["rows_per_second"] <= 700


def test_the_first_requests_are_slow_and_not_timed(timed: Timed) -> None:
    found = timed(rows=60, cold=0.2)
    assert found["latency_ms_p95"] < 100


def test_what_is_reported_is_the_time_a_request_takes(timed: Timed) -> None:
    found = timed(rows=64, pause=0.02)
    assert 20 <= found["latency_ms_p50"] <= found["latency_ms_p95"] < 500
    assert 100 < found["rows_per_second"] <= 32 / 0.02


def test_a_slow_model_is_asked_no_longer_than_the_budget(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.2)
    found = timed(rows=1_000, pause=0.3, cold=0.3)
    # One request is over the budget already: one to warm up and one that counts, of each kind.
    assert (found["single_requests"], found["batches"]) == (1, 1)
    assert [len(request) for request in timed.requests] == [1, 1, 32, 32]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two that wait for each other on a busy machine would be no measure."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_model_is_timed_through_the_file_that_serves_it(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, seed=1)
    pl.DataFrame({"text": [" ".join(WORDS[i : i + 9]) for i in range(40)]}).write_parquet(tmp_path / "rows.parquet")
    found = latency.latency(
        emit=lambda *args: None, serving=str(TextClassification.serving), model=str(folder / "model"),
        rows=str(tmp_path / "rows.parquet"), columns=["text"],
    )  # fmt: skip
    assert found["single_requests"] == 40
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p95"]
    # A batch is faster for each of its rows than so many requests.
    assert found["rows_per_second"] > 1_000 / found["latency_ms_p50"]
