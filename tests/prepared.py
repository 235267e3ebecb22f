"""Prepared rows in a store, as the stages before training leave them, and a registered version that answers to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from schemas.records import Artifact
from tasks import served
from tasks.context import Context
from tasks.labels import Labelled
from tasks.registry import Registered

LABELS = ["bad", "good"]
Write = Callable[[Path], object]


def artifact(context: Context, stage: str, write: Write, **summary: Any) -> Artifact:
    """An artifact in the context's store."""
    with context.store.draft(stage, "k") as out:
        write(out)
        context.store.publish(out, stage, "k", ingredients={}, summary=summary, run_id="")
    return Artifact(stage=stage, key="k", cached=True, why="", seconds=0.0, run_id="", summary=summary)


def rows(count: int, side: str, row_from: int) -> pl.DataFrame:
    """Clean rows: every second one is good, and says so."""
    labels = [LABELS[i % 2] for i in range(count)]
    return pl.DataFrame(
        {
            "id": [f"{side}{i}" for i in range(count)],
            "text": [f"{side} {label} {i}" for i, label in enumerate(labels)],
            "label": labels,
            "source": "rows.csv",
            "row": pl.Series(range(row_from, row_from + count), dtype=pl.UInt32),
        }
    )


@dataclass
class Prepared:
    """Sixty training, twenty validation and forty test rows. As collected, every text is in capitals.

    Attributes:
        raw, sides, tokens: The artifacts.
        test: The test rows.
    """

    context: Context
    labels: list[str] = field(default_factory=lambda: list(LABELS))
    dropped: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = {"train": 60, "validation": 20, "test": 40}
        starts = {"train": 1, "validation": 61, "test": 81}
        parts = {side: rows(count, side, starts[side]) for side, count in counts.items()}
        self.test = parts["test"]
        collected = pl.concat(parts.values()).with_columns(pl.col("text").str.to_uppercase())
        about = {"labels": self.labels, "text_column": "text", "target_columns": ["label"]}
        meta = json.dumps(about | Labelled("label").as_meta())

        def write_raw(out: Path) -> None:
            (out / "rows").mkdir()
            collected.reverse().write_parquet(out / "rows" / "00000.parquet")

        def write_sides(out: Path) -> None:
            (out / "meta.json").write_text(meta)
            for side, frame in parts.items():
                frame.write_parquet(out / f"{side}.parquet")

        def write_tokens(out: Path) -> None:
            (out / "meta.json").write_text(meta)
            overlong = {"id": list(self.dropped), "side": "test", "tokens": pl.Series([99] * len(self.dropped))}
            if self.dropped:
                pl.DataFrame(overlong).with_columns(pl.col("tokens").cast(pl.Int32)).write_parquet(
                    out / "overlong.parquet"
                )

        self.raw = artifact(self.context, "collect", write_raw, rows=120)
        self.sides = artifact(self.context, "split", write_sides, **counts)
        self.tokens = artifact(self.context, "tokenize", write_tokens)


def version(identity: str | None = "files-1", number: str = "3") -> Registered:
    """A version of the registry."""
    tags = {"hone.identity": identity} if identity else {}
    return Registered(name="tiny", version=number, run_id="r", model_id="m-1", tags=tags)


def answer(label: str | None, labels: Sequence[str] = LABELS, sure: float = 0.9) -> dict[str, Any]:
    """What a served model says: a label and its probability, or nothing."""
    if label is None:
        return {"label": None, "score": None, "probabilities": None, "abstains": None}
    rest = (1 - sure) / (len(labels) - 1)
    return {
        "label": label, "score": sure, "abstains": None,
        "probabilities": {name: sure if name == label else rest for name in labels},
    }  # fmt: skip


class Asked:
    """Stands in for the fresh process that a version answers in; remembers what it was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, says: Callable[[str], Mapping[str, Any]]) -> None:
        self.uris: list[str] = []
        self.texts: list[str] = []
        self._says = says
        patch.setattr(served, "start_verifier", lambda family: SimpleNamespace(predict=self._predict))

    def _predict(self, tracking_uri: str, uri: str, asked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        self.uris.append(uri)
        self.texts += [row["text"] for row in asked]
        return [self._says(row["text"]) for row in asked]
