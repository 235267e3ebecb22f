"""Trivial models that a fine-tuned one has to beat: for classification the most frequent label, and TF-IDF.

TF-IDF here is a strong one: words, word pairs and character n-grams (`tasks.tfidf`) under logistic regression, its
settings chosen on the validation rows. Does not cover other tasks than one label per text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Problem
from tasks import classification as measures
from tasks.rows import batches
from tasks.tfidf import MAX_VALIDATION_ROWS, MAX_WEIGHTS, Features, sampled, training_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from scipy.sparse import csr_matrix

STRENGTHS = (1.0, 3.0, 10.0)
"""Values of C tried, as scikit-learn's LogisticRegression has it: the inverse of the L2 penalty over all rows."""
EPOCHS = 6
"""Passes of averaged stochastic gradient descent; twice as many change macro-F1 by less than 0.002 on 30,000 tweets."""
BATCH_ROWS = 20_000
"""Test rows predicted at once."""
MAX_THREADS = 4
SEED = 0


def classification(split: Path, labels: Sequence[str], metric: str, out: Path) -> dict[str, dict[str, Any]]:
    """Fit both baselines on the training rows and write their predictions of the test rows.

    Args:
        split: Folder with `train.parquet`, `validation.parquet` and `test.parquet`: columns id, text, label.
        labels: All labels, in the order of the probabilities.
        metric: What TF-IDF's settings are chosen by, on validation.
        out: Where `majority.parquet` and `tfidf.parquet` go: columns id, truth, prediction, probabilities.

    Returns:
        Name → what was chosen.

    Raises:
        DataError: The training rows have fewer than two labels.
    """
    import numpy as np

    shares = _label_shares(split / "train.parquet", labels)
    majority = labels[max(range(len(labels)), key=shares.__getitem__)]
    with_majority = ((batch, np.tile(shares, (batch.height, 1))) for batch in _test_rows(split))
    _write(out / "majority.parquet", with_majority, labels)

    model, chosen = _fit_tfidf(split, labels, metric)
    with_model = ((batch, model.probabilities(batch["text"])) for batch in _test_rows(split))
    _write(out / "tfidf.parquet", with_model, labels)
    return {"majority": {"label": majority, "share": round(max(shares), 4)}, "tfidf": chosen}


@dataclass(frozen=True)
class _Tfidf:
    """A fitted baseline.

    Attributes:
        classifier: scikit-learn's; knows the labels of the training rows by their index.
        labels: How many labels there are.
    """

    features: Features
    classifier: Any
    labels: int

    def probabilities(self, texts: pl.Series) -> np.ndarray[Any, Any]:
        """`[texts, labels]`; zero for a label no training row has."""
        return _probabilities(self.classifier, self.features(texts), self.labels)


def _fit_tfidf(split: Path, labels: Sequence[str], metric: str) -> tuple[_Tfidf, dict[str, Any]]:
    """The best of all settings on validation; the first of equals."""
    import numpy as np
    import polars as pl
    from sklearn.linear_model import SGDClassifier

    rows = training_rows(split / "train.parquet", len(labels), ["text", "label"])
    index = {label: i for i, label in enumerate(labels)}
    targets = rows["label"].replace_strict(index, return_dtype=pl.Int64).to_numpy()
    if len(np.unique(targets)) < 2:
        problem = "every training row has this label"
        raise DataError(Problem("label", rows["label"][0], problem, "collect rows that have another one"))
    features = Features(MAX_WEIGHTS // len(labels))
    training = features.fit(rows["text"])
    validation = sampled(split / "validation.parquet", ["text", "label"], MAX_VALIDATION_ROWS)
    validation_features = features(validation["text"])

    def candidate(setting: tuple[str | None, float]) -> tuple[float, Any]:
        class_weight, strength = setting
        classifier = SGDClassifier(
            loss="log_loss",
            alpha=1 / (strength * rows.height),
            class_weight=class_weight,
            max_iter=EPOCHS,
            tol=None,
            average=True,
            random_state=SEED,
        ).fit(training, targets)
        predicted = _probabilities(classifier, validation_features, len(labels)).argmax(1)
        found = pl.DataFrame({"truth": validation["label"], "prediction": [labels[i] for i in predicted]})
        return measures.score(found, labels)[metric], classifier

    # Gradient descent lets go of the interpreter, so threads share the features and use the cores.
    tried = [(class_weight, strength) for class_weight in (None, "balanced") for strength in STRENGTHS]
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        fitted = list(threads.map(candidate, tried))
    best = max(range(len(tried)), key=lambda i: fitted[i][0])
    chosen = {
        "C": tried[best][1],
        "class_weight": tried[best][0] or "none",
        "validation": round(fitted[best][0], 4),
        "rows": rows.height,
        "features": training.shape[1],
    }
    return _Tfidf(features, fitted[best][1], len(labels)), chosen


def _probabilities(classifier: Any, features: csr_matrix, labels: int) -> np.ndarray[Any, Any]:
    import numpy as np

    spread = np.zeros((features.shape[0], labels))
    spread[:, classifier.classes_] = classifier.predict_proba(features)
    return spread


def _label_shares(train: Path, labels: Sequence[str]) -> list[float]:
    counts: Counter[str] = Counter()
    for batch in batches([train], ["label"]):
        counts.update(dict(batch["label"].value_counts().iter_rows()))
    return [counts[label] / counts.total() for label in labels]


def _test_rows(split: Path) -> Iterator[pl.DataFrame]:
    return batches([split / "test.parquet"], ["id", "text", "label"], BATCH_ROWS)


def _write(file: Path, predicted: Iterator[tuple[pl.DataFrame, np.ndarray[Any, Any]]], labels: Sequence[str]) -> None:
    """Write batches of rows, each with its probabilities `[rows, labels]`; the most probable label is predicted."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {"id": pa.string(), "truth": pa.string(), "prediction": pa.string(), "probabilities": pa.list_(pa.float64())}
    )
    with pq.ParquetWriter(file, schema) as writer:
        for rows, probabilities in predicted:
            frame = pl.DataFrame(
                {
                    "id": rows["id"],
                    "truth": rows["label"],
                    "prediction": [labels[i] for i in probabilities.argmax(1)],
                    "probabilities": pl.Series(probabilities).arr.to_list(),
                }
            )
            writer.write_table(frame.to_arrow().cast(schema))
