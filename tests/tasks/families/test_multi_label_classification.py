from __future__ import annotations

import json
import random
from pathlib import Path

import polars as pl
import pytest

from schemas.data import Clean
from tasks.families.multi_label_classification import MultiLabelClassification, MultiLabelClassificationTask
from tasks.labels import Labelled
from tasks.rules.part import clean_part
from tests.learning import WORDS, tiny_encoder
from tests.taught import Taught, taught

FAMILY = MultiLabelClassification()
LABELS = ["awful", "film", "good", "great"]


def rows(count: int, seed: int) -> pl.DataFrame:
    """Texts of four words; the labels are those of four words that are in it."""
    draw = random.Random(seed)
    texts = [draw.sample([*LABELS, *WORDS[10:]], 4) for _ in range(count)]
    return pl.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(count)],
            "text": [" ".join(words) for words in texts],
            "labels": [json.dumps(sorted(set(words) & set(LABELS))) for words in texts],
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp("multi-label")
    task = {"family": "multi-label-classification"}
    return taught(
        FAMILY,
        task,
        tiny_encoder(folder / "base"),
        folder / "taught",
        rows(600, 1),
        rows(120, 2),
        epochs=12,
        early_stopping_patience=None,
        learning_rate=1e-3,
    )


def test_a_tiny_model_learns_which_words_are_there(model: Taught) -> None:
    scores = FAMILY.score(model.predicted, model.meta)
    assert scores["macro_f1"] > 0.95
    assert scores["subset_accuracy"] > 0.85
    assert model.meta["labels"] == LABELS


def test_what_is_served_is_what_was_recorded_by_the_thresholds_of_validation(model: Taught) -> None:
    fitted = {"thresholds": dict(zip(LABELS, (0.01, 0.2, 0.9, 0.99), strict=True))}
    recorded = FAMILY.calibrated(model.predicted, fitted)
    assert recorded["prediction"].to_list() != model.predicted["prediction"].to_list()
    served = model.served(fitted)
    assert FAMILY.disagreements(served, recorded, model.meta) == []
    again = FAMILY.from_served(served, model.rows, model.meta)
    assert [set(told) for told in again["prediction"]] == [set(told) for told in recorded["prediction"]]


def test_what_is_served_otherwise_is_named() -> None:
    meta, lists = {"labels": ["a", "b"]}, pl.List(pl.String)
    recorded = pl.DataFrame(
        {
            "id": list("uvwx"),
            "prediction": pl.Series([["a"], ["a"], [], ["a"]], dtype=lists),
            "margin": [0.2, 1e-5, 0.2, 0.2],
            "scores": [[0.7, 0.1], [0.50001, 0.1], [0.1, 0.2], [0.7, 0.1]],
        }
    )
    served = [
        {"labels": ["a", "b"], "scores": {"a": 0.7, "b": 0.1}},
        {"labels": [], "scores": {"a": 0.49999, "b": 0.1}},
        {"labels": None, "scores": None},
        {"labels": ["a"], "scores": {"a": 0.71, "b": 0.1}},
    ]
    assert FAMILY.disagreements(served, recorded, meta) == [
        ("u", "a was recorded, a, b is served"),
        ("w", "no label was recorded, nothing is served"),
        ("x", "a score differs by 0.01"),
    ]


@pytest.mark.parametrize(
    ("separator", "given", "reasons", "kept"),
    [
        (
            None, ['["b", "a", "a"]', "[]", "a", '[{"x": 1}]', None, '["other"]', '[" A "]'],
            {"missing_labels": 1, "not_a_list": 2, "unknown_label": 1}, ['["a", "b"]', "[]", '["a"]'],
        ),
        (
            ";", ["b; a", "a", "A;", None, "other;a", ";", "b;b"],
            {"missing_labels": 1, "unknown_label": 1}, ['["a", "b"]', '["a"]', '["a"]', "[]", '["b"]'],
        ),
    ],
)  # fmt: skip
def test_sets_of_labels_are_put_right_or_set_aside(
    tmp_path: Path, separator: str | None, given: list[str], reasons: dict[str, int], kept: list[str]
) -> None:
    task = MultiLabelClassificationTask(labels=("a", "b"), separator=separator)
    texts = [f"text {i}" for i in range(len(given))]
    collected = pl.DataFrame(
        {"id": texts, "text": texts, "labels": given, "source": "s", "row": pl.Series(range(1, 8), dtype=pl.UInt32)}
    )
    collected.write_parquet(tmp_path / "raw.parquet")
    out = tmp_path / "out"
    out.mkdir()
    found = clean_part(Clean(label_aliases={"A": "a"}), task, tmp_path / "raw.parquet", out)
    assert found["quarantined"] == reasons
    assert pl.read_parquet(out / "rows.parquet")["labels"].to_list() == kept


def test_every_label_of_a_row_is_counted() -> None:
    several = pl.DataFrame({"labels": ['["a", "b"]', "[]", '["a"]']})
    assert Labelled("labels", several=True).counts(several) == {"a": 2, "b": 1}
    assert Labelled("label").counts(pl.DataFrame({"label": ["a", "a"]})) == {"a": 2}


def test_rare_labels_weigh_more_where_the_recipe_or_the_imbalance_says_so() -> None:
    import numpy as np

    labels = np.array([[1, 1]] * 10 + [[1, 0]] * 40 + [[0, 0]] * 60)
    assert FAMILY.loss_weights(labels, {}, "balanced")[0] == pytest.approx((1.2, 10.0))
    weights, why = FAMILY.loss_weights(labels, {}, "auto")
    assert weights == pytest.approx((1.2**0.5, 10**0.5))
    assert why == "sqrt: 10.0 rows without the rarest label for each that has it"
    assert FAMILY.loss_weights(labels, {}, "none")[0] is None


def test_while_training_sets_are_scored_by_the_thresholds_they_would_have() -> None:
    truth = [["a"]] * 20 + [[]] * 60
    told = pl.DataFrame(
        {
            "id": [str(i) for i in range(80)],
            "truth": pl.Series(truth, dtype=pl.List(pl.String)),
            "prediction": pl.Series([[]] * 80, dtype=pl.List(pl.String)),
            "scores": [[0.3]] * 20 + [[0.1]] * 60,
        }
    )
    assert FAMILY.score(told, {"labels": ["a"]})["macro_f1"] == 0
    assert FAMILY.score(FAMILY.decided(told, {"labels": ["a"]}), {"labels": ["a"]})["macro_f1"] == 1
