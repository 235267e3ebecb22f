"""Prediction and its speed seen from the flow: jobs of the child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.child import children
from tasks.context import Context

Predict = Callable[[Path, Mapping[Path, Path]], Mapping[str, Any]]
"""Predicts, with a model folder, the rows of each token file into a Parquet file of its own.

Returns the rows, tokens and seconds of all together.
"""

RunJob = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Does a job of `tasks.worker.JOBS` with these arguments."""


def run_in_child(context: Context) -> RunJob:
    """Any job, in this process's child."""

    def run_job(job: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = children.run(context.home.logs, job, dict(spec))
        return found

    return run_job


def predict_in_child(context: Context) -> Predict:
    """Prediction with the recipe's family, in this process's child."""

    def predict(model: Path, tokens: Mapping[Path, Path]) -> Mapping[str, Any]:
        files = {str(file): str(out) for file, out in tokens.items()}
        spec = {"family": context.recipe.task.family, "model": str(model), "tokens": files}
        return run_job("predict", spec)

    run_job = run_in_child(context)
    return predict
