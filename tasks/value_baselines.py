"""Trivial models for values: the mean of the training values, and ridge regression on TF-IDF (`tasks.tfidf`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import values
from tasks.rows import batches
from tasks.tfidf import MAX_VALIDATION_ROWS, MAX_WEIGHTS, Features, sampled, training_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

PENALTIES = (0.3, 1.0, 3.0, 10.0)
"""Values of alpha tried: the weight of the squared coefficients beside the sum of squared errors."""
BATCH_ROWS = 20_000
"""Test rows predicted at once."""
COLUMNS = ("text", "value")


def regression(split: Path, meta: Mapping[str, Any], metric: str, out: Path) -> dict[str, dict[str, Any]]:
    """Fit both on the training rows and write their predictions of the test rows.

    Args:
        split: Folder with `train.parquet`, `validation.parquet` and `test.parquet`: columns id, text, value.
        meta: `mean` and `scale` of the training values.
        metric: What the penalty is chosen by, on validation.
        out: Where `mean.parquet` and `tfidf.parquet` go: columns id, truth, prediction.

    Returns:
        Name → what was chosen.
    """
    import numpy as np
    import polars as pl
    from sklearn.linear_model import Ridge

    mean, scale = meta["mean"], meta["scale"]
    _write(out / "mean.parquet", ((rows, np.full(rows.height, mean)) for rows in _test_rows(split)))

    train = training_rows(split / "train.parquet", 1, COLUMNS)
    features = Features(MAX_WEIGHTS)
    training = features.fit(train["text"])
    targets = (_numbers(train) - mean) / scale
    validation = sampled(split / "validation.parquet", COLUMNS, MAX_VALIDATION_ROWS)
    asked = features(validation["text"])
    tried = []
    for alpha in PENALTIES:
        model = Ridge(alpha, solver="sparse_cg").fit(training, targets)
        told = pl.DataFrame({"truth": _numbers(validation), "prediction": mean + scale * model.predict(asked)})
        tried.append((values.score(told, meta)[metric], alpha, model))
    reached, alpha, best = max(tried, key=lambda fitted: fitted[0])
    found = ((rows, mean + scale * best.predict(features(rows["text"]))) for rows in _test_rows(split))
    _write(out / "tfidf.parquet", found)
    chosen = {"alpha": alpha, "validation": round(reached, 4), "rows": train.height, "features": training.shape[1]}
    return {"mean": {"value": mean}, "tfidf": chosen}


def _test_rows(split: Path) -> Iterator[pl.DataFrame]:
    return batches([split / "test.parquet"], ["id", *COLUMNS], BATCH_ROWS)


def _numbers(rows: pl.DataFrame) -> np.ndarray[Any, Any]:
    import polars as pl

    return rows["value"].cast(pl.Float64).to_numpy()


def _write(file: Path, predicted: Iterator[tuple[pl.DataFrame, np.ndarray[Any, Any]]]) -> None:
    import polars as pl

    from tasks.rows import Writer

    with Writer(file) as writer:
        for rows, found in predicted:
            writer.write(pl.DataFrame({"id": rows["id"], "truth": _numbers(rows), "prediction": found}))
