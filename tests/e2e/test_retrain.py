"""Retraining as a user runs it: the same is not done twice, and the champion learns on where rows are new to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.held_out import read_hashes
from tests.e2e.conftest import Ended, Hone, Servers, make_project, write_rows
from tests.learning import sentences

pytestmark = pytest.mark.e2e

RECIPE = """\
name: NAME
task: {family: text-classification}
collect: {source: {kind: csv, path: rows.csv}}
clean: {max_quarantined: 0.9}
split: {kind: hash, near_duplicates: {search: false}}  # the sentences are made of a dozen words
tokenize: {max_seq_length: 40}
model: {base: ./base}
train: {epochs: 3, learning_rate: 3e-3, global_batch_size: 16, precision: fp32}
evaluate: {bootstrap_resamples: 500}
gate: {thresholds: [{metric: accuracy, at_least: 0.6}], beat_baseline: false, beat_champion: ignore}
registry: {promote: auto}
retrain: {start_from: champion, replay: 0.25}
"""
BEFORE, LATER = sentences(600), [*sentences(600)[100:], *sentences(200, seed=9)]


@pytest.fixture(scope="module")
def mlflow(servers: Servers) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(servers.mlflow)


@pytest.fixture(scope="module")
def hone(tmp_path_factory: pytest.TempPathFactory, base: Path, servers: Servers) -> Hone:
    return make_project(tmp_path_factory.mktemp("retrain") / "project", base, "retrained", servers, BEFORE, RECIPE)


@pytest.fixture(scope="module")
def first(hone: Hone) -> Ended:
    done = hone("retrain", "recipe.yaml")
    assert done.code == 0, done.errors
    return done


@pytest.fixture(scope="module")
def grown(hone: Hone, first: Ended) -> Ended:
    """Rows came, and some went."""
    write_rows(hone.project / "rows.csv", LATER)
    done = hone("retrain", "recipe.yaml")
    assert done.code == 0, done.errors
    return done


def learnt(hone: Hone, mlflow: Any, version: str, folder: Path) -> set[int]:
    from mlflow.artifacts import download_artifacts

    logged = mlflow.get_model_version("retrained", version).tags["hone.model_id"]
    root = mlflow.get_logged_model(logged).artifact_location
    where = {"dst_path": str(folder), "tracking_uri": mlflow.tracking_uri}
    file = download_artifacts(f"{root}/training_hashes.safetensors", **where)
    return set(read_hashes(Path(file)).tolist())


def known_by(texts: list[str]) -> set[int]:
    """Hashes of texts that are their own normalised form."""
    return {int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts}


def train_texts(hone: Hone, run: Ended) -> list[str]:
    key = next(stage["key"] for stage in run.result["stages"] if stage["name"] == "split")
    texts: list[str] = pl.read_parquet(hone.home / "store" / "split" / key / "train.parquet")["text"].to_list()
    return texts


def runs(mlflow: Any) -> int:
    found = mlflow.get_experiment_by_name("retrained")
    return len(mlflow.search_runs([found.experiment_id])) if found else 0


def test_with_nobody_serving_it_begins_with_the_base_model(first: Ended) -> None:
    assert first.result["model"]["aliases"] == ["champion"]
    assert first.result["started_from"] is None
    assert "from the base model: no version of retrained serves yet" in first.errors
    assert "replay" not in first.stages


def test_the_same_is_not_done_twice(hone: Hone, first: Ended, servers: Servers, mlflow: Any) -> None:
    before, versions = runs(mlflow), len(mlflow.search_model_versions("name='retrained'"))
    children = sorted((hone.home / "logs").glob("child-*"))
    again = hone("retrain", "recipe.yaml", "--set", "description=Other words")
    assert again.code == 0, again.errors
    told = again.result["skipped"]
    assert told.startswith("the rows and the recipe are those of champion version 1, judged on ")
    assert told.endswith("(promote): nothing to do")
    assert again.result["attempt"]["run_id"] == first.result["mlflow_run_id"]
    assert again.result["seconds"] < 20
    assert sorted((hone.home / "logs").glob("child-*")) == children
    assert (runs(mlflow), len(mlflow.search_model_versions("name='retrained'"))) == (before, versions)

    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(servers.prefect) as prefect:
        state = prefect.read_flow_run(again.result["flow_run_id"]).state
    assert (state.type.value, state.name, state.message) == ("COMPLETED", "Skipped", told)


def test_the_data_can_be_prepared_alone(hone: Hone, first: Ended, mlflow: Any) -> None:
    before = runs(mlflow)
    done = hone("run", "recipe.yaml", "--until", "split")
    assert done.code == 0, done.errors
    assert (done.result["until"], done.result["mlflow_run_id"]) == ("split", "")
    assert done.stages == {"collect": "cached", "clean": "cached", "split": "cached"}
    assert done.result["found"]["train"] == first.result["rows"]["train"]
    assert runs(mlflow) == before


def test_the_champion_learns_the_new_rows_and_some_of_the_old_ones(
    hone: Hone, first: Ended, grown: Ended, mlflow: Any, tmp_path: Path
) -> None:
    result = grown.result
    assert (result["started_from"], result["model"]["version"]) == ("models:/retrained/1", "2")
    old, today = known_by(train_texts(hone, first)), known_by(train_texts(hone, grown))
    again = {number for number in today & old if number / 2**64 < 0.25}
    assert result["rows"]["new"] == len(today - old) > 100
    assert result["rows"]["replayed"] == len(again) > 50
    assert f"{len(today - old)} new rows, {len(again)} of {len(today & old)} known ones again" in grown.errors
    assert result["train"]["plan"]["steps"] == 3 * -(-(len(today - old) + len(again)) // 16)

    version = mlflow.get_model_version("retrained", "2")
    run = mlflow.get_run(result["mlflow_run_id"])
    assert version.tags["hone.started_from"] == run.data.tags["hone.started_from"] == "models:/retrained/1"
    assert run.data.params["model.base"] == str((hone.project / "base").resolve())  # as it was asked
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    assert learnt(hone, mlflow, "1", tmp_path / "1") == old
    assert learnt(hone, mlflow, "2", tmp_path / "2") == old | today
    assert old - today


def test_after_the_champion_has_learnt_on_there_is_nothing_to_do(hone: Hone, grown: Ended) -> None:
    again = hone("retrain", "recipe.yaml")
    assert again.code == 0, again.errors
    assert "are those of champion version 2" in again.result["skipped"]


def test_a_version_that_learnt_on_is_reproduced(hone: Hone, grown: Ended) -> None:
    done = hone("reproduce", "retrained", "2")
    assert done.code == 0, done.errors
    assert done.result["equal"] is True


def test_a_refresh_is_done_whatever_was_judged(hone: Hone, grown: Ended) -> None:
    done = hone("retrain", "recipe.yaml", "--refresh", "gate")
    assert done.code == 0, done.errors
    # Version 2 has learnt all there is, so that a model is made from the base model.
    assert "from the base model: version 2 has learnt all" in done.errors
    assert (done.result["model"]["version"], done.result["started_from"]) == ("3", None)
