"""The champion on common ground: the serving model's predictions of today's test rows, made once for each of both.

It reads them with its own tokenizer and length, from the registry's copy. Does not cover another set of labels: that is
reported as a problem, as is a champion that cannot be loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.base import TaskSection
from schemas.errors import DataError, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.families import MEASURING, family_of
from tasks.predict_job import Predict, predict_in_child
from tasks.registry import Registered, files_of
from tasks.tokenize import encode_side, load_tokenizer, read_config


def champion_predictions(
    *, identity: str, task: TaskSection, labels: list[str], split: Path, champion: Path, predict: Predict, out: Path
) -> dict[str, Any]:
    """Write the champion's `predictions.parquet` of the test rows.

    Args:
        identity: Digest of the champion, part of the key.
        task: The recipe's task.
        labels: Of the test rows.
        split: Folder of the split artifact.
        champion: Folder with the champion's model.
        predict: See `tasks.predict_job.Predict`.
        out: Where to write.

    Raises:
        DataError: The champion knows other labels.
    """
    del identity
    meta = json.loads((champion / "hone.json").read_text())
    if sorted(meta.get("labels", [])) != sorted(labels):
        known, asked = ", ".join(meta["labels"]), ", ".join(labels)
        raise DataError(Problem("task.labels", asked, f"the champion knows {known}", "promote by hand once"))
    config = read_config(champion)
    tokenizer = load_tokenizer(champion, config, trust_remote_code=False)
    family, tokens = family_of(task), out / "test.arrow"
    encode_side(
        family, meta, tokenizer, vocab_size=config.get("vocab_size"), rows=split / "test.parquet", out=tokens
    )  # fmt: skip
    found = predict(champion, tokens, out / "predictions.parquet")
    tokens.unlink()
    return {"rows": found["rows"]}


def champion_artifact(context: Context, sides: Artifact, serving: Registered) -> Artifact:
    """The serving model's predictions of today's test rows."""
    labels = json.loads((context.path(sides) / "meta.json").read_text())["labels"]
    return context.artifact(
        "champion",
        champion_predictions,
        settings={"identity": serving.identity or serving.model_id, "task": context.recipe.task, "labels": labels},
        inputs={"split": sides},
        unkeyed={"champion": files_of(context.home, serving), "predict": predict_in_child(context)},
        modules=("tasks.predict", type(context.family).__module__),
        libraries=("polars", "tokenizers", "torch", "transformers"),
        apart_from=MEASURING,
        part_of="gate",
    )
