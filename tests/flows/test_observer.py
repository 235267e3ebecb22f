from __future__ import annotations

import pytest

from flows import observer as observing
from flows.observer import RunObserver
from tasks import tracking
from tasks.families import family_of
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)


def test_what_training_kept_of_a_step_that_went_wrong_is_an_artifact_of_the_run_that_fails(home, recipe, tmp_path):
    kept = tmp_path / "nan-step-7.json"
    kept.write_text('{"step": 7}')
    run = Run.start(home, recipe)
    observer = RunObserver(home, recipe)
    observer.record_in(run)
    observer.event({"file": str(kept)})
    kept.unlink()
    run.end("FAILED")
    mlflow = tracking.client(home)
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    assert [each.path for each in mlflow.list_artifacts(run.run_id, "train")] == ["train/nan-step-7.json"]


@pytest.mark.parametrize(("serving", "asked"), [(None, 1), ("version 3", 2)])
def test_a_process_waits_for_each_model_that_will_be_asked(home, recipe, monkeypatch, serving, asked):
    warmed = []
    monkeypatch.setattr(observing, "champion", lambda home, name: serving)
    monkeypatch.setattr(observing.verifiers, "warm", lambda family, count: warmed.append((family, count)))
    monkeypatch.setattr(observing.children, "warm", lambda logs: None)
    observer = RunObserver(home, recipe)
    observer.computing("evaluate")
    assert warmed == []  # without a run nothing is registered
    run = Run.start(home, recipe)
    observer.record_in(run)
    observer.computing("evaluate")
    run.end("FINISHED")
    assert warmed == [(family_of(recipe.task), asked)]
