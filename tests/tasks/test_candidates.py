from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score

from schemas.errors import DataError, Mistake
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks import candidates, held_out, register, slices
from tasks.candidates import Candidate, fair, registered_candidate, told, trained_candidate
from tasks.context import Context
from tasks.home import Home
from tests.prepared import LABELS, Asked, Prepared, answer, artifact, version
from tests.tiny_classifier import tiny_model

pytest_plugins = ("tests.mlflow_home",)

SPEED = {
    "latency_ms_p50": 4.0, "latency_ms_p95": 9.5, "rows_per_second": 310.0, "size_mb": 90.9,
    "machine": {"cores": 2, "accelerators": []},
}  # fmt: skip
WRONG_ON = {"1", "2", "3", "9"}
"""Test rows that the version takes for the other label."""


def says(text: str) -> Mapping[str, Any]:
    _, label, number = text.lower().split()
    return answer(LABELS[1 - LABELS.index(label)] if number in WRONG_ON else label)


def hashes_of(texts: list[str]) -> np.ndarray:
    """What training rows of these texts are known by; they have neither case nor punctuation."""
    return np.unique(held_out.known_by(texts))


@pytest.fixture
def context(home: Home, recipe: Recipe) -> Context:
    asked = {"bootstrap_resamples": 400, "slices": recipe.evaluate.slices.model_copy(update={"min_rows": 5})}
    return Context(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=asked)}), home, run_id="r")


Measure = Callable[..., Candidate]


