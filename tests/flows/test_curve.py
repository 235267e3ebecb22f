from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows import learning_curve
from flows.cli import main
from flows.learning_curve import Point, learn, points_of
from flows.pipeline import PipelineContext
from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks import plan
from tasks.child import children
from tasks.context import Context
from tasks.home import Home
from tasks.train import train
from tasks.worker import JOBS
from tests.learning import tiny_encoder, token_files
from tests.prepared import artifact

pytest_plugins = ("tests.mlflow_home",)

COUNTS = {"train": 160, "validation": 40, "test": 40}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def recipe(base: Path) -> Recipe:
    return validate_recipe(
        {
            "name": "tiny",
            "task": {"family": "text-classification", "labels": ["negative", "positive"]},
            "collect": {"source": {"kind": "csv", "path": "/data/tiny.csv"}},
            "model": {"base": str(base)},
            "train": {
                "epochs": 1,
                "global_batch_size": 32,
                "learning_rate": 3e-3,
                "precision": "fp32",
                "early_stopping_patience": None,
            },
            "evaluate": {"bootstrap_resamples": 200},
        }
    )


@dataclass
class Jobs:
    """Does the child's jobs in this process, and notes them; one may be made to fail."""

    done: list[str] = field(default_factory=list)
    killed_at: int | None = None

    def run(self, logs: Path, job: str, spec: dict[str, Any], on_event: Any = None) -> Any:
        if job == "train" and self.done.count("train") == self.killed_at:
            raise KeyboardInterrupt
        self.done.append(job)
        module, function = JOBS[job].split(":")
        answer = getattr(importlib.import_module(module), function)(emit=lambda *_, **__: None, **spec)
        return json.loads(json.dumps(answer))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    doing = Jobs()
    monkeypatch.setattr(children, "run", doing.run)
    monkeypatch.setattr(plan, "cores", lambda: 1)  # threads would only wait for each other
    monkeypatch.setattr(children, "warm", lambda logs: None)
    monkeypatch.setattr(learning_curve, "report_curve", lambda found, folder, run: None)
    yield doing


def curve(home: Home, recipe: Recipe, shares: tuple[float, ...], seeds: int = 1) -> tuple[Any, Artifact, list[Point]]:
    """What the flow does when the rows are prepared."""
    context = PipelineContext(recipe, home, None, ())
    context.orchestrated = False
    context.record(kind="curve")
    assert context.run is not None
    tokens = artifact(context, "tokenize", lambda out: token_files(out, COUNTS), rows=COUNTS, windows={"train": 0})
    points = points_of(recipe, tokens, shares, seeds)
    try:
        return learn(context, tokens, points), tokens, points
    finally:
        context.run.end("FINISHED")


def test_every_point_is_a_model_on_a_share_of_the_rows_and_all_of_it_is_on_record(
    home: Home, recipe: Recipe, jobs: Jobs
) -> None:
    found, _, points = curve(home, recipe, (1.0, 0.1, 0.25, 0.5))
    assert [point.share for point in found.points] == [0.1, 0.25, 0.5, 1.0]
    rows = [point.rows for point in found.points]
    assert rows == sorted(rows)
    assert rows == pytest.approx([16, 40, 80, 160], abs=12)
    assert [point.steps for point in found.points] == [5] * 4  # as many as one pass over all rows has
    assert (found.trained, found.validation_rows, len(found.forecasts)) == (4, 40, 2)

    mlflow = MlflowClient(home.mlflow_uri)
    parent = mlflow.get_run(found.mlflow_run_id)
    assert parent.data.tags["hone.kind"] == "curve"
    assert parent.data.tags["mlflow.note.content"] == found.told
    history = mlflow.get_metric_history(found.mlflow_run_id, "curve/macro_f1")
    assert [(m.step, m.value) for m in history] == [(p.rows, pytest.approx(p.value.value)) for p in found.points]
    files = {file.path for file in mlflow.list_artifacts(found.mlflow_run_id, "curve")}
    assert {"curve/curve.png", "curve/report.md", "curve/curve.json"} <= files
    below = mlflow.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.mlflow_run_id}'", order_by=["start_time"]
    )
    assert [run.info.run_name for run in below] == [point.name for point in points]
    assert {run.info.status for run in below} == {"FINISHED"}
    last = below[-1].data
    assert last.metrics["curve/macro_f1"] == pytest.approx(found.points[-1].value.value)
    assert last.params["plan.steps"] == "5"
    assert below[0].data.params["train.max_steps"] == "5"


