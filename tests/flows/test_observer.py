from __future__ import annotations

from flows.observer import RunObserver
from tasks import tracking
from tasks.families import family_of
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)


def test_what_training_kept_of_a_step_that_went_wrong_is_an_artifact_of_the_run_that_fails(home, recipe, tmp_path):
    kept = tmp_path / "nan-step-7.json"
    kept.write_text('{"step": 7}')
    run = Run.start(home, recipe)
    observer = RunObserver(home, recipe.name, family_of(recipe.task))
    observer.record_in(run)
    observer.event({"file": str(kept)})
    kept.unlink()
    run.end("FAILED")
    mlflow = tracking.client(home)
    assert mlflow.get_run(run.run_id).info.status == "FAILED"
    assert [each.path for each in mlflow.list_artifacts(run.run_id, "train")] == ["train/nan-step-7.json"]