@pytest.fixture
def measured(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measures a version that was trained on these texts, without a child process to time it."""

    def act(trained_on: list[str] | None = (), says: Callable[..., Any] = says, **prepared: Any) -> Candidate:
        rows = Prepared(context, **prepared)
        known = None if trained_on is None else hashes_of(list(trained_on))
        monkeypatch.setattr(candidates, "files_of", lambda home, registered: tmp_path)
        monkeypatch.setattr(candidates, "training_hashes_of", lambda home, registered: known)
        monkeypatch.setattr(candidates, "speed_artifact", lambda *args: artifact(context, "speed", Path, **SPEED))
        Asked(monkeypatch, says)
        return registered_candidate(context, rows.raw, rows.sides, rows.tokens, version())

    return act


# A registered version.


def test_a_version_is_worth_what_it_answers(measured: Measure) -> None:
    found = measured()
    truth = found.predictions["truth"].to_list()
    expected = f1_score(truth, found.predictions["prediction"].to_list(), average="macro")
    assert found.summary["metrics"]["accuracy"] == pytest.approx(36 / 40)
    assert found.summary["metrics"]["macro_f1"] == pytest.approx(expected)
    assert (found.summary["rows"], found.left_out, found.identity) == (40, {}, "files-1")
    # Half the rows are of each label, so that always saying the same is right on half of them.
    assert found.summary["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 2)
    assert found.summary["gains"].keys() == found.summary["baselines"].keys()
    assert found.summary["speed"]["latency_ms_p95"] == 9.5


def test_slices_are_of_the_test_rows_and_none_is_searched_for(measured: Measure) -> None:
    found = measured()
    by_name = {part["name"]: part for part in found.summary["slices"]}
    # Of the rows that are wrong, 1, 3 and 9 are good, and 2 is bad.
    assert by_name["label=good"]["value"] == pytest.approx(17 / 20)
    assert by_name["label=bad"]["value"] == pytest.approx(19 / 20)
    assert {part.kind for part in found.parts} <= {"label", "length", "source"}


def test_rows_that_the_version_was_trained_on_say_nothing_of_it(measured: Measure) -> None:
    learnt = ["test bad 4", "test bad 2", "train bad 4"]
    found = measured(trained_on=learnt)
    assert found.left_out == {"trained_on": 2}
    assert found.summary["rows"] == 38
    # One of the two it would have been wrong on.
    assert found.summary["metrics"]["accuracy"] == pytest.approx(35 / 38)
    # Eighteen bad ones and twenty good ones are left, for the baselines as well.
    assert abs(found.summary["baselines"]["majority"]["accuracy"] - 1 / 2) == pytest.approx(1 / 38)
    assert {len(part.mask) for part in found.parts} == {38}
    assert "on 38 test rows that the model has never seen" in found.report
    assert found.report.endswith("\n\n2 test rows were left out: the version was trained on them.")
    assert found.trained_on is not None
    assert len(found.trained_on) == 3


def test_rows_that_the_recipe_drops_say_nothing_of_any_model(measured: Measure) -> None:
    found = measured(trained_on=["test bad 0"], dropped=["test0", "test1"])
    assert found.left_out == {"trained_on": 1, "overlong": 1}
    assert found.summary["metrics"]["accuracy"] == pytest.approx(35 / 38)


def test_a_version_that_has_learnt_the_whole_test_cannot_be_measured(measured: Measure) -> None:
    with pytest.raises(DataError, match="version = '3': was trained on all 40 test rows; evaluate it on rows that"):
        measured(trained_on=[f"test {LABELS[i % 2]} {i}" for i in range(40)])


def test_a_version_of_unknown_origin_is_measured_on_all_rows_and_known_as_such(measured: Measure) -> None:
    found = measured(trained_on=None)
    assert (found.summary["rows"], found.trained_on, found.left_out) == (40, None, {})


def test_answers_that_today_s_rows_do_not_have_are_wrong_and_shown(measured: Measure) -> None:
    found = measured(says=lambda text: answer(text.split()[1].lower() if "1" in text else "fine", ["bad", "fine"]))
    right = sum("1" in str(i) for i in range(40))
    assert found.summary["metrics"]["accuracy"] == pytest.approx(right / 40)
    assert "log_loss" not in found.summary["metrics"]
    assert "| true ╲ predicted | bad | good | fine |" in found.report


def test_a_version_whose_files_are_gone_is_a_mistake_before_it_is_asked(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(home: Home, registered: object) -> Path:
        raise FileNotFoundError("tiny version 3 has no artifacts/model")

    rows, asked = Prepared(context), Asked(monkeypatch, says)
    monkeypatch.setattr(candidates, "files_of", gone)
    with pytest.raises(Mistake, match="version = '3': tiny version 3 has no artifacts/model: hone did not register it"):
        registered_candidate(context, rows.raw, rows.sides, rows.tokens, version())
    assert asked.uris == []


def test_a_version_that_lost_the_list_of_its_training_rows_is_of_unknown_origin(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(home: Home, registered: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(candidates, "training_hashes_of", gone)
    assert candidates._trained_on(context, version()) is None


# What is left out.


def test_a_row_that_is_left_out_for_two_reasons_counts_once() -> None:
    rows = pl.DataFrame({"id": ["a", "b", "c", "d"]})
    hashes = rows.with_columns(hash=pl.Series([1, 2, 3, 4], dtype=pl.UInt64))
    dropped = pl.DataFrame({"id": ["b", "c", "elsewhere"]})
    kept, counts = fair(rows, hashes, np.array([2, 4, 9], np.uint64), dropped)
    assert (kept["id"].to_list(), counts) == (["a"], {"trained_on": 2, "overlong": 1})


def test_each_reason_is_told_in_a_sentence() -> None:
    assert told({}) == []
    assert told({"trained_on": 1_200, "overlong": 3}) == [
        "1,200 test rows were left out: the version was trained on them.",
        "3 test rows were left out: the recipe drops texts of their length.",
    ]


# The model of a run.


def test_a_trained_model_is_what_its_evaluation_recorded(context: Context, tmp_path: Path) -> None:
    rows = Prepared(context)
    recorded = pl.DataFrame({"id": ["test0", "test1"], "truth": ["bad", "good"], "prediction": ["bad", "bad"]})
    part = slices.Slice("source=web", "source", np.array([True, False]))

    def write(out: Path) -> None:
        recorded.write_parquet(out / "predictions.parquet")
        slices.membership(recorded["id"], [part]).write_parquet(out / "slices.parquet")
        (out / "calibration.json").write_text(json.dumps({"temperature": 1.5}))

    scores: Artifact = artifact(context, "evaluate", write, rows=2)
    model = artifact(context, "train", lambda out: tiny_model(out, seed=1))
    found = trained_candidate(context, rows.sides, model, scores)
    assert found.summary == {"rows": 2}
    assert found.predictions.equals(recorded)
    ((name, kind, mask),) = [(one.name, one.kind, one.mask.tolist()) for one in found.parts]
    assert (name, kind, mask) == ("source=web", "source", [True, False])
    calibration = context.path(scores) / "calibration.json"
    assert found.identity == register.identity_of(context.home, context.path(model), context.family, calibration, {})
    trained = [f"train {LABELS[i % 2]} {i}" for i in range(60)]
    assert found.trained_on is not None
    assert found.trained_on.tolist() == hashes_of(trained).tolist()
