"""Prediction seen from the flow: a job of the child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.child import children
from tasks.context import Context

Predict = Callable[[Path, Path, Path], Mapping[str, Any]]
"""Predicts, with a model folder, the rows of a token file into a Parquet file; returns rows, tokens and seconds."""


def predict_in_child(context: Context) -> Predict:
    """Prediction with the recipe's family, in this process's child."""

    def predict(model: Path, tokens: Path, out: Path) -> Mapping[str, Any]:
        spec = {"family": context.recipe.task.family, "model": str(model), "tokens": str(tokens), "out": str(out)}
        found: Mapping[str, Any] = children.run(context.home.logs, "predict", spec)
        return found

    return predict
