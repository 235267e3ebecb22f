"""What serving files share: the model folder that training wrote, texts put right, and batches of like length.

This module travels with every model; it imports nothing of ours but its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import repair

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH_SIZE = 32
"""Sequences in one forward pass."""
CHUNK = 4_096
"""Rows put right, tokenised and sorted by length at a time, so that memory stays flat."""
CHUNK_IN_WINDOWS = 256
"""The same where a long text is many windows."""

Windows = tuple[list[list[int]], list[int]]
"""Token ids of each window, and the place of the text that it is of."""


class Loaded:
    """A model, its tokenizer, and what was fitted to it, without asking the hub.

    Args:
        artifacts: MLflow's; `model` is the folder that training wrote, `calibration` a JSON file, where there is one.
        architecture: Name of the class of transformers that loads the model.

    Attributes:
        about: What training knew of the task (`hone.json`).
        calibration: What was fitted on validation.
        pad_token_id: What training padded with; a decoder finds the end of a text by it.
        stride: Tokens that the windows of a text share; none where long texts are cut.
    """

    def __init__(self, artifacts: Mapping[str, str], architecture: str) -> None:
        import torch
        import transformers

        from .quick import quickened

        folder = Path(artifacts["model"])
        self.about: dict[str, Any] = json.loads((folder / "hone.json").read_text(encoding="utf-8"))
        fitted = artifacts.get("calibration")
        self.calibration: dict[str, Any] = json.loads(Path(fitted).read_text(encoding="utf-8")) if fitted else {}
        self.max_seq_length: int = self.about["max_seq_length"]
        self.stride: int | None = self.about["stride"] if self.about.get("overlong") == "window" else None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pad_token_id: int = self.about.get("pad_token_id", 0)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loader = getattr(transformers, architecture)
        model = loader.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        self.model: torch.nn.Module = quickened(model.to(self.device).eval())

    @property
    def chunk(self) -> int:
        """Rows to be answered at a time."""
        return CHUNK if self.stride is None else CHUNK_IN_WINDOWS

    def repaired(self, texts: Sequence[str | None]) -> list[str | None]:
        """The texts as the training's were put right, with none for those of which nothing is left."""
        rules = self.about.get("text_rules") or {}
        if rules:
            import polars as pl

            texts = repair.repaired(pl.Series(texts, dtype=pl.String), rules).to_list()
        return [text if text is not None and text.strip() else None for text in texts]

    def encoded(self, texts: Sequence[str]) -> Windows:
        """The windows of every text, exactly as in training: special tokens, the same cut, no token types."""
        found, owners = self.tokenized(texts)
        return found["input_ids"], owners

    def tokenized(self, texts: Sequence[str], **more: Any) -> tuple[Any, list[int]]:
        """All that the tokenizer says of the windows of every text, and the place of the text that each is of.

        Args:
            texts: To be read.
            more: Options of the tokenizer, such as `return_offsets_mapping`.
        """
        how: dict[str, Any] = {"truncation": True, "max_length": self.max_seq_length, "return_token_type_ids": False}
        if self.stride is None:
            return self.tokenizer(list(texts), **how, **more), list(range(len(texts)))
        found = self.tokenizer(list(texts), **how, **more, stride=self.stride, return_overflowing_tokens=True)
        return found, found["overflow_to_sample_mapping"]

    def answers(
        self,
        texts: Sequence[str | None],
        batch_size: int,
        score: Callable[[torch.Tensor], torch.Tensor],
        answer: Callable[[np.ndarray[Any, Any]], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """The answer to each text, from what is scored in all of it; of one that is missing or blank, nothing.

        Args:
            texts: As they come; they are put right.
            batch_size: Windows in one forward pass.
            score: Logits `[batch, labels]` to scores of the same shape; the mean over its windows is a text's.
            answer: Scores `[labels]` of one text to what is said of it.
        """
        import numpy as np

        repaired = self.repaired(texts)
        told = [text for text in repaired if text is not None]
        if not told:
            return [{} for _ in repaired]
        input_ids, owners = self.encoded(told)
        found: np.ndarray[Any, Any] | None = None
        for places, given in self.batches(input_ids, batch_size):
            scores = score(given.logits).double().cpu().numpy()
            found = np.empty((len(input_ids), scores.shape[1])) if found is None else found
            found[places] = scores
        assert found is not None
        each = iter(means(found, owners, len(told)))
        return [{} if text is None else answer(next(each)) for text in repaired]

    def batches(
        self, input_ids: Sequence[Sequence[int]], batch_size: int, **columns: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], Any]]:
        """Forward passes over windows of like length, the longest first.

        Args:
            input_ids: Of each window.
            batch_size: Windows in one pass.
            columns: What else the model is given of each token, such as `token_type_ids`; padded with 0.

        Yields:
            Places of the windows, and what the model gives for them.
        """
        import torch

        order = sorted(range(len(input_ids)), key=lambda place: len(input_ids[place]), reverse=True)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                width = len(input_ids[places[0]])
                given = {
                    name: _padded([values[place] for place in places], width, 0) for name, values in columns.items()
                }
                given["input_ids"] = _padded([input_ids[place] for place in places], width, self.pad_token_id)
                given["attention_mask"] = _padded([[1] * len(input_ids[place]) for place in places], width, 0)
                yield places, self.model(**{name: torch.tensor(rows).to(self.device) for name, rows in given.items()})


def answered(
    loaded: Loaded,
    model_input: Any,
    params: Mapping[str, Any] | None,
    rows: Callable[[list[str | None], int], list[dict[str, Any]]],
    columns: Sequence[str],
) -> pd.DataFrame:
    """The answers to the texts of a model's input, one row each, some texts at a time.

    Args:
        loaded: The model.
        model_input: See `texts_of`.
        params: MLflow's; `batch_size` is heeded.
        rows: Answers some texts, as they come, in batches of so many.
        columns: Of the answers.
    """
    texts = texts_of(model_input)
    batch_size, size = int((params or {}).get("batch_size", BATCH_SIZE)), loaded.chunk
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    found = [{name: row.get(name) for name in columns} for chunk in chunks for row in rows(chunk, batch_size)]
    return pd.DataFrame(found, columns=list(columns))


def texts_of(model_input: Any, column: str = "text") -> list[str | None]:
    """The texts of a column of a DataFrame, or those of a list, with none for those that are missing.

    Raises:
        ValueError: There is no such column.
        TypeError: A text is something else.
    """
    if isinstance(model_input, pd.DataFrame):
        if column not in model_input.columns:
            raise ValueError(f"the input has no column {column!r} but {list(model_input.columns)}")
        model_input = model_input[column]
    texts: list[str | None] = []
    for i, value in enumerate([model_input] if isinstance(model_input, str) else model_input):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or pd.isna(value):
            texts.append(None)
        else:
            raise TypeError(f"{column} {i} is {value!r}, not a string")
    return texts


def means(found: np.ndarray[Any, Any], owners: Sequence[int], texts: int) -> np.ndarray[Any, Any]:
    """`[texts, …]` float64: the mean over the windows of each text, of which most have one."""
    import numpy as np

    total = np.zeros((texts, *found.shape[1:]))
    np.add.at(total, list(owners), found)
    windows = np.bincount(owners, minlength=texts)
    return total / windows.reshape(-1, *[1] * (found.ndim - 1))


def _padded(rows: Sequence[Sequence[int]], width: int, filling: int) -> list[list[int]]:
    return [[*row, *[filling] * (width - len(row))] for row in rows]
