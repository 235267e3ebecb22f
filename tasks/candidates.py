"""Models in front of a gate: the one that a run has just trained, or a version that is registered already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Mistake, Problem
from schemas.records import Artifact
from tasks.context import Context
from tasks.evaluate import baseline_artifacts, measure, meta_of, read_predictions, slices_of, speed_artifact
from tasks.evaluation_report import report
from tasks.held_out import among, test_hashes
from tasks.register import identity_of, rows_learnt, training_hashes_of
from tasks.registry import Registered, files_of
from tasks.served import served_predictions
from tasks.slices import Slice, from_membership
from tasks.tokenize import dropped_rows

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
        left_out: Test rows that it was not measured on, by reason; see `told`.
        report: The evaluation as a Markdown page, where it is not in the store.
    """

    summary: Mapping[str, Any]
    predictions: pl.DataFrame
    parts: Sequence[Slice]
    trained_on: Hashes | None
    identity: str | None
    left_out: Mapping[str, int] = field(default_factory=dict)
    report: str = ""


def trained_candidate(context: Context, sides: Artifact, model: Artifact, scores: Artifact) -> Candidate:
    """The model that this run has trained."""
    import polars as pl

    measured = context.path(scores)
    return Candidate(
        summary=scores.summary,
        predictions=read_predictions(measured / "predictions.parquet"),
        parts=from_membership(pl.read_parquet(measured / "slices.parquet", glob=False)),
        trained_on=rows_learnt(context, sides),
        identity=identity_of(
            context.home,
            context.path(model),
            context.family,
            measured / "calibration.json",
            context.recipe.task.notes(),
        ),
    )


def registered_candidate(
    context: Context, raw: Artifact, sides: Artifact, tokens: Artifact, version: Registered
) -> Candidate:
    """A registered version, measured by what it answers to today's test rows.

    Rows that it was trained on are left out, and those that the recipe spares every model. Weak slices are not searched
    for: it does not predict validation rows.

    Raises:
        Mistake: hone did not register it, its files are gone, or it was trained on every test row.
        Fault: It does not answer, or MLflow is away.
    """
    import polars as pl

    folder = _folder_of(context, version)
    recipe, family, split = context.recipe, context.family, context.path(sides)
    trained_on = _trained_on(context, version)
    predicted = context.path(served_predictions(context, raw, sides, version))
    answers, dropped = read_predictions(predicted / "test.parquet"), dropped_rows(context.path(tokens), "test")
    predictions, left_out = fair(answers, test_hashes(split), trained_on, dropped)
    if predictions.is_empty():
        rule = f"was trained on all {answers.height:,} test rows"
        raise DataError(Problem("version", version.version, rule, "evaluate it on rows that it has not learnt"))
    meta, asked = meta_of(recipe.task, split), predictions.select("id")
    baselines = [context.path(artifact) for artifact in baseline_artifacts(context, sides, tokens)]
    settings = recipe.evaluate.slices.model_copy(update={"weak": False})
    known = pl.read_parquet(split / "validation.parquet", columns=["id"], glob=False)
    parts = slices_of(family, meta, settings, split=split, validation=known, test=predictions)
    found = measure(
        family,
        meta,
        evaluate=recipe.evaluate,
        metric=recipe.metric,
        predictions=predictions,
        baselines={
            file.stem: read_predictions(file).join(asked, on="id", how="semi", maintain_order="left")
            for file in sorted(file for folder in baselines for file in folder.glob("*.parquet"))
        },
        parts=parts,
        calibration={},
        speed=speed_artifact(context, sides, version.identity or version.model_id, lambda: folder).summary,
    )
    return Candidate(
        summary=found.summary(),
        predictions=predictions,
        parts=parts,
        trained_on=trained_on,
        identity=version.identity,
        left_out=left_out,
        report="\n\n".join([report(found), *told(left_out)]),
    )


def fair(
    predictions: pl.DataFrame, hashes: pl.DataFrame, trained_on: Hashes | None, dropped: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The predictions that say what a model is worth, and how many others there are, by reason.

    Args:
        predictions: Of all test rows.
        hashes: Of the test rows, see `tasks.held_out.test_hashes`.
        trained_on: Hashes of the model's training rows, sorted; none when nobody knows them.
        dropped: Ids of the test rows that the recipe spares every model.
    """
    import numpy as np
    import polars as pl

    learnt = among(hashes["hash"].to_numpy(), np.empty(0, np.uint64) if trained_on is None else trained_on)
    seen = hashes.filter(pl.Series(learnt))
    unseen = predictions.join(seen, on="id", how="anti", maintain_order="left")
    kept = unseen.join(dropped, on="id", how="anti", maintain_order="left")
    counts = {"trained_on": predictions.height - unseen.height, "overlong": unseen.height - kept.height}
    return kept, {reason: count for reason, count in counts.items() if count}


def told(left_out: Mapping[str, int]) -> list[str]:
    """Why test rows were left out, a sentence for each reason."""
    why = {"trained_on": "the version was trained on them", "overlong": "the recipe drops texts of their length"}
    return [f"{count:,} test rows were left out: {why[reason]}." for reason, count in left_out.items()]


def _folder_of(context: Context, version: Registered) -> Path:
    """The model's files.

    Raises:
        Mistake: There are none.
    """
    try:
        return files_of(context.home, version)
    except FileNotFoundError as error:
        rule = f"{error}: hone did not register it, or its files were deleted"
        raise Mistake(Problem("version", version.version, rule, "name another version")) from error


def _trained_on(context: Context, version: Registered) -> Hashes | None:
    try:
        return training_hashes_of(context.home, version)
    except FileNotFoundError:
        return None
