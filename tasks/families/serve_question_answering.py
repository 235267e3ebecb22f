"""How a model that answers questions serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Texts are put right by the rules that the training's texts were put right by, and read in the windows they were read in;
both lie in the model's code, as `hone_serving`. Give it texts as they come.

    model = mlflow.pyfunc.load_model("models:/parameters@champion")
    model.predict(pd.DataFrame({"question": ["Where is it?"], "context": ["It is in Paris."]}))
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
"""Windows in one forward pass."""
CHUNK = 256
"""Rows put right and read in windows at a time, so that memory stays flat."""
COLUMNS = ("answer", "score", "start", "end")

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "context"), ColSpec(DataType.string, "question")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "answer", required=False),
            ColSpec(DataType.double, "score", required=False),
            ColSpec(DataType.long, "start", required=False),
            ColSpec(DataType.long, "end", required=False),
        ]
    ),
    params=ParamSchema([ParamSpec("batch_size", DataType.long, BATCH_SIZE)]),
)
"""What the model takes and gives."""


class QuestionAnswerer(PythonModel):
    """Answers one question for each row, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, and what was fitted to it, without asking the hub."""
        serving, self.spans, self.alignment = _shared("serving", "spans", "alignment")
        self.texts_of = serving.texts_of
        self.loaded = serving.Loaded(context.artifacts, "AutoModelForQuestionAnswering")
        self.backend = self.loaded.tokenizer.backend_tokenizer
        self.backend.no_truncation()  # sentence-transformers models carry a cut and a padding of their own
        self.backend.no_padding()
        self.rules: dict[str, Any] = self.loaded.about.get("text_rules") or {}
        self.threshold: float | None = self.spans.threshold_of(self.loaded.about, self.loaded.calibration)

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row per question, in order.

        Args:
            context: Unused.
            model_input: DataFrame with columns `context` and `question`.
            params: `batch_size`.

        Returns:
            `answer`, a span of the context as it was put right; empty where there is none. `score`, its probability, or
            that of no answer. `start` and `end`, first character of the answer and one after its last, in Unicode code
            points of the context as it was given; empty where there is no answer, or its place there cannot be told
            for sure. All four are empty where a context or question is missing or blank.

        Raises:
            ValueError: A column is missing.
            TypeError: A text is something else.
        """
        given, asked = self.texts_of(model_input, "context"), self.texts_of(model_input, "question")
        batch_size = int((params or {}).get("batch_size", BATCH_SIZE))
        rows = []
        for start in range(0, len(given), CHUNK):
            contexts, questions = (texts[start : start + CHUNK] for texts in (given, asked))
            rows += self._rows(contexts, questions, batch_size)
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def _rows(
        self, given: list[str | None], asked: list[str | None], batch_size: int
    ) -> list[tuple[str | None, float | None, int | None, int | None]]:
        """What is answered to each question."""
        contexts, questions = self.loaded.repaired(given), self.loaded.repaired(asked)
        told = [place for place, pair in enumerate(zip(contexts, questions, strict=True)) if None not in pair]
        ranked = self._ranked([contexts[place] for place in told], [questions[place] for place in told], batch_size)
        rows: list[tuple[str | None, float | None, int | None, int | None]] = [(None, None, None, None)] * len(given)
        for place, found in zip(told, ranked, strict=True):
            span, score = found.decided(self.threshold)
            rows[place] = (None, score, None, None)
            if span is not None:
                where = self.alignment.as_given(given[place], contexts[place], *span, self.rules)
                rows[place] = (contexts[place][slice(*span)], score, *(where or (None, None)))
        return rows

    def _ranked(self, contexts: list[str], questions: list[str], batch_size: int) -> list[Any]:
        """The best spans of each context, see `spans.Ranked`."""
        if not contexts:
            return []
        about = self.loaded.about
        windows = self.spans.windows(
            self.backend, questions, contexts,
            longest=about["max_seq_length"], stride=about["stride"], question=about["max_question_tokens"],
        )  # fmt: skip
        every = [window for of_one in windows for window in of_one]
        numbers = self._numbers(every, batch_size)
        ends = np.cumsum([len(of_one) for of_one in windows])
        return [
            self.spans.merged(of_one, context, unanswerable=about["unanswerable"])
            for of_one, context in zip(np.split(numbers, ends[:-1]), contexts, strict=True)
        ]

    def _numbers(self, windows: list[Any], batch_size: int) -> np.ndarray[Any, Any]:
        """What `spans.best_spans` says of each window."""
        import torch

        types = {}
        if self.spans.told_types(self.loaded.model.config):
            types = {"token_type_ids": [window.token_type_ids for window in windows]}
        found = np.empty((len(windows), self.spans.NUMBERS), np.float32)
        for places, given in self.loaded.batches([window.input_ids for window in windows], batch_size, **types):
            width = given.start_logits.shape[1]
            begins, ends = (
                torch.full((len(places), width), self.spans.OUTSIDE, device=self.loaded.device) for _ in range(2)
            )
            for row, place in enumerate(places):
                length = len(windows[place].begins)
                begins[row, :length] = torch.tensor(windows[place].begins)
                ends[row, :length] = torch.tensor(windows[place].ends)
            logits = (self.spans.masked(scores, begins) for scores in (given.start_logits, given.end_logits))
            most = self.loaded.about["max_answer_tokens"]
            found[places] = self.spans.best_spans(*logits, (begins, ends), most).cpu().numpy()
        return found


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = QuestionAnswerer()
mlflow.models.set_model(MODEL)
