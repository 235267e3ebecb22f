"""A family taught end to end without the flow: rows, tokens, a tiny model, its predictions, and its serving file."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa

from tasks import learner, probe
from tasks.families import Family
from tasks.families.causal_lm import CausalLm
from tasks.predict import predict
from tasks.rules import chat
from tasks.tokenizer import Base
from tasks.tokens_part import encode_rows
from tests.learning import WORDS, tiny_decoder

LENGTH = {"max_seq_length": 40, "overlong": "truncate", "stride": None}


def silent(*_: Any, **__: Any) -> None:
    """An `emit` that tells nobody."""


@dataclass
class Taught:
    """A trained tiny model.

    Attributes:
        folder: With `model`, as training leaves it.
        meta: The task's.
        record: Of the training.
        predicted: Of the validation rows, as the model makes them.
        rows: The validation rows.
    """

    family: Family
    folder: Path
    meta: dict[str, Any]
    record: dict[str, Any]
    predicted: pl.DataFrame
    rows: pl.DataFrame

    def served(self, calibration: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """What the serving file answers to the validation rows, loaded by its path as MLflow does."""
        file = self.folder / "calibration.json"
        file.write_text(json.dumps(calibration or {}))
        spec = importlib.util.spec_from_file_location("served", self.family.serving)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        artifacts = {"model": str(self.folder / "model"), "calibration": str(file)}
        module.MODEL.load_context(SimpleNamespace(artifacts=artifacts))
        columns = self.rows.select(self.family.text_columns).to_dict(as_series=False)
        found: list[dict[str, Any]] = module.MODEL.predict(None, pd.DataFrame(columns)).to_dict(orient="records")
        return found


def taught(
    family: Family, task: dict[str, Any], base: Path, folder: Path, train: pl.DataFrame, validation: pl.DataFrame,
    length: dict[str, Any] | None = None, **settings: Any,
) -> Taught:  # fmt: skip
    """Teach a family clean rows.

    Args:
        family: Of the task.
        task: The recipe's section.
        base: The base model.
        folder: Where to work.
        train: Clean rows, with ids.
        validation: The same.
        length: `max_seq_length`, `overlong` and `stride`.
        settings: The recipe's section `train`.
    """
    section, tokenizer = family.section.model_validate(task), Base(base).tokenizer
    meta = family.describe(section, pl.concat([train, validation]).lazy())
    meta |= family.of_training(train.lazy(), meta)
    meta |= family.of_base(section, Base(base))
    meta |= {"pad_token_id": tokenizer.pad_token_id, **(length or LENGTH)}
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    (tokens / "meta.json").write_text(json.dumps(meta))
    for side, rows in (("train", train), ("validation", validation)):
        batch = encode_rows(family, meta, tokenizer, rows)
        with pa.ipc.new_stream(tokens / f"{side}.arrow", batch.schema) as stream:
            stream.write_batch(batch)
    spec = {
        "task": section.model_dump(mode="json"),
        "model": {"base": ""},
        "train": {"learning_rate": 3e-3, "global_batch_size": 16, "precision": "fp32", **settings},
        "base": str(base),
        "tokens": str(tokens),
        "metric": section.learns_by or section.metrics[0],
    }
    plan = probe.plan_training(emit=silent, **spec)
    (folder / "work").mkdir()
    record = learner.train(
        emit=silent, plan=plan, work=str(folder / "work"), out=str(folder), save_minutes=1e9, **spec
    )  # fmt: skip
    told = folder / "model" / "hone.json"  # as it is told when it is registered
    told.write_text(json.dumps(json.loads(told.read_text()) | section.notes()))
    out = folder / "predicted.parquet"
    predict(
        emit=silent, family=section.family, model=str(folder / "model"),
        tokens={str(tokens / "validation.arrow"): str(out)},
    )  # fmt: skip
    return Taught(family, folder, dict(meta), record, pl.read_parquet(out), validation)


def conversation_spec(folder: Path, base: Path | None = None) -> Callable[..., dict[str, Any]]:
    """Sixteen short conversations of several lengths and a tiny decoder, as `tasks.probe.plan_training` takes them.

    Args:
        folder: Where to work.
        base: Another decoder that knows the words.

    Returns:
        Makes the spec from settings of the recipe's section `train`.
    """
    base, family = base or tiny_decoder(folder / "base"), CausalLm()
    task = family.section.model_validate({})
    texts = [
        chat.of_parts(f"the film was {'so ' * (i % 5 * 8)}{WORDS[i % 6]}", f"very {WORDS[i % 6]}") for i in range(16)
    ]
    rows = pl.DataFrame({"id": [str(i) for i in range(len(texts))], "text": texts, "conversation": texts})
    meta = family.describe(task, rows.lazy()) | {"pad_token_id": 0, **LENGTH, "max_seq_length": 64}
    tokens = folder / "tokens"
    tokens.mkdir()
    (tokens / "meta.json").write_text(json.dumps(meta))
    batch = encode_rows(family, meta, Base(base).tokenizer, rows)
    for side in ("train", "validation"):
        with pa.ipc.new_stream(tokens / f"{side}.arrow", batch.schema) as stream:
            stream.write_batch(batch)

    def made(**train: Any) -> dict[str, Any]:
        return {
            "emit": silent, "task": task.model_dump(mode="json"), "model": {"base": ""}, "base": str(base),
            "tokens": str(tokens), "metric": "likelihood",
            "train": {"global_batch_size": 8, "precision": "fp32", **train},
        }  # fmt: skip

    return made
