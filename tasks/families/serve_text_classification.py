"""How a text classifier serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Texts are put right by the rules that the training's texts were put right by; these lie in the model's code, as
`hone_text_rules`. Give it texts as they come.

    model = mlflow.pyfunc.load_model("models:/sentiment@champion")
    model.predict(pd.DataFrame({"text": ["lovely", "meh"]}), params={"batch_size": 64})
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
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
CHUNK = 4_096
"""Texts put right, tokenised and sorted by length at a time, so that memory stays flat."""
CHUNK_IN_WINDOWS = 256
"""The same where a long text is many windows."""
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
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = Path(context.artifacts["model"])
        about = json.loads((folder / "hone.json").read_text(encoding="utf-8"))
        self.labels: list[str] = about["labels"]
        self.max_seq_length: int = about["max_seq_length"]
        self.stride: int | None = about["stride"] if about.get("overlong") == "window" else None
        self.text_rules: dict[str, Any] = about.get("text_rules") or {}
        self.rules = _rules() if self.text_rules else None
        fitted = context.artifacts.get("calibration")
        calibration = json.loads(Path(fitted).read_text(encoding="utf-8")) if fitted else {}
        self.temperature: float = calibration.get("temperature", 1.0)
        self.abstain: dict[str, Any] | None = calibration.get("abstain")
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
            `label`, the most probable one; `score`, its probability; `probabilities`, label → probability; `abstains`,
            whether the score is too low to go by, empty where the recipe asked for no such thing. A text that is
            missing or blank says nothing of its label: the four are empty.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        texts = _texts(model_input)
        batch_size = int((params or {}).get("batch_size", BATCH_SIZE))
        size = CHUNK if self.stride is None else CHUNK_IN_WINDOWS
        chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
        rows = [row for chunk in chunks for row in self._rows(self._repaired(chunk), batch_size)]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _repaired(self, texts: list[str | None]) -> list[str | None]:
        """The texts as the training's were put right, with none for those of which nothing is left."""
        if self.rules is not None:
            import polars as pl

            texts = self.rules.repaired(pl.Series(texts, dtype=pl.String), self.text_rules).to_list()
        return [text if text is not None and text.strip() else None for text in texts]

    def _rows(self, texts: list[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is answered to each text."""
        told = [text for text in texts if text is not None]
        answers = iter(self._probabilities(told, batch_size))
        nothing = dict.fromkeys(COLUMNS)
        return [nothing if text is None else self._answer(next(answers)) for text in texts]

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

    def _probabilities(self, texts: list[str], batch_size: int) -> list[np.ndarray[Any, Any]]:
        """Probabilities of each text, `[labels]` float64 each: the mean over its windows, of which most have one."""
        if not texts:
            return []
        encoded, owners = self._encoded(texts)
        found = self._forward(encoded, batch_size)
        total = np.zeros((len(texts), len(self.labels)))
        np.add.at(total, owners, found)
        return list(total / np.bincount(owners, minlength=len(texts))[:, None])

    def _encoded(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of every window, and the place of the text that it is of.

        Exactly as in training: special tokens, cut at the same length or into the same windows, no token types.
        """
        how: dict[str, Any] = {"truncation": True, "max_length": self.max_seq_length, "return_token_type_ids": False}
        if self.stride is None:
            return self.tokenizer(texts, **how)["input_ids"], list(range(len(texts)))
        found = self.tokenizer(texts, **how, stride=self.stride, return_overflowing_tokens=True)
        return found["input_ids"], found["overflow_to_sample_mapping"]

    def _forward(self, encoded: list[list[int]], batch_size: int) -> np.ndarray[Any, Any]:
        """Probabilities `[windows, labels]` float64, from batches of like length."""
        import torch

        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
        found = np.empty((len(encoded), len(self.labels)))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
                logits = self.model(
                    input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
                ).logits
                found[rows] = logits.float().softmax(-1).cpu().numpy()
        return found


def _tempered(probabilities: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    """`[labels]` float64: softmax of the logarithms over the temperature; one leaves them as they are."""
    if temperature == 1.0:
        return probabilities
    scaled = np.log(np.maximum(probabilities, TINY)) / temperature
    powers = np.exp(scaled - scaled.max())
    tempered: np.ndarray[Any, Any] = powers / powers.sum()
    return tempered


def _rules() -> ModuleType:
    """The rules for texts: those in the model's code, or hone's own where this file is served from hone's checkout.

    Loaded by path: two models in one process may have been trained under different versions of them.
    """
    here = Path(__file__)
    folder = here.with_name("code") / "hone_text_rules"
    if not folder.is_dir():
        folder = here.parents[1] / "rules"
    name = f"{__name__.replace('.', '_')}_text_rules"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.repair")


def _texts(model_input: Any) -> list[str | None]:
    """The texts, with none for those that are missing."""
    if isinstance(model_input, pd.DataFrame):
        if "text" not in model_input.columns:
            raise ValueError(f"the input has no column 'text' but {list(model_input.columns)}")
        model_input = model_input["text"]
    texts: list[str | None] = []
    for i, value in enumerate([model_input] if isinstance(model_input, str) else model_input):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or pd.isna(value):
            texts.append(None)
        else:
            raise TypeError(f"text {i} is {value!r}, not a string")
    return texts


MODEL = TextClassifier()
mlflow.models.set_model(MODEL)
