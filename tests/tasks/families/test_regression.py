from __future__ import annotations

import json
import random
from pathlib import Path

import polars as pl
import pytest

from schemas.data import Clean
from schemas.errors import DataError
from tasks.families.regression import Regression, RegressionTask
from tasks.rules.part import clean_part
from tests.learning import GOOD, WORDS, tiny_encoder
from tests.taught import Taught, taught

FAMILY, TASK = Regression(), RegressionTask()


def rows(count: int, seed: int) -> pl.DataFrame:
    """Texts whose value is 100, and 50 more for each good word among six."""
    draw = random.Random(seed)
    texts = [[draw.choice([*GOOD, *WORDS[6:10]]) for _ in range(6)] for _ in range(count)]
    return pl.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(count)],
            "text": [" ".join(words) for words in texts],
            "value": [str(100.0 + 50 * sum(word in GOOD for word in words)) for words in texts],
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp("regression")
    base = tiny_encoder(folder / "base")
    return taught(FAMILY, {"family": "regression"}, base, folder / "taught", rows(400, 1), rows(120, 2), epochs=8)


def test_a_tiny_model_learns_values_in_the_sources_units(model: Taught) -> None:
    scores = FAMILY.score(model.predicted, model.meta)
    assert scores["r2"] > 0.97
    assert scores["rmse"] < 12
    assert model.predicted["truth"].to_list() == rows(120, 2)["value"].cast(pl.Float64).to_list()


def test_what_is_served_is_what_was_recorded(model: Taught) -> None:
    assert FAMILY.disagreements(model.served(), model.predicted, model.meta) == []


def test_what_is_served_otherwise_is_named(model: Taught) -> None:
    recorded = pl.DataFrame({"id": ["a", "b", "c"], "prediction": [250.0, 250.0, 250.0]})
    served = [{"value": 250.0001}, {"value": 251.0}, {"value": None}]
    assert FAMILY.disagreements(served, recorded, model.meta) == [
        ("b", "250 was recorded, 251 is served"),
        ("c", "250 was recorded, nothing is served"),
    ]


def test_a_version_that_learns_on_keeps_its_own_units(model: Taught) -> None:
    config = json.loads((model.folder / "model" / "config.json").read_text())
    on = FAMILY.load_model(str(model.folder / "model"), model.meta | {"mean": 0.0, "scale": 1.0})
    assert (on.config.value_mean, on.config.value_scale) == (config["value_mean"], config["value_scale"])


def test_mean_and_scale_are_those_of_the_training_rows() -> None:
    train = pl.LazyFrame({"value": ["1.0", "3.0"]})
    assert FAMILY.of_training(train, {}) == {"mean": 2.0, "scale": 1.0}
    with pytest.raises(DataError, match="the training rows all have the same value"):
        FAMILY.of_training(pl.LazyFrame({"value": ["2.0", "2.0"]}), {})


def test_rows_without_a_finite_number_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    values = ["1", " 1.0", "3,5", "nan", "inf", "", None, "-2e1"]
    texts = [f"text {i}" for i in range(len(values))]
    collected = pl.DataFrame(
        {"id": texts, "text": texts, "value": values, "source": "s", "row": pl.Series(range(1, 9), dtype=pl.UInt32)}
    )
    collected.write_parquet(tmp_path / "raw.parquet")
    out = tmp_path / "out"
    out.mkdir()
    found = clean_part(Clean(), TASK, tmp_path / "raw.parquet", out)
    assert found["quarantined"] == {"missing_value": 2, "not_a_number": 3}
    # One spelling each, so that 1 and 1.0 do not contradict each other.
    assert pl.read_parquet(out / "rows.parquet")["value"].to_list() == ["1.0", "1.0", "-20.0"]


def test_a_row_scores_by_its_distance_in_standard_deviations() -> None:
    told = pl.DataFrame({"truth": [10.0, 10.0, 10.0], "prediction": [10.0, 11.0, 99.0]})
    assert FAMILY.row_scores(told, {"mean": 10.0, "scale": 4.0}).to_list() == [1.0, 0.75, 0.0]


def test_no_answer_counts_as_the_mean() -> None:
    asked = pl.DataFrame({"id": ["a", "b"], "value": ["1", "2"]})
    found = FAMILY.from_served([{"value": None}, {"value": 2.5}], asked, {"mean": 1.5, "scale": 1.0})
    assert found["prediction"].to_list() == [1.5, 2.5]
