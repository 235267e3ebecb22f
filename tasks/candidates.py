"""Models in front of a gate: the one that a run has just trained, or a version that is registered already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.records import Artifact
from tasks.context import Context
from tasks.evaluate import baseline_artifact, measure, read_meta, read_predictions, slices_of, speed_artifact
from tasks.evaluation_report import report
from tasks.held_out import training_hashes
from tasks.register import identity_of, training_hashes_of
from tasks.registry import Registered, files_of
from tasks.served import served_predictions
from tasks.slices import Slice, from_membership

if TYPE_CHECKING:
    import polars as pl

    from tasks.held_out import Hashes


@dataclass(frozen=True)
class Candidate:
    """A model in front of a gate, and all that was found out about it.

    Attributes:
        summary: Of its evaluation; see `tasks.evaluate.evaluate_model`.
        predictions: Of the test rows, calibrated.
        parts: Which test row is in which slice.
        trained_on: Hashes of its training rows; none when nobody knows them.
        identity: What it is known by; see `tasks.register.identity_of`.
        report: The evaluation as a Markdown page, where it is not in the store.
    """

    summary: Mapping[str, Any]
    predictions: pl.DataFrame
    parts: Sequence[Slice]
    trained_on: Hashes | None
    identity: str | None
    report: str = ""


def trained_candidate(context: Context, sides: Artifact, model: Artifact, scores: Artifact) -> Candidate:
    """The model that this run has trained."""
    import polars as pl

    measured = context.path(scores)
    return Candidate(
        summary=scores.summary,
        predictions=read_predictions(measured / "predictions.parquet"),
        parts=from_membership(pl.read_parquet(measured / "slices.parquet", glob=False)),
        trained_on=training_hashes(context.path(sides)),
        identity=identity_of(context.home, context.path(model), context.family, measured / "calibration.json"),
    )


def registered_candidate(context: Context, raw: Artifact, sides: Artifact, version: Registered) -> Candidate:
    """A registered version, measured on today's test rows by what it answers to them.

    Weak slices are not searched for: it does not predict validation rows.

    Raises:
        Fault: It cannot be loaded, or MLflow is away.
        FileNotFoundError: hone did not register it.
    """
    import polars as pl

    recipe, family, split = context.recipe, context.family, context.path(sides)
    predicted = context.path(served_predictions(context, raw, sides, version))
    meta, predictions = read_meta(split), read_predictions(predicted / "test.parquet")
    baseline = context.path(baseline_artifact(context, sides))
    settings = recipe.evaluate.slices.model_copy(update={"weak": False})
    known = pl.read_parquet(split / "validation.parquet", columns=["id"], glob=False)
    parts = slices_of(family, meta, settings, split=split, validation=known, test=predictions)
    speed = speed_artifact(
        context, sides, version.identity or version.model_id, lambda: files_of(context.home, version)
    )
    found = measure(
        family,
        meta,
        evaluate=recipe.evaluate,
        metric=recipe.metric,
        predictions=predictions,
        baselines={file.stem: read_predictions(file) for file in sorted(baseline.glob("*.parquet"))},
        parts=parts,
        calibration={},
        speed=speed.summary,
    )
    return Candidate(
        summary=found.summary(),
        predictions=predictions,
        parts=parts,
        trained_on=training_hashes_of(context.home, version),
        identity=version.identity,
        report=report(found),
    )
