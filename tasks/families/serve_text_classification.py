"""How a text classifier serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Texts are put right by the rules that the training's texts were put right by; these lie in the model's code, as
`hone_serving`. Give it texts as they come.

    model = mlflow.pyfunc.load_model("models:/sentiment@champion")
    model.predict(pd.DataFrame({"text": ["lovely", "meh"]}), params={"batch_size": 64})
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
from mlflow.types.schema import Map

BATCH_SIZE = 32
"""Texts in one forward pass."""
TINY = 1e-12
"""A smaller probability counts as this much, as it did when the temperature was fitted."""
COLUMNS = ("label", "score", "probabilities", "abstains")

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "label", required=False),
            ColSpec(DataType.double, "score", required=False),
            ColSpec(Map(DataType.double), "probabilities", required=False),
            ColSpec(DataType.boolean, "abstains", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class TextClassifier(PythonModel):
    """Predicts one label per text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, and what was fitted to it, without asking the hub."""
        (self.shared,) = _shared("serving")
        self.loaded = self.shared.Loaded(context.artifacts, "AutoModelForSequenceClassification")
        self.labels: list[str] = self.loaded.about["labels"]
        self.temperature: float = self.loaded.calibration.get("temperature", 1.0)
        self.abstain: dict[str, Any] | None = self.loaded.calibration.get("abstain")

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
            `label`, the most probable one; `score`, its probability; `probabilities`, label → probability; `abstains`,
            whether the score is too low to go by, empty where the recipe asked for no such thing. A text that is
            missing or blank says nothing of its label: the four are empty.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        return self.shared.answered(self.loaded, model_input, params, self._rows, COLUMNS)

    def _rows(self, texts: list[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is answered to each text."""
        rows: list[dict[str, Any]] = self.loaded.answers(texts, batch_size, _softmax, self._answer)
        return rows

    def _answer(self, probabilities: np.ndarray[Any, Any]) -> dict[str, Any]:
        calibrated = _tempered(probabilities, self.temperature)
        best = int(calibrated.argmax())
        score = float(calibrated[best])
        return {
            "label": self.labels[best],
            "score": score,
            "probabilities": dict(zip(self.labels, calibrated.tolist(), strict=True)),
            "abstains": self._abstains(score),
        }

    def _abstains(self, score: float) -> bool | None:
        """Whether the model had better say nothing; without a threshold none is high enough."""
        if self.abstain is None:
            return None
        threshold = self.abstain["threshold"]
        return threshold is None or score < threshold


def _softmax(logits: Any) -> Any:
    return logits.float().softmax(-1)


def _tempered(probabilities: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    """`[labels]` float64: softmax of the logarithms over the temperature; one leaves them as they are."""
    if temperature == 1.0:
        return probabilities
    scaled = np.log(np.maximum(probabilities, TINY)) / temperature
    powers = np.exp(scaled - scaled.max())
    tempered: np.ndarray[Any, Any] = powers / powers.sum()
    return tempered


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = TextClassifier()
mlflow.models.set_model(MODEL)
