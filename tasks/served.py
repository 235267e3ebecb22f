"""What a registered version makes of today's test rows: it is asked as any user would ask it, with the raw rows.

The version answers in a fresh process by the code and the files it was registered with, so that it is measured as it
serves, whatever has changed in hone since. Its answers are an artifact, made once for each version and test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from schemas.base import TaskSection
from schemas.records import Artifact
from tasks.context import Context
from tasks.evaluate import read_meta
from tasks.families import MEASURING, family_of
from tasks.home import Home
from tasks.predict_job import predict_in_child
from tasks.register import as_collected, start_verifier, verifiers
from tasks.registry import Registered, files_of
from tasks.tokenizer import Base
from tasks.tokens_part import encode_file

Ask = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
"""What a version answers to rows as they come in service."""


Reread = Callable[[Path, Path], Path]
"""Predicts rows of a Parquet file with the version's weights, without writing texts, in a folder; the file made."""


def version_predictions(
    *, identity: str, task: TaskSection, split: Path, raw: Path, ask: Ask, reread: Reread, out: Path
) -> dict[str, Any]:  # fmt: skip
    """Write `test.parquet`, the version's predictions of the test rows.

    Args:
        identity: What the version is known by, part of the key.
        task: The recipe's task.
        split: Folder of the split artifact.
        raw: Folder of the collect artifact.
        ask: Asks the version.
        reread: Reads off its weights what it does not tell.
        out: Where to write.
    """
    import polars as pl

    del identity
    family, file = family_of(task), split / "test.parquet"
    rows = pl.read_parquet(file, glob=False)
    asked = as_collected(rows["id"], family.asked_columns, test=file, raw=raw)
    answers = ask(asked.select(family.asked_columns).to_dicts())
    found = family.from_served(answers, rows, read_meta(split))
    if family.unserved:
        with TemporaryDirectory() as folder:
            more = pl.read_parquet(reread(file, Path(folder)), columns=["id", *family.unserved])
        found = found.join(more, on="id", how="left", maintain_order="left")
    found.write_parquet(out / "test.parquet")
    return {"rows": rows.height}


def served_predictions(context: Context, raw: Artifact, sides: Artifact, version: Registered) -> Artifact:
    """A registered version's predictions of today's test rows."""

    def ask(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        uri = f"models:/{version.name}/{version.version}"
        verifier = verifiers.take() or start_verifier(context.family)
        return verifier.predict(context.home.mlflow_uri, uri, rows)

    def reread(rows: Path, folder: Path) -> Path:
        """By its own tokenizer and its own notes."""
        files = files_of(context.home, version)
        meta = json.loads((files / "hone.json").read_text(encoding="utf-8"))
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        tokens, found = folder / "test.arrow", folder / "read.parquet"
        encode_file(context.family, meta, Base(files).tokenizer, vocab_size=None, rows=rows, out=tokens)
        predict_in_child(context)(files, {tokens: found}, write=False)
        return found

    known_by = version.identity or f"{version.model_id} {version.name} {version.version}"
    return context.artifact(
        "served",
        version_predictions,
        settings={"identity": known_by, "task": context.recipe.task},
        inputs={"split": sides, "raw": raw},
        unkeyed={"ask": ask, "reread": reread},
        modules=(type(context.family).__module__,),
        libraries=("polars", "torch", "transformers"),
        apart_from=MEASURING,
        part_of="gate",
    )


def known_labels(home: Home, version: Registered) -> tuple[str, ...] | None:
    """The labels that a version was trained on; none where its task has none.

    Raises:
        FileNotFoundError: hone did not register it.
    """
    meta = json.loads((files_of(home, version) / "hone.json").read_text(encoding="utf-8"))
    return tuple(meta["labels"]) if "labels" in meta else None
