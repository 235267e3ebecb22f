from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from flows import observer, steps
from flows.cli import main
from flows.observer import RunObserver
from flows.pipeline import PipelineContext, begin
from flows.stages import STAGE_FLOWS
from schemas.errors import EnvironmentMistake
from schemas.recipe import Recipe
from schemas.records import Artifact
from schemas.stages import STAGES, Stage
from tasks import onnx_job
from tasks.home import Home
from tasks.start import Start
from tests.prepared import version

pytest_plugins = ("tests.mlflow_home",)

ALL = ["collect", "clean", "split", "data-report", "tokenize", "train", "evaluate", "gate", "register"]


def artifact(stage: str, **more: Any) -> Artifact:
    about: dict[str, Any] = {"key": "k", "cached": False, "why": "", "seconds": 1.0, "run_id": "", "summary": {}}
    return Artifact(stage=stage, **about | more)


class Steps:
    """The stages, of which each notes what it was given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.given: dict[str, tuple[Any, ...]] = {}
        self.said: list[str] = []
        for name in (*ALL, "replay"):
            patch.setattr(steps, name.replace("-", "_"), self._stage(name))
        told = SimpleNamespace(say=self.said.append)
        self.context: Any = SimpleNamespace(learns_on=False, run=None, observer=told, start_from=self._start)
        self.started_from: str | None = None

    def _start(self, base: str) -> None:
        self.started_from = base

    def _stage(self, name: str) -> Callable[..., Artifact]:
        def act(context: Any, *given: Any, **named: Any) -> Artifact:
            self.given[name] = (*given, *named.values())
            return artifact(name)

        return act


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.mark.parametrize("last", STAGES)
def test_a_run_goes_as_far_as_it_is_asked_to(pipeline: Steps, last: Stage) -> None:
    done = steps.run_until(pipeline.context, last)
    wanted = ALL[: ALL.index(last) + 1]
    assert [outcome.stage for outcome in done] == wanted == list(pipeline.given)


def test_a_model_that_learns_on_is_given_the_lessons_and_measured_on_all_rows(
    pipeline: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.context.learns_on = True
    monkeypatch.setattr(steps, "starting_point", lambda context, sides: Start("from version 3", version(), "hashes"))
    done = [outcome.stage for outcome in steps.steps(pipeline.context)]
    assert done == [*ALL[:5], "replay", *ALL[5:]]
    assert (pipeline.started_from, pipeline.said) == ("models:/tiny/3", ["from version 3"])
    assert pipeline.given["replay"][2] == "hashes"
    assert pipeline.given["train"] == (artifact("replay"),)
    assert artifact("tokenize") in pipeline.given["evaluate"]
    assert artifact("replay") not in pipeline.given["evaluate"]


def test_one_that_begins_anew_is_given_all_rows(pipeline: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.context.learns_on = True
    monkeypatch.setattr(steps, "starting_point", lambda context, sides: Start("from the base model: nothing serves"))
    assert [outcome.stage for outcome in steps.steps(pipeline.context)] == ALL
    assert pipeline.given["train"] == (artifact("tokenize"),)
    assert (pipeline.started_from, pipeline.said) == (None, ["from the base model: nothing serves"])


def test_how_it_began_is_on_its_mlflow_run(pipeline: Steps) -> None:
    tags: dict[str, str] = {}
    pipeline.context.run = SimpleNamespace(set_tags=tags.update)
    begin(pipeline.context, Start("from the base model: nothing serves"))
    assert tags == {"hone.start": "from the base model: nothing serves"}
    begin(pipeline.context, Start("from version 3", version()))
    assert tags == {"hone.start": "from version 3", "hone.started_from": "models:/tiny/3"}


class Recorded:
    """An MLflow run that notes what it is told."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.linked: list[tuple[str, str]] = []

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_metrics(self, rows: Any) -> None:
        """Not looked at."""

    def link_cached(self, stage: str, run_id: str) -> None:
        self.linked.append((stage, run_id))


def test_a_run_tells_of_what_happened_before_it_and_links_what_a_run_made(
    home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warmed: list[Path] = []
    monkeypatch.setattr(observer.children, "warm", warmed.append)
    watching, run = RunObserver(home, recipe), Recorded()
    watching.computing("collect")
    watching.finished(artifact("collect", key="rows", summary={"rows": 10}))
    assert warmed == []
    watching.record_in(run)
    watching.computing("clean")
    cleaned = {"rows": 9, "quarantined": {"duplicate": 1}, "repaired": 0}
    watching.finished(artifact("clean", cached=True, summary=cleaned))
    dealt = {"train": 7, "validation": 1, "test": 1}
    watching.finished(artifact("split", cached=True, run_id="earlier", summary=dealt))
    assert warmed == [home.logs]
    assert run.tags["hone.stage.collect.key"] == "rows"
    assert run.linked == [("split", "earlier")]
    assert [line.message for line in caplog.records if line.name == "flows.observer"] == [
        "collect done: 10 rows",
        "clean is in the store: 9 kept, 1 quarantined, 0 repaired",
        "split is in the store: train 7, validation 1, test 1",
    ]


def test_every_stage_is_a_flow_that_a_deployment_can_name() -> None:
    from prefect.utilities.importtools import import_object

    for stage, flow in STAGE_FLOWS.items():
        assert import_object(f"flows.stages.{stage}_flow") is flow
        assert (flow.name, list(flow.parameters.properties)) == (stage, ["recipe", "refresh"])
        assert flow.description is not None
        assert f"up to and including {stage}." in flow.description
    assert tuple(STAGE_FLOWS) == STAGES


@pytest.mark.parametrize("option", ["--until", "--refresh"])
def test_a_stage_that_is_none_is_refused(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "name": "tiny", "task": {"family": "text-classification"}, "model": {"base": "b"},
        "collect": {"source": {"kind": "csv", "path": "x.csv"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml"), option, "prepare"]) == 2
    assert f"hone: {option} = 'prepare': is not a stage; choose among collect," in capsys.readouterr().err


def test_what_cannot_be_registered_is_refused_before_there_is_a_run(
    home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_job.importlib.util, "find_spec", lambda library: None)
    wanted = recipe.model_copy(update={"registry": recipe.registry.model_copy(update={"onnx": True})})
    with pytest.raises(EnvironmentMistake, match="needs the extra `onnx`"):
        PipelineContext(wanted, home, None, ()).record()
    assert MlflowClient(home.mlflow_uri).get_experiment_by_name("tiny") is None
