"""Trivial models for several labels: the most frequent set of labels, and one logistic regression per label on TF-IDF.

The second is a strong one: `tasks.tfidf` features, settings chosen on validation, and a threshold per label fitted
there, as the model's are (`tasks.label_sets`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import label_sets
from tasks.rows import Writer, batches, count
from tasks.rules.label_sets import lists
from tasks.tfidf import MAX_VALIDATION_ROWS, MAX_WEIGHTS, SEED, Features, sampled, training_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from scipy.sparse import csr_matrix

    from tasks.bootstrap import Floats

STRENGTHS = (3.0, 10.0, 30.0)
"""Values of C tried, as scikit-learn's LogisticRegression has it: the inverse of the L2 penalty over all rows."""
EPOCHS = 8
"""Passes of averaged stochastic gradient descent."""
BATCH_ROWS = 20_000
"""Test rows predicted at once."""
MAX_THREADS = 4
COLUMNS = ("text", "labels")


def multi_label(split: Path, labels: Sequence[str], metric: str, out: Path) -> dict[str, dict[str, Any]]:
    """Fit both on the training rows and write their predictions of the test rows.

    Args:
        split: Folder with `train.parquet`, `validation.parquet` and `test.parquet`: columns id, text, labels.
        labels: All labels, in the order of the scores.
        metric: What TF-IDF's settings are chosen by, on validation.
        out: Where `majority.parquet` and `tfidf.parquet` go: columns id, truth, prediction, margin, scores.

    Returns:
        Name → what was chosen.
    """
    import numpy as np

    frequent, shares = _frequent(split / "train.parquet", labels)
    chosen = np.array([label in frequent for label in labels])
    certain = np.where(chosen, np.minimum(shares, 0.0), 2.0)  # predicted whatever the score, or never
    _write(
        out / "majority.parquet", ((rows, np.tile(shares, (rows.height, 1))) for rows in _test(split)), certain, labels
    )

    train = training_rows(split / "train.parquet", len(labels), COLUMNS)
    features = Features(MAX_WEIGHTS // len(labels))
    training, targets = features.fit(train["text"]), _truth(train, labels)
    validation = sampled(split / "validation.parquet", COLUMNS, MAX_VALIDATION_ROWS)
    asked, truth = features(validation["text"]), _truth(validation, labels)
    tried = []
    for weight, strength in ((weight, strength) for weight in (None, "balanced") for strength in STRENGTHS):
        models = _fitted(training, targets, weight, strength)
        scores = _scores(models, asked)
        thresholds = label_sets.thresholds_of(scores, truth)
        told = validation.select(lists("labels").alias("truth")).with_columns(
            **label_sets.decided(scores, thresholds, labels)
        )
        tried.append((label_sets.score(told, labels)[metric], weight, strength, models, thresholds))
    reached, weight, strength, models, thresholds = max(tried, key=lambda fitted: fitted[0])
    _write(
        out / "tfidf.parquet", ((rows, _scores(models, features(rows["text"]))) for rows in _test(split)),
        thresholds, labels,
    )  # fmt: skip
    return {
        "majority": {"labels": frequent},
        "tfidf": {
            "C": strength, "class_weight": weight or "none", "validation": round(reached, 4), "rows": train.height,
            "features": training.shape[1],
        },
    }  # fmt: skip


def _fitted(training: csr_matrix, targets: np.ndarray[Any, Any], weight: str | None, strength: float) -> list[Any]:
    """A classifier for each label, or its share of the rows where all or none have it."""
    from sklearn.linear_model import SGDClassifier

    def one(wanted: np.ndarray[Any, Any]) -> Any:
        if wanted.all() or not wanted.any():
            return float(wanted.mean())
        return SGDClassifier(
            loss="log_loss",
            alpha=1 / (strength * len(wanted)),
            class_weight=weight,
            max_iter=EPOCHS,
            tol=None,
            average=True,
            random_state=SEED,
        ).fit(training, wanted)

    # Gradient descent lets go of the interpreter, so threads share the features and use the cores.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(one, targets.T))


def _scores(models: Sequence[Any], features: csr_matrix) -> Floats:
    """`[rows, labels]`."""
    import numpy as np

    rows = features.shape[0]
    return np.stack(
        [np.full(rows, model) if isinstance(model, float) else model.predict_proba(features)[:, 1] for model in models],
        axis=1,
    )


def _frequent(train: Path, labels: Sequence[str]) -> tuple[list[str], Floats]:
    """The set of labels that most training rows have, and the share of them that each label has."""
    import numpy as np

    sets: Counter[tuple[str, ...]] = Counter()
    for batch in batches([train], ["labels"]):
        sets.update(tuple(found) for found in batch.select(lists("labels")).to_series().to_list())
    rows = count([train])
    shares = [sum(times for found, times in sets.items() if label in found) / rows for label in labels]
    frequent, _ = max(sets.items(), key=lambda found: (found[1], found[0]))
    return list(frequent), np.array(shares)


def _truth(rows: pl.DataFrame, labels: Sequence[str]) -> np.ndarray[Any, Any]:
    return label_sets.marks(rows.select(lists("labels")).to_series(), labels)[0]


def _test(split: Path) -> Iterator[pl.DataFrame]:
    return batches([split / "test.parquet"], ["id", *COLUMNS], BATCH_ROWS)


def _write(
    file: Path, predicted: Iterator[tuple[pl.DataFrame, Floats]], thresholds: Floats, labels: Sequence[str]
) -> None:
    import polars as pl

    with Writer(file) as writer:
        for rows, scores in predicted:
            told = rows.select("id", lists("labels").alias("truth")).with_columns(
                **label_sets.decided(scores, thresholds, labels),
                scores=pl.Series(scores).arr.to_list(),
            )
            writer.write(told)
