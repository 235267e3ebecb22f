"""How a classifier with several labels serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Texts are put right by the rules that the training's texts were put right by. Give it texts
as they come.

    model = mlflow.pyfunc.load_model("models:/arguments@champion")
    model.predict(pd.DataFrame({"text": ["Sort an array.", "Draw numbers."]}), params={"batch_size": 64})
"""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map

BATCH_SIZE = 32
"""Texts in one forward pass."""
HALF = 0.5
"""The score from which a label is predicted where none was fitted."""
COLUMNS = ("labels", "scores")

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema(
        [
            ColSpec(Array(DataType.string), "labels", required=False),
            ColSpec(Map(DataType.double), "scores", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class MultiLabelClassifier(PythonModel):
    """Predicts any number of labels per text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, and what was fitted to it, without asking the hub."""
        (self.shared,) = _shared("serving")
        self.loaded = self.shared.Loaded(context.artifacts, "AutoModelForSequenceClassification")
        self.labels: list[str] = self.loaded.about["labels"]
        fitted = self.loaded.calibration.get("thresholds", {})
        self.thresholds = [fitted.get(label, HALF) for label in self.labels]

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row per text, in order.

        Args:
            context: Unused.
            model_input: DataFrame with a column `text`; a list of texts where MLflow's signature is not in between.
            params: `batch_size`.

        Returns:
            `labels`, those whose score reaches the threshold that was fitted for them, maybe none; `scores`, label →
            probability. A text that is missing or blank says nothing of its labels: both are empty.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        return self.shared.answered(self.loaded, model_input, params, self._rows, COLUMNS)

    def _rows(self, texts: list[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is answered to each text."""
        rows: list[dict[str, Any]] = self.loaded.answers(texts, batch_size, _sigmoid, self._answer)
        return rows

    def _answer(self, found: np.ndarray[Any, Any]) -> dict[str, Any]:
        scores: list[float] = found.tolist()
        each = zip(self.labels, scores, self.thresholds, strict=True)
        return {
            "labels": [label for label, score, threshold in each if score >= threshold],
            "scores": dict(zip(self.labels, scores, strict=True)),
        }


def _sigmoid(logits: Any) -> Any:
    return logits.float().sigmoid()


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = MultiLabelClassifier()
mlflow.models.set_model(MODEL)
