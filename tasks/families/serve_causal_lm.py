"""How a model that answers conversations serves: an MLflow models-from-code file, copied into every registered model.

It imports nothing of hone, so that `mlflow.pyfunc.load_model("models:/<name>@champion")` works wherever the model's
requirements are installed. Torch and transformers are imported when a model is loaded: logging one needs neither.

Messages are put right by the rules that the training's were put right by, and written out by the chat template that it
learnt with; what does so lies in the model's code, as `hone_serving`. Give it messages as they come.

    model = mlflow.pyfunc.load_model("models:/assistant@champion")
    model.predict({"messages": [{"role": "user", "content": "What is a tomato?"}]}, params={"max_new_tokens": 64})

An MLflow server takes the same as JSON, `{"messages": [...], "temperature": 0.7}`.
"""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property

BATCH_SIZE = 32
"""Conversations answered together."""
AS_LEARNT = 0
"""Of `max_new_tokens`: as many as the recipe says."""
UNSAID = -1
"""Of `temperature`, `top_p`, `top_k` and `seed`: what the recipe says, and no seed."""
COLUMNS = ("text", "choices", "usage")

MESSAGE = Object(
    [
        Property("role", DataType.string),
        Property("content", DataType.string, required=False),
        Property("tool_calls", AnyType(), required=False),
        Property("tool_call_id", DataType.string, required=False),
        Property("name", DataType.string, required=False),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(MESSAGE), "messages", required=False),
            ColSpec(AnyType(), "tools", required=False),
            ColSpec(DataType.string, "conversation", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "text", required=False),
            ColSpec(AnyType(), "choices", required=False),
            ColSpec(AnyType(), "usage", required=False),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, AS_LEARNT),
            ParamSpec("temperature", DataType.double, float(UNSAID)),
            ParamSpec("top_p", DataType.double, float(UNSAID)),
            ParamSpec("top_k", DataType.long, UNSAID),
            ParamSpec("seed", DataType.long, UNSAID),
            ParamSpec("batch_size", DataType.long, BATCH_SIZE),
        ]
    ),
)
"""What the model takes and gives."""


class Assistant(PythonModel):
    """Answers one conversation for each row, in float32."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that training wrote, without asking the hub."""
        serving, self.chat, writing = _shared("serving", "chat", "writing")
        self.loaded = serving.Loaded(context.artifacts, "AutoModelForCausalLM")
        self.answerer = writing.Answerer(self.loaded.model, self.loaded.tokenizer, self.loaded.about)

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row per conversation, in order.

        Args:
            context: Unused.
            model_input: DataFrame with a column `messages`, lists of `role` and `content` as OpenAI has them, and it
                may have `tools`; or a column `conversation` with the same as JSON. What the assistant says last is not
                heeded: that is what is asked for.
            params: `max_new_tokens` (0: the recipe's); `temperature` (0: the likeliest token each time), `top_p`,
                `top_k` (-1: the recipe's); `seed`, so that the same is drawn again; `batch_size`.

        Returns:
            `text`, the answer; `choices` and `usage`, the same as chat completions have it, with `finish_reason` stop
            or length. Empty where a conversation is missing or no such thing, or nobody asks.

        Raises:
            ValueError: There is neither column.
        """
        asked = [self._asked(row) for row in _rows(model_input)]
        told = [place for place, conversation in enumerate(asked) if conversation is not None]
        chosen, most = _settings(params or {})
        answers = self.answerer.answers([asked[place] for place in told], chosen, most) if told else []
        rows: list[dict[str, Any]] = [dict.fromkeys(COLUMNS) for _ in asked]
        for place, answer in zip(told, answers, strict=True):
            rows[place] = _completion(answer)
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def predict_stream(
        self,
        context: Any,  # noqa: ARG002  MLflow passes it
        model_input: Any,
        params: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The answer to one conversation, in pieces as they are written.

        Args:
            context: Unused.
            model_input: One row as `predict` takes it, or a mapping of its columns.
            params: See `predict`; nothing is searched by beams.

        Yields:
            Chunks of a chat completion: `choices[0].delta.content`, and in the last one why it came to an end.

        Raises:
            ValueError: There is neither column, or it is no conversation in which somebody asks.
        """
        if not isinstance(model_input, pd.DataFrame):
            model_input = pd.DataFrame([dict(model_input)])
        asked = [self._asked(row) for row in _rows(model_input)]
        if len(asked) != 1 or asked[0] is None:
            raise ValueError("a stream answers one conversation, in which somebody asks")
        for text, ended in self.answerer.stream(asked[0], _settings(params or {})[0]):
            reason = None if ended is None else "stop" if ended else "length"
            delta = {"role": "assistant", "content": text}
            yield {
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            }

    def _asked(self, value: Any) -> Any:
        """The conversation up to the turn that is to be answered, put right; none where it is none."""
        if value is None:
            return None
        try:
            conversation = self.chat.asked(self.chat.read_any(value))
        except self.chat.UnreadableError:
            return None
        texts = self.chat.texts(conversation)
        right = dict(zip(texts, self.loaded.repaired(texts), strict=True))
        return self.chat.mapped(conversation, lambda text: right[text] or "")


def _rows(model_input: Any) -> Iterator[Any]:
    """What each row says: JSON text, or an object with messages."""
    if "messages" not in model_input.columns and "conversation" not in model_input.columns:
        raise ValueError(f"the input has no column 'messages' but {list(model_input.columns)}")
    for row in model_input.to_dict("records"):
        messages, whole = row.get("messages"), row.get("conversation")
        if isinstance(whole, str):
            yield whole
        elif messages is None or isinstance(messages, float):  # as pandas has what is missing
            yield None
        else:
            tools = row.get("tools")
            listed = [dict(message) for message in messages]
            yield (
                {"messages": listed, "tools": list(tools)} if isinstance(tools, list | tuple) else {"messages": listed}
            )


def _settings(params: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What is other than the recipe has it, and how many are answered together."""
    chosen: dict[str, Any] = {}
    if params.get("max_new_tokens", AS_LEARNT) != AS_LEARNT:
        chosen["max_new_tokens"] = int(params["max_new_tokens"])
    told = {name: params.get(name, UNSAID) for name in ("temperature", "top_p", "top_k", "seed")}
    chosen |= {name: value for name, value in told.items() if value >= 0}
    if chosen.get("temperature"):
        chosen["num_beams"] = 1
    return chosen, int(params.get("batch_size", BATCH_SIZE))


def _completion(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.text,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": "stop" if answer.ended else "length",
            }
        ],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens,
        },
    }


def _shared(*modules: str) -> list[ModuleType]:
    """What serving files share: that in the model's code, or hone's own where this file is served from its checkout."""
    file = Path(__file__).with_name("code") / "hone_serving" / "loading.py"
    how = runpy.run_path(str(file)) if file.exists() else vars(importlib.import_module("tasks.rules.loading"))
    found: list[ModuleType] = how["beside"](__name__, modules)
    return found


MODEL = Assistant()
mlflow.models.set_model(MODEL)
