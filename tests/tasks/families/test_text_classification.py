from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tasks.families.text_classification import TextClassification

META = {"labels": ["bad", "good"]}


def differences(label: str | None, good: float | None) -> list[tuple[str, str]]:
    """Between what is served of a row and the tie that was recorded."""
    row = pl.DataFrame({"id": ["r"], "prediction": ["bad"], "probabilities": [[0.50001, 0.49999]]})
    served: list[dict[str, Any]] = [
        {"label": label, "probabilities": None if good is None else {"bad": 1 - good, "good": good}, "abstains": None}
    ]
    return TextClassification().disagreements(served, row, META)


def test_a_tie_may_fall_either_way_but_a_difference_may_not() -> None:
    assert differences("bad", 0.49999) == []
    assert differences("good", 0.50001) == []
    assert differences("bad", 0.4995) == [("r", "a probability differs by 0.00049")]
    assert differences("bad", float("nan")) != []


def test_every_row_that_is_served_otherwise_is_named() -> None:
    recorded = pl.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "prediction": ["bad", "good", "good", "bad"],
            "probabilities": [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]],
        }
    )
    served: list[dict[str, Any]] = [
        {"label": "bad", "probabilities": {"bad": 0.90005, "good": 0.09995}},
        {"label": "bad", "probabilities": {"bad": 0.2, "good": 0.8}},
        {"label": None, "probabilities": None},
        {"label": "bad", "probabilities": {"bad": 0.6, "fine": 0.4}},
    ]
    assert TextClassification().disagreements(served, recorded, META) == [
        ("b", "good was recorded, bad is served"),
        ("c", "good was recorded, nothing is served"),
        ("d", "a probability differs by 1.6"),
    ]


def test_as_many_rows_must_be_served_as_were_recorded() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TextClassification().disagreements([], pl.DataFrame({"id": ["a"], "prediction": ["bad"]}), META)
