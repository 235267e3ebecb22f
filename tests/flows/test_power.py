from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from flows.power import last_disagreement, power_of, show_power
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks.context import Context
from tasks.home import Home
from tasks.split_checks import rows_to_see, smallest_visible_difference

pytest_plugins = ("tests.mlflow_home",)


# The numbers.


@pytest.mark.parametrize("differing", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("rows", [1_000, 5_000])
def test_the_smallest_visible_gain_is_seen_four_times_in_five(rows: int, differing: float) -> None:
    gain = smallest_visible_difference(rows, differing)
    assert shown(rows, differing, gain) == pytest.approx(0.8, abs=0.015)
    assert shown(rows, differing, gain / 2) < 0.4
    assert shown(rows, differing, 0.0) == pytest.approx(0.05, abs=0.01)


def shown(rows: int, differing: float, gain: float) -> float:
    """In which share of many tests McNemar's test at 5 % finds a difference."""
    drawn = np.random.default_rng(0).multinomial(
        rows, [(differing + gain) / 2, (differing - gain) / 2, 1 - differing], size=40_000
    )
    gained, lost = drawn[:, 0], drawn[:, 1]
    return float((np.abs(gained - lost) > 1.959964 * np.sqrt(gained + lost)).mean())


@given(st.integers(50, 1_000_000), st.floats(0.001, 1.0))
def test_rows_and_gain_are_each_other_s_inverse(rows: int, differing: float) -> None:
    gain = smallest_visible_difference(rows, differing)
    if gain > differing:
        assert rows_to_see(gain, differing) is None
    else:
        needed = rows_to_see(gain, differing)
        assert needed is not None
        assert abs(needed - rows) <= 1 + 1e-6 * rows


@given(st.floats(0.001, 0.2), st.floats(0.2, 1.0))
def test_the_rows_needed_do_show_the_gain_and_no_fewer(gain: float, differing: float) -> None:
    rows = rows_to_see(gain, differing)
    assert rows is not None
    assert smallest_visible_difference(rows, differing) <= gain * (1 + 1e-9)
    assert rows < 10 or smallest_visible_difference(rows - 1, differing) > gain * (1 - 1e-9)


def test_more_rows_show_less_and_the_more_predictions_differ_the_more_rows_it_takes() -> None:
    assert smallest_visible_difference(4_000) < smallest_visible_difference(1_000)
    assert rows_to_see(0.02, 0.05) < rows_to_see(0.02, 0.2)


# What is shown.


@pytest.fixture
def context(home: Home, recipe: Recipe) -> Context:
    return Context(recipe, home, run_id="r")


@pytest.fixture
def sides(context: Context) -> Artifact:
    made = context.artifact("split", write_meta, settings={})
    return made.model_copy(update={"summary": {"test": 1_000, "labels": {"test": {"bad": 400, "good": 600}}}})


def write_meta(*, out: Path) -> dict[str, int]:
    (out / "meta.json").write_text(json.dumps({"labels": ["bad", "good"]}))
    return {}


def predict(context: Context, stage: str, file: str, right: str, *, key: str = "k") -> None:
    """Leave predictions of rows r0, r1, … behind, right (y) or wrong (n), as the stage that was last run."""
    ingredients = {"stage": stage, "key": key}
    rows = pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(len(right))],
            "truth": ["good"] * len(right),
            "prediction": ["good" if mark == "y" else "bad" for mark in right],
        }
    )
    context.artifact(
        stage, write, settings=ingredients, unkeyed={"rows": rows, "file": file}, part_of="evaluate"
    )  # fmt: skip


def write(*, stage: str, key: str, rows: pl.DataFrame, file: str, out: Path) -> dict[str, int]:
    rows.write_parquet(out / file)
    return {}


def test_what_two_models_were_last_found_to_differ_in_is_what_is_reckoned_with(
    context: Context, sides: Artifact
) -> None:
    assert last_disagreement(context, sides) is None
    predict(context, "evaluate", "predictions.parquet", "yynnyynnyy")
    assert last_disagreement(context, sides) is None
    predict(context, "served", "test.parquet", "yynnyynnnnyyyy")  # asked on a test of more rows
    assert last_disagreement(context, sides) == pytest.approx(2 / 10)

    found = power_of(context, sides)
    assert found["measured_disagreement"] == pytest.approx(0.2)
    assert found["smallest_visible"]["0.2"] == smallest_visible_difference(1_000, 0.2)
    assert found["rows_needed"]["0.02"] == rows_to_see(0.02, 0.2)


def test_a_measured_share_stands_among_the_others(context: Context, sides: Artifact) -> None:
    predict(context, "evaluate", "predictions.parquet", "y" * 30)
    predict(context, "served", "test.parquet", "y" * 29 + "n")
    assert list(power_of(context, sides)["smallest_visible"]) == ["0.02", "0.03333", "0.05", "0.1", "0.2"]


def test_one_and_the_same_model_measures_no_difference(context: Context, sides: Artifact) -> None:
    predict(context, "evaluate", "predictions.parquet", "yynn")
    predict(context, "served", "test.parquet", "yynn")
    assert last_disagreement(context, sides) is None


def test_predictions_of_other_rows_or_that_are_gone_measure_no_difference(context: Context, sides: Artifact) -> None:
    predict(context, "evaluate", "predictions.parquet", "yynn")
    predict(context, "served", "test.parquet", "nnnn")
    assert last_disagreement(context, sides) == pytest.approx(1 / 2)
    for manifest in Path(context.home.store, "served").glob("*/manifest.json"):
        manifest.unlink()
    assert last_disagreement(context, sides) is None


def test_it_is_told_in_points_and_rows(context: Context, sides: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    show_power(context, sides, as_json=False)
    told = capsys.readouterr().out
    assert "1,000 test rows, at 95 % confidence and 80 % power" in told
    assert "gains are of accuracy" in told
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert f"10.0% {100 * smallest_visible_difference(1_000):.2f} points" in lines
    assert "2.0% 1.25 points" in lines
    assert f"2 points {rows_to_see(0.02):,}" in lines
    assert "disagreement 10.0% (assumed: no two models were compared yet); nothing serves yet" in lines


def test_gains_that_cannot_be_seen_are_told_as_such(
    context: Context, sides: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(context, "evaluate", "predictions.parquet", "y" * 100)
    predict(context, "served", "test.parquet", "y" * 99 + "n")
    mlflow = MlflowClient(context.home.mlflow_uri)
    mlflow.create_registered_model("tiny")
    mlflow.create_model_version("tiny", "s3://nowhere")
    mlflow.set_registered_model_alias("tiny", "champion", "1")
    few = sides.model_copy(update={"summary": {**sides.summary, "test": 20}})
    show_power(context, few, as_json=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "1.0% (as last measured) none" in lines
    assert "2 points too little disagreement" in lines
    assert "disagreement 1.0% (as last measured); version 1 serves" in lines


def test_scripts_get_the_same_as_json(context: Context, sides: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    show_power(context, sides, as_json=True)
    assert json.loads(capsys.readouterr().out) == power_of(context, sides)
