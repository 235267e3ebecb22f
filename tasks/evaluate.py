"""Evaluation: what the model is worth on the test rows, with intervals, beside the trivial baselines.

Predictions are written first; every number, table and picture derives from them. Does not cover the comparison with the
champion (`tasks.gate`), nor slices of the test rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.recipe import Evaluate
from schemas.records import Artifact, Interval
from tasks import classification, plots
from tasks.context import Context
from tasks.families import Family, Meta, family_of
from tasks.markdown import plain, table
from tasks.predict_job import Predict, predict_in_child
from tasks.stage import stage_task
from tasks.tokenize import dropped_rows

if TYPE_CHECKING:
    import polars as pl

SEED = 0
"""Of every bootstrap, so that the same predictions always have the same intervals."""
WIDEST_TABLE = 12
"""Labels up to which the report shows the whole confusion matrix; with more, the most frequent confusions."""
MOST_CONFUSIONS = 20


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
    meta = _meta(split)
    chosen = family.baselines(split, meta, metric, out)
    return {
        "chosen": chosen,
        "test": {name: family.score(read_predictions(out / f"{name}.parquet"), meta) for name in chosen},
    }


def evaluate_model(
    *, task: TaskSection, evaluate: Evaluate, metric: str,
    tokens: Path, model: Path, baseline: Path, predict: Predict, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Predict the test rows and measure: `predictions.parquet`, `metrics.json`, `report.md` and pictures.

    Rows that `overlong: drop` spared the model are left out of the baselines' measures too.

    Args:
        task: The recipe's task.
        evaluate: Confidence and resamples.
        metric: The metric that decides.
        tokens: Folder of the tokenize artifact.
        model: Folder of the train artifact.
        baseline: Folder that `baseline_predictions` wrote.
        predict: See `tasks.predict_job.Predict`.
        out: Where to write.

    Returns:
        `metrics` (`<name>`, `<name>_low`, `<name>_high`, and per label the values alone), `baselines` (the same by
        name), `gains` over each baseline (value, low, high, mcnemar_p), `rows`, `metric`, `seconds_predict`.
    """
    family, meta = family_of(task), _meta(tokens)
    dropped = dropped_rows(tokens, "test")
    began = time.monotonic()
    predict(model / "model", tokens / "test.arrow", out / "predictions.parquet")
    seconds = time.monotonic() - began

    found = measure(
        family,
        meta,
        evaluate=evaluate,
        metric=metric,
        predictions=read_predictions(out / "predictions.parquet"),
        baselines={
            file.stem: read_predictions(file).join(dropped, on="id", how="anti", maintain_order="left")
            for file in sorted(baseline.glob("*.parquet"))
        },
    )
    pictures = [*family.plots(found.predictions, meta, out)]
    history = model / "history.json"
    if history.exists():
        pictures.append(plots.learning_curve(json.loads(history.read_text()), metric, out / "learning_curve.png"))
    (out / "metrics.json").write_text(json.dumps(found.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    (out / "report.md").write_text(report(found, pictures), encoding="utf-8")
    return found.summary() | {"seconds_predict": round(seconds, 3)}


@dataclass(frozen=True)
class Measured:
    """All that was found out about a model on the test rows.

    Attributes:
        metric: The metric that decides.
        labels: All labels, where the task has them.
        metrics: Name → interval; those of one label are named `<metric>/<label>`.
        baselines: Baseline → the same.
        gains: Baseline → gain of the model over it, by the metric that decides.
        mcnemar: Baseline → p-value of McNemar's test.
    """

    metric: str
    evaluate: Evaluate
    labels: tuple[str, ...]
    predictions: pl.DataFrame
    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, Interval]]
    gains: dict[str, Interval]
    mcnemar: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """What the manifest, MLflow and the gate need, as JSON values."""
        by_label = {name: found.value for name, found in self.metrics.items() if "/" in name}
        return {
            "metrics": _flat(self.metrics) | by_label,
            "baselines": {name: _flat(found) for name, found in self.baselines.items()},
            "gains": {name: gain.model_dump() | {"mcnemar_p": self.mcnemar[name]} for name, gain in self.gains.items()},
            "rows": self.predictions.height,
            "metric": self.metric,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, as JSON values."""
        return {
            "metric": self.metric,
            "rows": self.predictions.height,
            "confidence": self.evaluate.confidence,
            "bootstrap_resamples": self.evaluate.bootstrap_resamples,
            "metrics": _dumped(self.metrics),
            "baselines": {name: _dumped(found) for name, found in self.baselines.items()},
            "gains": _dumped(self.gains),
            "mcnemar_p": self.mcnemar,
        }


def measure(
    family: Family,
    meta: Meta,
    *,
    evaluate: Evaluate,
    metric: str,
    predictions: pl.DataFrame,
    baselines: Mapping[str, pl.DataFrame],
) -> Measured:
    """Every metric with its interval, for the model and the baselines, and the paired gains."""
    options: dict[str, Any] = {
        "resamples": evaluate.bootstrap_resamples,
        "confidence": evaluate.confidence,
        "seed": SEED,
    }
    return Measured(
        metric=metric,
        evaluate=evaluate,
        labels=tuple(meta.get("labels", ())),
        predictions=predictions,
        metrics=family.intervals(predictions, meta, **options),
        baselines={name: family.intervals(rows, meta, **options) for name, rows in baselines.items()},
        gains={name: family.gain(predictions, rows, meta, metric, **options) for name, rows in baselines.items()},
        mcnemar={name: classification.mcnemar(predictions, rows) for name, rows in baselines.items()},
    )


def read_predictions(file: Path) -> pl.DataFrame:
    """Predictions from a Parquet file, validated."""
    import polars as pl

    from schemas import frames

    rows: pl.DataFrame = frames.Predictions.to_schema().validate(pl.read_parquet(file, glob=False), lazy=True)
    return rows


def report(found: Measured, pictures: Sequence[Path] = ()) -> str:
    """The evaluation as a Markdown page.

    Args:
        found: What to tell.
        pictures: Files beside the page.
    """
    confidence = f"{found.evaluate.confidence:.0%} interval"
    parts = [
        "# Evaluation",
        _headline(found),
        "## Metrics",
        table(("metric", "value", confidence), [(_code(n), *_shown(i)) for n, i in _overall(found.metrics).items()]),
        *_label_section(found, confidence),
        *_baseline_section(found, confidence),
        *_confusion_section(found),
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures),
        f"Intervals: percentile bootstrap, {found.evaluate.bootstrap_resamples:,} resamples of the rows. Gains are "
        "paired: both models on the same resampled rows. McNemar: exact, two-sided, on rows where one of the two is "
        "right.",
    ]
    return "\n\n".join(parts) + "\n"


def _headline(found: Measured) -> str:
    value, interval = _shown(found.metrics[found.metric])
    interval = f"{found.evaluate.confidence:.0%} interval {interval}"
    rows = f"{found.predictions.height:,} test rows that the model has never seen"
    line = f"**{found.metric} {value}** ({interval}) on {rows}."
    if not found.gains:
        return line
    best = max(found.baselines, key=lambda name: found.baselines[name][found.metric].value)
    gain = found.gains[best]
    verdict = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not clearly different from"
    gained, gain_interval = _shown(gain, signed=True)
    return f"{line} It is {verdict} the best baseline, {best}: {gained} ({gain_interval})."


def _label_section(found: Measured, confidence: str) -> list[str]:
    """One row per label: the first measure with its interval, the others by value."""
    by_label: dict[str, dict[str, Interval]] = {}
    for name, interval in found.metrics.items():
        kind, slash, label = name.partition("/")
        if slash:
            by_label.setdefault(label, {})[kind] = interval
    if not by_label:
        return []
    first, *others = next(iter(by_label.values()))
    rows = [
        (plain(label), *_shown(kinds[first]), *(_value(kind, kinds[kind].value) for kind in others))
        for label, kinds in by_label.items()
    ]
    return ["## Labels", table(("label", first, confidence, *others), rows)]


def _baseline_section(found: Measured, confidence: str) -> list[str]:
    if not found.baselines:
        return []
    rows = [
        (name, *_shown(found.baselines[name][found.metric]), *_shown(gain, signed=True), f"{found.mcnemar[name]:.2g}")
        for name, gain in found.gains.items()
    ]
    head = ("baseline", _code(found.metric), confidence, "gain of the model", confidence, "McNemar p")
    return ["## Baselines", table(head, rows)]


def _confusion_section(found: Measured) -> list[str]:
    import polars as pl

    one_label_each = all(found.predictions[column].dtype == pl.String for column in ("truth", "prediction"))
    if not found.labels or not one_label_each:
        return []
    counts = classification.confusion(found.predictions, found.labels).tolist()
    if len(found.labels) <= WIDEST_TABLE:
        rows = [
            (plain(label), *(f"**{n:,}**" if i == j else f"{n:,}" for j, n in enumerate(row)))
            for i, (label, row) in enumerate(zip(found.labels, counts, strict=True))
        ]
        return ["## Confusion", table(("true ╲ predicted", *map(plain, found.labels)), rows)]
    confused = [
        (count, truth, predicted)
        for truth, row in zip(found.labels, counts, strict=True)
        for predicted, count in zip(found.labels, row, strict=True)
        if count and truth != predicted
    ]
    most = sorted(confused, key=lambda cell: -cell[0])[:MOST_CONFUSIONS]
    rows = [(plain(truth), plain(predicted), f"{count:,}") for count, truth, predicted in most]
    return ["## Most frequent confusions", table(("true", "predicted", "rows"), rows)]


def _meta(folder: Path) -> Meta:
    meta: Meta = json.loads((folder / "meta.json").read_text())
    return meta


def _overall(metrics: Mapping[str, Interval]) -> dict[str, Interval]:
    return {name: found for name, found in metrics.items() if "/" not in name}


def _flat(metrics: Mapping[str, Interval]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, found in _overall(metrics).items():
        flat |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return flat


def _dumped(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: found.model_dump() for name, found in intervals.items()}


def _shown(found: Interval, *, signed: bool = False) -> tuple[str, str]:
    form = "+.4f" if signed else ".4f"
    return f"{found.value:{form}}", f"{found.low:{form}} to {found.high:{form}}"


def _value(kind: str, value: float) -> str:
    return f"{value:,.0f}" if kind == "support" else f"{value:.4f}"


def _code(name: str) -> str:
    return f"`{name}`"


@stage_task
def evaluate(context: Context, sides: Artifact, tokens: Artifact, model: Artifact) -> Artifact:
    """Measure the model on the test rows, beside the trivial baselines."""
    recipe, family_module = context.recipe, type(context.family).__module__
    baseline = context.artifact(
        "baseline",
        baseline_predictions,
        settings={"task": recipe.task, "metric": recipe.metric},
        inputs={"split": sides},
        modules=(family_module,),
        libraries=("numpy", "polars", "scikit-learn"),
        part_of="evaluate",
    )
    return context.artifact(
        "evaluate",
        evaluate_model,
        settings={"task": recipe.task, "evaluate": recipe.evaluate, "metric": recipe.metric},
        inputs={"tokens": tokens, "model": model, "baseline": baseline},
        unkeyed={"predict": predict_in_child(context)},
        modules=("tasks.predict", family_module),
        libraries=("matplotlib", "numpy", "polars", "torch", "transformers"),
    )
