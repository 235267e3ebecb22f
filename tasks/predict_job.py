"""Prediction and its speed seen from the flow: jobs of the child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tasks.child import children
from tasks.context import Context


class Predict(Protocol):
    """Predicts, with a model folder, the rows of each token file into a Parquet file of its own.

    Returns the rows, tokens and seconds of all together.
    """

    def __call__(
        self, model: Path, tokens: Mapping[Path, Path], *, work: Path | None = None,
        shown: Sequence[Mapping[str, Any]] = (), write: bool = True,
    ) -> Mapping[str, Any]:  # fmt: skip
        """For `work`, `shown` and `write` see `tasks.predict.predict`."""
        ...


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

    def predict(
        model: Path,
        tokens: Mapping[Path, Path],
        *,
        work: Path | None = None,
        shown: Sequence[Mapping[str, Any]] = (),
        write: bool = True,
    ) -> Mapping[str, Any]:
        files = {str(file): str(out) for file, out in tokens.items()}
        spec: dict[str, Any] = {"family": context.recipe.task.family, "model": str(model), "tokens": files}
        spec |= {"shown": list(shown), "write": write, "work": str(work) if work else None}
        spec |= {"notes": context.recipe.task.notes()}
        return run_job("predict", spec)

    run_job = run_in_child(context)
    return predict
