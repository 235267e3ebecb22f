"""TF-IDF features of texts for trivial models: hashed words, word pairs and character n-grams, and rows to fit them on.

N-grams are hashed, so there is no vocabulary to outgrow memory, and training reads a bounded number of characters:
beyond it, rows are drawn at random.

References:
    S. Wang, C. Manning (2012), Baselines and Bigrams: Simple, Good Sentiment and Topic Classification.
    K. Weinberger et al. (2009), Feature Hashing for Large Scale Multitask Learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.rows import batches, count

if TYPE_CHECKING:
    import polars as pl
    from scipy.sparse import csr_matrix

WORD_OR_MARK = r"(?u)\w+|[^\w\s]"
"""A token: punctuation and emoji tell sentiment too."""
BUCKETS = 2**20
"""Hash buckets, once for words and once for character n-grams."""
MIN_ROWS = 2
"""Training rows an n-gram must be in."""
MAX_WEIGHTS = 10_000_000
"""Most n-grams times labels; the rarest n-grams go first. Each fit holds three such arrays of float64."""
MAX_CHARS = 12_000_000
"""Most characters of training text: about 1.5 GB while fitting. Fewer with many labels, see `max_chars`."""
MAX_CHARS_OF_A_TEXT = 4_000
"""A longer text counts by its beginning."""
MAX_VALIDATION_ROWS = 20_000
"""Validation rows by which settings are chosen; beyond it, rows are drawn at random."""
SEED = 0


class _Ngrams:
    """Hashed n-grams of one kind, weighted by TF-IDF: sublinear counts, rows of unit length, float32.

    Args:
        max_features: Most n-grams kept.
        options: Of scikit-learn's HashingVectorizer: what an n-gram is.
    """

    def __init__(self, max_features: int, **options: Any) -> None:
        import numpy as np
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._max_features = max_features
        self._hashing = HashingVectorizer(
            n_features=BUCKETS, alternate_sign=False, norm=None, dtype=np.float32, **options
        )
        self._weights = TfidfTransformer(sublinear_tf=True)

    def fit(self, texts: pl.Series) -> csr_matrix:
        """Learn which n-grams are frequent enough and how telling each is; the features of the training texts."""
        import numpy as np

        counts = self._hashing.transform(texts)
        rows_with = np.bincount(counts.indices, minlength=BUCKETS)
        frequent = min(self._max_features, int((rows_with >= min(MIN_ROWS, rows_with.max())).sum()))
        self._kept = np.sort(np.argsort(-rows_with, kind="stable")[:frequent])
        return self._weights.fit_transform(counts[:, self._kept])

    def __call__(self, texts: pl.Series) -> csr_matrix:
        """The features of further texts, `[texts, n-grams]`."""
        return self._weights.transform(self._hashing.transform(texts)[:, self._kept], copy=False)


class Features:
    """Word and character n-grams side by side, each of unit length: the many characters do not drown the words."""

    def __init__(self, max_features: int) -> None:
        self._kinds = (
            _Ngrams(max_features // 2, ngram_range=(1, 2), token_pattern=WORD_OR_MARK),
            _Ngrams(max_features // 2, ngram_range=(2, 5), analyzer="char_wb"),
        )

    def fit(self, texts: pl.Series) -> csr_matrix:
        """The features of the training texts, `[texts, n-grams]`."""
        return self._beside([kind.fit(_beginnings(texts)) for kind in self._kinds])

    def __call__(self, texts: pl.Series) -> csr_matrix:
        """The features of further texts, `[texts, n-grams]`."""
        return self._beside([kind(_beginnings(texts)) for kind in self._kinds])

    def _beside(self, parts: list[csr_matrix]) -> csr_matrix:
        from scipy.sparse import hstack

        return hstack(parts, format="csr")


def _beginnings(texts: pl.Series) -> pl.Series:
    return texts.str.slice(0, MAX_CHARS_OF_A_TEXT)


def max_chars(outputs: int) -> int:
    """Work grows with characters times outputs, so that many outputs get fewer characters, but a million at least."""
    return min(MAX_CHARS, max(1_000_000, 150_000_000 // outputs))


def training_rows(train: Path, outputs: int, columns: Sequence[str]) -> pl.DataFrame:
    """These columns of all rows, or of as many as have `max_chars` characters of the text.

    Args:
        train: Parquet file; its texts are in the column `text`.
        outputs: Numbers that a model gives for a row.
        columns: What is read.
    """
    chars = sum(int(_beginnings(batch["text"]).str.len_chars().sum()) for batch in batches([train], ["text"]))
    mean = chars / max(1, count([train]))
    return sampled(train, columns, max(1, int(max_chars(outputs) / max(1.0, mean))))


def sampled(file: Path, columns: Sequence[str], most: int) -> pl.DataFrame:
    """These columns of all rows, or of `most` drawn at random, in the file's order."""
    import numpy as np
    import polars as pl

    total = count([file])
    drawn = np.arange(total)
    if total > most:
        drawn = np.sort(np.random.default_rng(SEED).choice(total, most, replace=False))
    parts, start = [], 0
    for batch in batches([file], columns):
        first, last = np.searchsorted(drawn, [start, start + batch.height])
        parts.append(batch[drawn[first:last] - start])
        start += batch.height
    return pl.concat(parts)
