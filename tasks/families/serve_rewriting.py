"""How a model that makes one text of another serves: an MLflow models-from-code file, copied into every such model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Texts are put right by the rules that the training's texts were put right by; these lie in the model's code, as
`hone_serving`. Give it texts as they come.

    model = mlflow.pyfunc.load_model("models:/french@champion")
    model.predict(pd.DataFrame({"text": ["Good morning."]}), params={"num_beams": 4})
"""

from __future__ import annotations

import importlib
import json
import runpy
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

BATCH_SIZE = 32
"""Texts in one batch."""
AS_LEARNT = 0
"""Of `max_new_tokens` and `num_beams`: as many as the recipe says."""
COLUMNS = ("text", "finish_reason")

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema(
        [ColSpec(DataType.string, "text", required=False), ColSpec(DataType.string, "finish_reason", required=False)]
    ),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, AS_LEARNT),
            ParamSpec("num_beams", DataType.long, AS_LEARNT),
            ParamSpec("batch_size", DataType.long, BATCH_SIZE),
        ]
    ),
)
"""What the model takes and gives."""


class Rewriter(PythonModel):
    """Makes one text of each text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, without asking the hub."""
        self.serving, writing = _shared("serving", "writing")
        config = json.loads((Path(context.artifacts["model"]) / "config.json").read_text(encoding="utf-8"))
        kind = "AutoModelForSeq2SeqLM" if config.get("is_encoder_decoder") else "AutoModelForCausalLM"
        self.loaded = self.serving.Loaded(context.artifacts, kind)
        self.writer = writing.Rewriter(self.loaded.model, self.loaded.tokenizer, self.loaded.about)

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
            params: `max_new_tokens` and `num_beams` (0: the recipe's), `batch_size`.

        Returns:
            `text`, what was made of it; `finish_reason`, `stop`, or `length` where it was broken off. Empty where a
            text is missing or blank.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        return self.serving.answered(self.loaded, model_input, params, partial(self._rows, params or {}), COLUMNS)

    def _rows(self, params: dict[str, Any], texts: list[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is made of each text."""
        repaired = self.loaded.repaired(texts)
        chosen = {name: int(params.get(name, AS_LEARNT)) for name in ("max_new_tokens", "num_beams")}
        told = [text for text in repaired if text is not None]
        settings = {name: value for name, value in chosen.items() if value != AS_LEARNT}
        written = iter(self.writer.rewritten(told, settings, batch_size) if told else [])
        return [{} if text is None else _row(next(written)) for text in repaired]


def _row(answer: Any) -> dict[str, Any]:
    return {"text": answer.text, "finish_reason": "stop" if answer.ended else "length"}


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = Rewriter()
mlflow.models.set_model(MODEL)
