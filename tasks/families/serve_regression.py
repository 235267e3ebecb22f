"""How a regression serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Texts are put right by the rules that the training's texts were put right by. Give it texts
as they come.

    model = mlflow.pyfunc.load_model("models:/polarity@champion")
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

BATCH_SIZE = 32
"""Texts in one forward pass."""
COLUMNS = ("value",)

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema([ColSpec(DataType.double, "value", required=False)]),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class Regressor(PythonModel):
    """Predicts one number per text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, without asking the hub."""
        (self.shared,) = _shared("serving")
        self.loaded = self.shared.Loaded(context.artifacts, "AutoModelForSequenceClassification")
        config: Any = self.loaded.model.config
        self.mean, self.scale = float(config.value_mean), float(config.value_scale)

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
            `value`, in the units of the training's source; empty for a text that is missing or blank.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        found: pd.DataFrame = self.shared.answered(self.loaded, model_input, params, self._rows, COLUMNS)
        return found.astype(object).where(found.notna(), None)

    def _rows(self, texts: list[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is answered to each text."""
        rows: list[dict[str, Any]] = self.loaded.answers(texts, batch_size, self._values, self._answer)
        return rows

    def _values(self, logits: Any) -> Any:
        """In the units of the training's source."""
        return self.mean + self.scale * logits.double()

    def _answer(self, values: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"value": float(values[0])}


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = Regressor()
mlflow.models.set_model(MODEL)
