from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas import frames
from schemas.errors import DataError
from tasks import baselines, classification

LABELS = ["negative", "neutral", "positive"]
CUES = {"negative": ["awful", "hate"], "neutral": ["tuesday", "report"], "positive": ["great", "love"]}
FILLER = ["the", "new", "phone", "and", "my", "bus", "was", "with", "today", "again"]


def rows(n: int, seed: int, labels: list[str] = LABELS, noise: float = 0.0) -> pl.DataFrame:
    rng = random.Random(seed)
    drawn = [rng.choices(labels, weights=range(len(labels), 0, -1))[0] for _ in range(n)]
    cues = [CUES[label if rng.random() >= noise else rng.choice(labels)] for label in drawn]
    texts = [" ".join([*rng.sample(FILLER, 4), rng.choice(cue)]) for cue in cues]
    return pl.DataFrame({"id": [f"{seed}-{i}" for i in range(n)], "text": texts, "label": drawn})


def split_folder(folder: Path, train: pl.DataFrame, validation: pl.DataFrame, test: pl.DataFrame) -> Path:
    folder.mkdir()
    for side, frame in (("train", train), ("validation", validation), ("test", test)):
        frame.write_parquet(folder / f"{side}.parquet")
    return folder


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return split_folder(tmp_path / "split", rows(300, 1, noise=0.1), rows(80, 2), rows(90, 3))


def fitted(split: Path, out: Path, metric: str = "macro_f1") -> dict[str, dict[str, object]]:
    out.mkdir()
    return baselines.classification(split, LABELS, metric, out)


def test_the_majority_is_predicted_for_every_test_row(split: Path, tmp_path: Path) -> None:
    chosen = fitted(split, tmp_path / "out")
    predictions = pl.read_parquet(tmp_path / "out" / "majority.parquet")
    train = pl.read_parquet(split / "train.parquet")
    share = (train["label"] == "negative").mean()
    assert chosen["majority"] == {"label": "negative", "share": round(share, 4)}
    assert predictions["prediction"].unique().to_list() == ["negative"]
    assert predictions["probabilities"][0].to_list()[0] == pytest.approx(share)
    assert predictions["probabilities"][0].sum() == pytest.approx(1)


def test_every_test_row_gets_one_prediction_in_order(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "BATCH_ROWS", 40)
    fitted(split, tmp_path / "out")
    test = pl.read_parquet(split / "test.parquet")
    for name in ("majority", "tfidf"):
        predictions = pl.read_parquet(tmp_path / "out" / f"{name}.parquet")
        assert predictions.columns == ["id", "truth", "prediction", "probabilities"]
        assert predictions["id"].to_list() == test["id"].to_list()
        assert predictions["truth"].to_list() == test["label"].to_list()


def test_tfidf_learns_what_the_words_tell(split: Path, tmp_path: Path) -> None:
    chosen = fitted(split, tmp_path / "out")
    predictions = pl.read_parquet(tmp_path / "out" / "tfidf.parquet")
    assert classification.score(predictions, LABELS)["macro_f1"] > 0.97
    assert chosen["tfidf"]["rows"] == 300
    assert chosen["tfidf"]["C"] in baselines.STRENGTHS
    assert chosen["tfidf"]["class_weight"] in {"none", "balanced"}


def test_the_most_probable_label_is_predicted(split: Path, tmp_path: Path) -> None:
    fitted(split, tmp_path / "out")
    predictions = pl.read_parquet(tmp_path / "out" / "tfidf.parquet")
    probabilities = np.array(predictions["probabilities"].to_list())
    assert probabilities.sum(1) == pytest.approx(np.ones(90))
    assert [LABELS[i] for i in probabilities.argmax(1)] == predictions["prediction"].to_list()


def test_their_probabilities_are_measured_too(split: Path, tmp_path: Path) -> None:
    fitted(split, tmp_path / "out")
    for name in ("majority", "tfidf"):
        predictions = frames.Predictions.validate(pl.read_parquet(tmp_path / "out" / f"{name}.parquet"), lazy=True)
        scores = classification.score(predictions, LABELS)
        assert scores.keys() >= {"auroc", "auprc", "log_loss", "brier", "ece"}
        assert (scores["auroc"] == 0.5) == (name == "majority")


def test_the_same_rows_give_the_same_bytes(split: Path, tmp_path: Path) -> None:
    assert fitted(split, tmp_path / "one") == fitted(split, tmp_path / "two")
    for name in ("majority", "tfidf"):
        one, two = ((tmp_path / out / f"{name}.parquet").read_bytes() for out in ("one", "two"))
        assert one == two


def test_settings_are_chosen_by_the_metric_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_folder(tmp_path / "split", rows(300, 1, noise=0.5), rows(80, 2, noise=0.5), rows(30, 3))
    asked = []
    original = classification.score

    def recorded(predictions: pl.DataFrame, labels: list[str]) -> dict[str, float]:
        asked.append(original(predictions, labels))
        return asked[-1]

    monkeypatch.setattr(classification, "score", recorded)
    chosen = fitted(split, tmp_path / "out", metric="recall")
    assert len(asked) == 2 * len(baselines.STRENGTHS)
    assert chosen["tfidf"]["validation"] == round(max(found["recall"] for found in asked), 4)


def test_a_label_that_no_training_row_has_gets_no_probability(tmp_path: Path) -> None:
    split = split_folder(tmp_path / "split", rows(200, 1, ["negative", "positive"]), rows(40, 2), rows(40, 3))
    fitted(split, tmp_path / "out")
    probabilities = np.array(pl.read_parquet(tmp_path / "out" / "tfidf.parquet")["probabilities"].to_list())
    assert (probabilities[:, LABELS.index("neutral")] == 0).all()
    assert probabilities.sum(1) == pytest.approx(np.ones(40))


def test_one_label_cannot_be_learnt(tmp_path: Path) -> None:
    split = split_folder(tmp_path / "split", rows(20, 1, ["neutral"]), rows(10, 2), rows(10, 3))
    with pytest.raises(DataError, match="label = 'neutral': every training row has this label"):
        fitted(split, tmp_path / "out")


def test_texts_without_a_word_and_of_a_few_rows_are_no_obstacle(tmp_path: Path) -> None:
    tiny = pl.DataFrame({"id": ["a", "b"], "text": ["!", "…"], "label": ["negative", "positive"]})
    split = split_folder(tmp_path / "split", tiny, tiny, tiny)
    fitted(split, tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "tfidf.parquet").height == 2
