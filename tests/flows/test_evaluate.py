from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from flows import evaluate
from flows.evaluate import Judged, evaluation
from flows.terminal import Display
from schemas.recipe import Recipe
from schemas.records import Check
from tasks.candidates import Candidate
from tasks.context import Context
from tasks.gate import Rows
from tasks.home import Home
from tasks.tracking import Run
from tests.prepared import Prepared, version

pytest_plugins = ("tests.mlflow_home",)

CHECK = Check(name="champion:macro_f1", outcome="undecidable", rule="better", found="+0.01", rows_needed=9_000)
METRICS = {"macro_f1": 0.75, "macro_f1_low": 0.7, "macro_f1_high": 0.8, "f1/good": 0.5}


@pytest.fixture
def judged(home: Home, recipe: Recipe) -> Judged:
    prepared = Prepared(Context(recipe, home, run_id="r"))
    summary = {"rows": 38, "metrics": METRICS, "baselines": {"majority": {"macro_f1": 0.4}}, "slices": []}
    candidate = Candidate(
        summary=summary, predictions=pl.DataFrame(), parts=[], trained_on=None, identity="i",
        left_out={"trained_on": 2}, report="# page",
    )  # fmt: skip
    return Judged(
        run_id="run-1", run_url=None, rows=Rows(prepared.raw, prepared.raw, prepared.sides, prepared.tokens),
        candidate=candidate, serving=version(number="2"), checks=(CHECK,), decision="undecidable", rows_needed=9_000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_its_run_ends_as_the_evaluation_ends(
    home: Home, recipe: Recipe, error: BaseException | None, status: str
) -> None:
    with (
        pytest.raises(type(error)) if error else nullcontext(),
        evaluation(recipe, home, version(), Display(), "evaluate tiny 3", kind="evaluate") as (context, started),
    ):
        assert context.run_id == started.run_id
        if error:
            raise error
    run = MlflowClient(home.mlflow_uri).get_run(started.run_id)
    assert (run.info.status, run.info.run_name) == (status, "evaluate tiny 3")
    assert (run.data.tags["hone.kind"], run.data.tags["hone.model"]) == ("evaluate", "models:/tiny/3")


def test_what_was_found_is_logged_beside_the_verdict(home: Home, recipe: Recipe, judged: Judged) -> None:
    run = Run.start(home, recipe)
    evaluate.record(run, judged.candidate, judged.gate)
    run.end("FINISHED")
    logged = MlflowClient(home.mlflow_uri).get_run(run.run_id).data
    assert logged.metrics["test/f1/good"] == 0.5
    assert logged.metrics["baseline/majority/macro_f1"] == 0.4
    assert logged.tags["hone.gate"] == "undecidable"
    files = Path(MlflowClient(home.mlflow_uri).download_artifacts(run.run_id, ""))
    assert (files / "report.md").read_text() == "# page"
    assert '"decision": "undecidable"' in (files / "gate.json").read_text()


def test_a_script_is_told_all_of_it(recipe: Recipe, judged: Judged) -> None:
    found = evaluate._result(recipe, version(), judged)
    assert (found["model"], found["version"], found["mlflow_run_id"], found["rows"]) == ("tiny", "3", "run-1", 38)
    assert found["left_out"] == {"trained_on": 2}
    assert found["gate"] == {
        "decision": "undecidable", "rows_needed": 9_000, "champion": "2", "checks": [CHECK.model_dump()],
    }  # fmt: skip


def test_a_person_is_told_the_verdict_first_and_what_was_left_out(
    recipe: Recipe, judged: Judged, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate._print(recipe, version(), judged)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "tiny version 3  undecidable: too few test rows; about 9,000 would decide"
    assert [" ".join(line.split()) for line in lines[1:3]] == [
        "test metric model majority", "macro_f1 0.750 [0.700, 0.800] 0.400",
    ]  # fmt: skip
    assert lines[-3:] == [
        "38 test rows; version 2 of tiny serves",
        "2 test rows were left out: the version was trained on them.",
        "MLflow run run-1",
    ]
