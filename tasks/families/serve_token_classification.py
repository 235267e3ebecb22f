"""How a tagger of words serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Texts are put right by the rules that the training's texts were put right by; these lie in the model's code, as
`hone_serving`. A word is what stands between white space: put a space before a mark that is a word of its own.

    model = mlflow.pyfunc.load_model("models:/names@champion")
    model.predict(pd.DataFrame({"text": ["Ada met Alan in London ."]}))
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

BATCH_SIZE = 32
"""Windows in one forward pass."""
COLUMNS = ("tags", "scores", "entities")

ENTITY = Object(
    [
        Property("type", DataType.string),
        Property("text", DataType.string),
        Property("start", DataType.long),
        Property("end", DataType.long),
        Property("score", DataType.double),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema(
        [
            ColSpec(Array(DataType.string), "tags"),
            ColSpec(Array(DataType.double), "scores"),
            ColSpec(Array(ENTITY), "entities"),
        ]
    ),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class TokenClassifier(PythonModel):
    """Predicts a tag for each word of a text, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, without asking the hub."""
        self.shared, self.tagging = _shared("serving", "tagging")
        self.loaded = self.shared.Loaded(context.artifacts, "AutoModelForTokenClassification")
        self.tags: list[str] = self.loaded.about["tags"]
        self.scheme: str = self.loaded.about["scheme"]

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
            `tags`, one for each word, in a sequence that makes sense; `scores`, their probabilities, 0 for a word that
            was cut off; `entities`: `type`, `text`, `start` and `end` (characters of the text as it was given) and
            `score`, the lowest of its words. A text that is missing or blank has no words: the three are empty.

        Raises:
            ValueError: There is no column `text`.
            TypeError: A text is something else.
        """
        return self.shared.answered(self.loaded, model_input, params, self._rows, COLUMNS)

    def _rows(self, given: Sequence[str | None], batch_size: int) -> list[dict[str, Any]]:
        """What is answered to each text."""
        read = [self._as_read(*pair) for pair in zip(given, self.loaded.repaired(given), strict=True)]
        answers = iter(self._tagged([text for text in read if text is not None], batch_size))
        nothing: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        return [
            nothing if text is None else self._answer(str(raw), *next(answers))
            for raw, text in zip(given, read, strict=True)
        ]

    def _as_read(self, given: str | None, repaired: str | None) -> str | None:
        """The text put right, or as it was given where that has another number of words: each must get its tag."""
        if given is None or not given.strip():
            return None
        same = repaired is not None and len(repaired.split()) == len(given.split())
        return repaired if same else given

    def _answer(self, given: str, tags: list[str], scores: list[float]) -> dict[str, Any]:
        words = self.tagging.bounds_of(given)
        found = [] if self.scheme == "none" else self.tagging.entities_of(tags, self.scheme)
        entities = [
            {
                "type": name,
                "text": given[words[first][0] : words[end - 1][1]],
                "start": words[first][0],
                "end": words[end - 1][1],
                "score": min(scores[first:end]),
            }
            for name, first, end in found
        ]
        return {"tags": tags, "scores": scores, "entities": entities}

    def _tagged(self, texts: list[str], batch_size: int) -> list[tuple[list[str], list[float]]]:
        """Tags of each text and their probabilities."""
        if not texts:
            return []
        found, owners = self.loaded.tokenized(texts, return_offsets_mapping=True)
        outputs: list[Any] = [None] * len(owners)
        for places, given in self.loaded.batches(found["input_ids"], batch_size):
            probabilities = given.logits.float().softmax(-1).cpu().numpy()
            for place, of_window in zip(places, probabilities, strict=True):
                outputs[place] = of_window[: len(found["input_ids"][place])]
        windows: list[list[int]] = [[] for _ in texts]
        for place, owner in enumerate(owners):
            windows[owner].append(place)
        return [
            self._tags_of(text, [found["offset_mapping"][i] for i in own], [outputs[i] for i in own])
            for text, own in zip(texts, windows, strict=True)
        ]

    def _tags_of(self, text: str, offsets: Sequence[Any], outputs: Sequence[Any]) -> tuple[list[str], list[float]]:
        words = self.tagging.bounds_of(text)
        first = [self.tagging.first_tokens(words, of_window) for of_window in offsets]
        tags, scores = self.tagging.tagged(outputs, first, len(words), self.tags, self.scheme)
        return tags, scores


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = TokenClassifier()
mlflow.models.set_model(MODEL)
