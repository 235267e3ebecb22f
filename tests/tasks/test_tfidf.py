from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tasks import tfidf
from tests.tasks.test_baselines import rows


def test_huge_training_sets_are_sampled_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = rows(5000, 1)
    frame.with_columns(text=pl.concat_str("id", pl.lit("-"), "text")).write_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(tfidf, "max_chars", lambda outputs: 30_000)
    drawn = tfidf.training_rows(tmp_path / "train.parquet", 3, ["text", "label"])
    assert 25_000 < drawn["text"].str.len_chars().sum() < 35_000
    places = [int(text.split("-")[1]) for text in drawn["text"]]
    assert places == sorted(set(places))
    assert 2000 < np.mean(places) < 3000
    assert drawn["label"].to_list() == [frame["label"][place] for place in places]
    assert drawn.equals(tfidf.training_rows(tmp_path / "train.parquet", 3, ["text", "label"]))


@pytest.mark.parametrize(("labels", "chars"), [(2, 12_000_000), (30, 5_000_000), (150, 1_000_000), (9999, 1_000_000)])
def test_many_labels_get_fewer_characters(labels: int, chars: int) -> None:
    assert tfidf.max_chars(labels) == chars
