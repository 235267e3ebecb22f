from __future__ import annotations

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


@pytest.mark.parametrize("schema", [frames.raw_rows(["text"]), frames.clean_rows(["text"])])
def test_ids_are_unique(schema):
    with pytest.raises(SchemaErrors, match="id"):
        schema.validate(rows(id=["a", "a"]), lazy=True)


def test_a_column_that_no_one_named_is_an_error():
    with pytest.raises(SchemaErrors, match="column 'secret' not in DataFrameSchema"):
        frames.raw_rows(["text"]).validate(rows(secret=["x", "y"]), lazy=True)


def test_nothing_is_coerced():
    with pytest.raises(SchemaErrors, match="row"):
        frames.clean_rows(["text"]).validate(rows().with_columns(pl.col("row").cast(pl.Int64)), lazy=True)


def test_group_and_split_are_optional():
    whole = rows(group=["g", None], split=["train", "test"])
    assert frames.clean_rows(["text"]).validate(whole, lazy=True).columns == whole.columns


@pytest.mark.parametrize("values", [["positive", "negative"], [0.5, 1.5]])
def test_predictions_are_of_any_type_and_carry_more_columns(values):
    predictions = pl.DataFrame(
        {"id": ["a", "b"], "truth": values, "prediction": values, "probabilities": [[1.0], [0.5]]}
    )
    assert frames.Predictions.validate(predictions, lazy=True).height == 2


def test_predictions_are_never_missing():
    predictions = pl.DataFrame({"id": ["a"], "truth": ["x"], "prediction": [None]})
    with pytest.raises(SchemaErrors, match="non-nullable column 'prediction'"):
        frames.Predictions.validate(predictions, lazy=True)
    with pytest.raises(SchemaErrors, match="column 'truth' not in dataframe"):
        frames.Predictions.validate(predictions.drop("truth"), lazy=True)


def test_one_error_tells_all():
    with pytest.raises(SchemaErrors) as caught:
        frames.clean_rows(["text"]).validate(rows(id=["a", "a"], text=["", None], source=["", "x"]), lazy=True)
    assert set(caught.value.failure_cases["column"]) >= {"id", "text", "source"}
