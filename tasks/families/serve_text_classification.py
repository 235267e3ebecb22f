"""How a text classifier serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

    model = mlflow.pyfunc.load_model("models:/sentiment@champion")
    model.predict(pd.DataFrame({"text": ["lovely", "meh"]}), params={"batch_size": 64})
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

if TYPE_CHECKING:
    import numpy as np

BATCH_SIZE = 32
"""Texts in one forward pass."""
WINDOW = 4_096
"""Texts tokenised and sorted by length at a time, so that memory stays flat."""

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "label", required=False),
            ColSpec(DataType.double, "score", required=False),
            ColSpec(Map(DataType.double), "probabilities", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class TextClassifier(PythonModel):
    """Predicts one label per text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, without asking the hub."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = Path(context.artifacts["model"])
        about = json.loads((folder / "hone.json").read_text(encoding="utf-8"))
        self.labels: list[str] = about["labels"]
        self.max_seq_length: int = about["max_seq_length"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = (
            AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
            .to(self.device)
            .eval()
        )

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
            `label`, the most probable one; `score`, its probability; `probabilities`, label → probability. A text that
            is missing or blank says nothing of its label: the three are empty.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        texts = _texts(model_input)
        batch_size = int((params or {}).get("batch_size", BATCH_SIZE))
        rows: list[dict[str, Any]] = [{"label": None, "score": None, "probabilities": None} for _ in texts]
        told = [i for i, text in enumerate(texts) if text is not None]
        for start in range(0, len(told), WINDOW):
            window = told[start : start + WINDOW]
            for i, found in zip(window, self._probabilities([texts[i] for i in window], batch_size), strict=True):
                best = int(found.argmax())
                named = dict(zip(self.labels, found.tolist(), strict=True))
                rows[i] = {"label": self.labels[best], "score": float(found[best]), "probabilities": named}
        return pd.DataFrame(rows, columns=["label", "score", "probabilities"])

    def _probabilities(self, texts: list[str | None], batch_size: int) -> list[np.ndarray[Any, Any]]:
        """Probabilities of each text, `[labels]` each, from batches of like length."""
        import torch

        # Exactly as in training: special tokens, cut at the same length, no token types.
        cut = {"truncation": True, "max_length": self.max_seq_length}
        encoded = self.tokenizer(texts, return_token_type_ids=False, **cut)["input_ids"]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
        found: list[Any] = [None] * len(encoded)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
                logits = self.model(
                    input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
                ).logits
                for i, row in zip(rows, logits.float().softmax(-1).cpu().numpy(), strict=True):
                    found[i] = row
        return found


def _texts(model_input: Any) -> list[str | None]:
    """The texts, with none for those that are missing or blank."""
    if isinstance(model_input, pd.DataFrame):
        if "text" not in model_input.columns:
            raise ValueError(f"the input has no column 'text' but {list(model_input.columns)}")
        model_input = model_input["text"]
    texts: list[str | None] = []
    for i, value in enumerate([model_input] if isinstance(model_input, str) else model_input):
        if isinstance(value, str):
            texts.append(value if value.strip() else None)
        elif value is None or pd.isna(value):
            texts.append(None)
        else:
            raise TypeError(f"text {i} is {value!r}, not a string")
    return texts


mlflow.models.set_model(TextClassifier())