def test_the_point_of_all_rows_is_the_model_of_a_run_and_a_second_curve_trains_nothing(
    home: Home, recipe: Recipe, jobs: Jobs
) -> None:
    first, tokens, _ = curve(home, recipe, (0.5, 1.0))
    jobs.done.clear()
    model = train(Context(recipe, home, run_id="r"), tokens)
    assert model.cached
    second, _, _ = curve(home, recipe, (0.5, 1.0))
    assert jobs.done == []
    assert (first.trained, second.trained) == (2, 0)
    assert second.points == first.points
    third, _, _ = curve(home, recipe, (0.25, 0.5, 1.0))
    assert jobs.done == ["plan", "train", "predict"]
    assert third.points[1:] == first.points


def test_a_curve_that_was_killed_goes_on_where_it_was(home: Home, recipe: Recipe, jobs: Jobs) -> None:
    jobs.killed_at = 1
    with pytest.raises(KeyboardInterrupt):
        curve(home, recipe, (0.5, 1.0))
    mlflow = MlflowClient(home.mlflow_uri)
    experiment = mlflow.get_experiment_by_name("tiny")
    killed = mlflow.search_runs([experiment.experiment_id], "tags.`hone.kind` = 'curve-point'")
    assert sorted(run.info.status for run in killed) == ["FINISHED", "KILLED"]
    jobs.killed_at, jobs.done = None, []
    found, _, _ = curve(home, recipe, (0.5, 1.0))
    assert jobs.done.count("train") == found.trained == 1


def test_each_seed_draws_rows_of_its_own_and_the_model_of_a_run_comes_last(
    home: Home, recipe: Recipe, jobs: Jobs
) -> None:
    found, _, points = curve(home, recipe, (0.5, 1.0), seeds=2)
    assert [(point.recipe.train.seed, point.share) for point in points] == [(1, 0.5), (1, 1.0), (0, 0.5), (0, 1.0)]
    assert points[-1].recipe == recipe
    assert [(point.share, point.seeds) for point in found.points] == [(0.5, 2), (1.0, 2)]


def test_what_it_will_cost_is_said_beforehand(recipe: Recipe) -> None:
    about: dict[str, Any] = {"key": "k", "cached": True, "why": "", "seconds": 0.0, "run_id": ""}
    rows = {"train": 26_200, "validation": 3_514, "test": 3_732}
    tokens = Artifact(stage="tokenize", **about, summary={"rows": rows, "windows": {"train": 0}})
    points = points_of(recipe, tokens, (0.05, 1.0), 1)
    assert learning_curve.budget(points, tokens) == (
        "2 trainings on 1,310 to 26,200 rows, 919 optimiser steps in all; "
        "measured on 3,514 validation rows, never on the test"
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--shares", "0.5,2"), "--shares = '0.5,2': must be numbers above 0 and up to 1, with commas between them"),
        (("--shares", "0.5,half"), "--shares = '0.5,half': must be numbers"),
        (("--seeds", "0"), "--seeds = 0: must be 1 to 20"),
    ],
)
def test_shares_and_seeds_that_are_none_are_refused(
    tmp_path: Path, option: tuple[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "name": "tiny", "task": {"family": "text-classification"}, "model": {"base": "b"},
        "collect": {"source": {"kind": "csv", "path": "x.csv"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["curve", str(tmp_path / "recipe.yaml"), *option]) == 2
    assert f"hone: {told}" in capsys.readouterr().err
