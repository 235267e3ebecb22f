from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from pandera.errors import SchemaErrors

from schemas import frames


def rows(**changes: list[object]) -> pl.DataFrame:
    columns = {"id": ["a", "b"], "source": ["x.csv", "x.csv"], "row": [1, 2], "text": ["good", "bad"]} | changes
    return pl.DataFrame(columns, schema_overrides={"row": pl.UInt32})


def test_raw_rows_may_lack_values_but_not_ids():
    assert frames.raw_rows(["text"]).validate(rows(text=["good", None]), lazy=True).height == 2
    with pytest.raises(SchemaErrors, match="non-nullable column 'id'"):
        frames.raw_rows(["text"]).validate(rows(id=["a", None]), lazy=True)


def test_clean_rows_have_all_values():
    with pytest.raises(SchemaErrors, match="non-nullable column 'text'"):
        frames.clean_rows(["text"]).validate(rows(text=["good", None]), lazy=True)
    with pytest.raises(SchemaErrors, match="str_length"):
        frames.clean_rows(["text"]).validate(rows(text=["good", ""]), lazy=True)


def test_ids_are_unique_once_the_rows_are_clean():
    twice = rows(id=["a", "a"])
    assert frames.raw_rows(["text"]).validate(twice, lazy=True).height == 2
    with pytest.raises(SchemaErrors, match="id"):
        frames.clean_rows(["text"]).validate(twice, lazy=True)


@pytest.mark.parametrize("schema", [frames.raw_rows(["text"]), frames.clean_rows(["text"])])
def test_a_column_that_no_one_named_is_an_error(schema):
    with pytest.raises(SchemaErrors, match="column 'secret' not in DataFrameSchema"):
        schema.validate(rows(secret=["x", "y"]), lazy=True)


def test_nothing_is_coerced():
    with pytest.raises(SchemaErrors, match="row"):
        frames.clean_rows(["text"]).validate(rows().with_columns(pl.col("row").cast(pl.Int64)), lazy=True)


def test_times_are_text_as_collected_and_moments_once_clean():
    collected = rows(time=["2024-05-01", None])
    moments = rows(time=[datetime(2024, 5, 1, tzinfo=UTC), None])
    assert frames.raw_rows(["text"]).validate(collected, lazy=True).equals(collected)
    assert frames.clean_rows(["text"]).validate(moments, lazy=True).equals(moments)
    with pytest.raises(SchemaErrors, match="time"):
        frames.clean_rows(["text"]).validate(collected, lazy=True)
    with pytest.raises(SchemaErrors, match="time"):
        frames.raw_rows(["text"]).validate(moments, lazy=True)


def test_group_split_and_kept_columns_are_optional():
    more = {"group": ["g", None], "split": ["train", "test"], "meta.page": ["1", None], "meta.a b": [None, "x"]}
    whole = rows(**more)
    assert frames.raw_rows(["text"]).validate(whole, lazy=True).columns == whole.columns
    assert frames.clean_rows(["text"]).validate(whole, lazy=True).columns == whole.columns
    with pytest.raises(SchemaErrors, match=r"meta\.page"):
        frames.clean_rows(["text"]).validate(rows(**{"meta.page": [1, 2]}), lazy=True)


def test_the_recipe_bounds_lengths_and_names_values():
    schema = frames.clean_rows(["text", "label"], lengths={"text": (4, 6)}, allowed={"label": ("x", "y")})
    found = frames.failures(
        schema,
        rows(id=["a", "b"], text=["good", "bad"], label=["x", "z"]).vstack(rows(id=["c", "d"], label=["y", "x"])),
    )
    assert found.to_list() == [None, "schema:text:str_length", None, "schema:text:str_length"]
    assert frames.failures(schema, rows(text=["good", "fine"], label=["x", "z"])).to_list() == [
        None,
        "schema:label:isin",
    ]


def test_rows_that_fit_have_no_failures():
    assert frames.failures(frames.clean_rows(["text"]), rows()).to_list() == [None, None]
    assert frames.failures(frames.clean_rows(["text"]), rows()[:0]).to_list() == []


def test_a_frame_of_another_shape_is_no_matter_of_rows():
    for frame in (rows().drop("text"), rows(secret=["x", "y"]), rows().with_columns(pl.col("row").cast(pl.String))):
        with pytest.raises(SchemaErrors):
            frames.failures(frames.raw_rows(["text"]), frame)


def test_the_tasks_columns_are_those_that_not_all_rows_have():
    columns = ["id", "source", "row", "text", "label", "group", "time", "split", "meta.text"]
    assert frames.roles_of(columns) == ["text", "label"]


@pytest.mark.parametrize("values", [["positive", "negative"], [0.5, 1.5]])
def test_predictions_are_of_any_type_and_carry_more_columns(values):
    predictions = pl.DataFrame(
        {"id": ["a", "b"], "truth": values, "prediction": values, "probabilities": [[1.0, 0.0], [0.5, 0.5]]}
    )
    assert frames.Predictions.validate(predictions, lazy=True).height == 2


def test_predictions_are_never_missing():
    predictions = pl.DataFrame({"id": ["a"], "truth": ["x"], "prediction": [None]})
    with pytest.raises(SchemaErrors, match="non-nullable column 'prediction'"):
        frames.Predictions.validate(predictions, lazy=True)
    with pytest.raises(SchemaErrors, match="column 'truth' not in dataframe"):
        frames.Predictions.validate(predictions.drop("truth"), lazy=True)


@pytest.mark.parametrize("kind", [pl.Float32, pl.Float64])
def test_probabilities_add_up_to_one(kind):
    shares = [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.3334, 0.3333, 0.3333 + 0.0009]]
    predictions = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "truth": ["x", "y", "z"],
            "prediction": ["x", "x", "z"],
            "probabilities": pl.Series(shares, dtype=pl.List(kind)),
        }
    )
    assert frames.Predictions.validate(predictions, lazy=True).equals(predictions)
    for start in range(3):
        assert frames.Predictions.validate(predictions[start : start + 1], lazy=True).height == 1


@pytest.mark.parametrize(
    "odd",
    [[1.0], [0.5, 0.25, 0.25], [1.2, -0.2], [0.5, 0.49], [float("nan"), 1.0], [0.5, None], [0.5, None, 0.5], [], None],
)
def test_probabilities_that_are_none_are_found_by_their_row(odd):
    predictions = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "truth": ["x"] * 3,
            "prediction": ["x"] * 3,
            "probabilities": pl.Series([[0.5, 0.5], odd, [0.1, 0.9]], dtype=pl.List(pl.Float64)),
        }
    )
    with pytest.raises(SchemaErrors, match="probabilities") as caught:
        frames.Predictions.validate(predictions, lazy=True)
    assert caught.value.failure_cases["index"].unique().to_list() == [1]


def test_probabilities_are_lists():
    predictions = pl.DataFrame({"id": ["a"], "truth": ["x"], "prediction": ["x"], "probabilities": [0.5]})
    with pytest.raises(SchemaErrors, match="probabilities"):
        frames.Predictions.validate(predictions, lazy=True)


def test_one_error_tells_all():
    with pytest.raises(SchemaErrors) as caught:
        frames.clean_rows(["text"]).validate(rows(id=["a", "a"], text=["", None], source=["", "x"]), lazy=True)
    assert set(caught.value.failure_cases["column"]) >= {"id", "text", "source"}
