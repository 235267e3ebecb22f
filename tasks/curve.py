"""The learning curve: what a model is worth by the number of rows it learnt, and what more rows would add.

Measured on the validation rows, never on the test: the curve is there to decide by, and what was decided by the test
rows could not be tested by them. The points share their validation rows, so their noise is alike; how much, the paired
bootstrap says. Does not cover training, which is that of every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.curve import CurvePoint, CurveVerdict, Forecast
from schemas.records import Artifact, Interval
from tasks import power_law
from tasks.context import Context
from tasks.evaluate import MEASURED_WITH, SEED, meta_of, read_predictions
from tasks.families import Family, Meta, family_of
from tasks.markdown import table
from tasks.measure import settings_of
from tasks.predict_job import Predict, predict_in_child
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats

PREDICTIONS = "validation.parquet"
FACTORS = (2, 4)
"""Times the rows there are that the metric is foretold for. Farther on, nothing is known."""
FITS = 2_000
"""Laws behind the interval of a forecast."""
ASSUMED_TRAINING = 0.5
"""Of one seed alone: standard deviation of the noise of training, by that of the validation rows, at the most rows."""
ASSUMED_FREEDOM = 2.0
"""Degrees of freedom that this assumption is worth."""


@dataclass(frozen=True)
class Trained:
    """A model of the curve.

    Attributes:
        share: Of the training rows it was given.
        rows: Texts that it learnt.
        model: The train artifact.
        predictions: Its predictions of the validation rows.
    """

    share: float
    rows: int
    model: Artifact
    predictions: Artifact

    @property
    def about(self) -> dict[str, Any]:
        """All that the curve needs to know of it beside its predictions."""
        return {"share": self.share, "rows": self.rows, "steps": self.model.summary["steps"]}


def validation_predictions(
    *, task: TaskSection, metric: str, tokens: Path, model: Path, predict: Predict, out: Path
) -> dict[str, Any]:  # fmt: skip
    """Write a model's predictions of the validation rows, as thresholds fitted on them decide.

    Args:
        task: The recipe's task.
        metric: The one that decides.
        tokens: Folder of the tokenize artifact.
        model: Folder of the train artifact.
        predict: See `tasks.predict_job.Predict`.
        out: Where to write.

    Returns:
        `rows`, `metric` and its `value`.
    """
    family, meta = family_of(task), meta_of(task, tokens)
    predict(model / "model", {tokens / "validation.arrow": out / PREDICTIONS})
    predictions = family.decided(read_predictions(out / PREDICTIONS), meta)
    predictions.write_parquet(out / PREDICTIONS)
    return {"rows": predictions.height, "metric": metric, "value": family.score(predictions, meta)[metric]}


def draw_curve(
    *, task: TaskSection, metric: str, confidence: float, resamples: int, margin: float,
    models: Sequence[Mapping[str, Any]], tokens: Path, predictions: Sequence[Path], out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Measure every point, fit the law, foretell, and write `curve.png` and `report.md`.

    Args:
        task: The recipe's task.
        metric: The one that decides.
        confidence: Of every interval.
        resamples: Of the validation rows.
        margin: Gain that is no gain worth having.
        models: What `Trained.about` says of each model.
        tokens: Folder of the tokenize artifact.
        predictions: Folders that `validation_predictions` wrote, one for each of the models.
        out: Where to write.

    Returns:
        `points`, `forecasts`, `verdict`, `told` (see `schemas.curve.Curve`), and `law`: a, b, c, or none.
    """
    from tasks.curve_plot import metric_by_rows

    groups = _by_share(models, [read_predictions(folder / PREDICTIONS) for folder in predictions])
    options = {"resamples": resamples, "confidence": confidence, "seed": SEED}
    measured = _measured(groups, family_of(task), meta_of(task, tokens), metric, options)
    points = _points(groups, measured, confidence)
    law, laws = None, None
    forecasts: list[Forecast] = []
    if len(points) >= power_law.FEWEST_POINTS:
        law = power_law.fit(measured.points)
        laws = power_law.resample(measured.points, law, FITS, SEED)
        forecasts = [_forecast(factor, law, laws, confidence) for factor in FACTORS]
    verdict, told = judged(forecasts, metric, margin)
    metric_by_rows(points, law, laws, metric=metric, confidence=confidence, path=out / "curve.png")
    found = {
        "points": [point.model_dump() for point in points],
        "forecasts": [forecast.model_dump() for forecast in forecasts],
        "verdict": verdict,
        "told": told,
        "law": law and {"a": float(law.a[0]), "b": float(law.b[0]), "c": float(law.c[0]), "most": law.most},
    }
    (out / "curve.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (out / "report.md").write_text(_report(points, forecasts, told, metric, measured.rows), encoding="utf-8")
    return found


@dataclass(frozen=True)
class Group:
    """The models of one share, one for each seed."""

    share: float
    rows: float
    steps: int
    predictions: tuple[pl.DataFrame, ...]


@dataclass(frozen=True)
class Measured:
    """What the groups are worth.

    Attributes:
        points: The same, as the law needs it.
        rows: Of validation.
        below, above: Ends of the intervals over validation rows, as distances from the values.
    """

    points: power_law.Points
    rows: int
    below: Floats
    above: Floats


def _by_share(models: Sequence[Mapping[str, Any]], predictions: Sequence[pl.DataFrame]) -> list[Group]:
    groups = []
    for share in sorted({about["share"] for about in models}):
        places = [place for place, about in enumerate(models) if about["share"] == share]
        groups.append(
            Group(
                share=share,
                rows=sum(models[place]["rows"] for place in places) / len(places),
                steps=round(sum(models[place]["steps"] for place in places) / len(places)),
                predictions=tuple(predictions[place] for place in places),
            )
        )
    return groups


def _measured(
    groups: Sequence[Group], family: Family, meta: Meta, metric: str, options: Mapping[str, Any]
) -> Measured:  # fmt: skip
    import numpy as np

    found = [[family.intervals(p, meta, **options)[metric] for p in group.predictions] for group in groups]
    values = np.array([np.mean([one.value for one in seeds]) for seeds in found])
    below = np.array([np.mean([one.value - one.low for one in seeds]) for seeds in found])
    above = np.array([np.mean([one.high - one.value for one in seeds]) for seeds in found])
    errors = (below + above) / (2 * _normal(options["confidence"]))
    rows = np.array([group.rows for group in groups])
    training, freedom = _training_noise([[one.value for one in seeds] for seeds in found], rows, float(errors[-1]))
    differences = {
        (i, j): family.paired(groups[j].predictions[0], groups[i].predictions[0], meta, metric, **options).se
        for j in range(len(groups))
        for i in range(j)
    }
    points = power_law.Points(rows, values, covariance(errors, differences), training, freedom)
    return Measured(points, groups[0].predictions[0].height, below, above)


def _training_noise(values: Sequence[Sequence[float]], rows: Floats, error: float) -> tuple[float, float]:
    """Variance that training adds to a point with the most rows, and its degrees of freedom.

    Args:
        values: Of each share's seeds.
        rows: Of each share.
        error: Standard error over validation rows of the last share.
    """
    import numpy as np

    freedom = sum(len(seeds) - 1 for seeds in values)
    if not freedom:
        return (ASSUMED_TRAINING * error) ** 2, ASSUMED_FREEDOM
    squares = [
        ((np.array(seeds) - np.mean(seeds)) ** 2).sum() * many / rows.max()
        for seeds, many in zip(values, rows, strict=True)
    ]
    return float(sum(squares) / freedom / max(map(len, values))), float(freedom)


def covariance(errors: Floats, differences: Mapping[tuple[int, int], float]) -> Floats:
    """Covariance of several metrics on the same rows, `[metrics, metrics]`, made positive definite.

    Args:
        errors: Standard error of each.
        differences: Standard errors of the differences between two.
    """
    import numpy as np

    found = np.diag(errors**2)
    for (i, j), error in differences.items():
        found[i, j] = found[j, i] = (errors[i] ** 2 + errors[j] ** 2 - error**2) / 2
    sizes, directions = np.linalg.eigh(found)
    least = 1e-6 * max(float(sizes.max()), 1e-12)
    positive: Floats = (directions * sizes.clip(least)) @ directions.T
    return positive


def _points(groups: Sequence[Group], measured: Measured, confidence: float) -> list[CurvePoint]:
    """The points; where there are several seeds, what they differ by is part of the interval."""
    import numpy as np
    from scipy.stats import t

    points, several = measured.points, max(len(group.predictions) for group in groups) > 1
    apart = t.ppf((1 + confidence) / 2, points.freedom) * np.sqrt(points.training) if several else np.zeros(len(groups))
    ends = zip(points.values, np.hypot(measured.below, apart), np.hypot(measured.above, apart), strict=True)
    return [
        CurvePoint(
            share=group.share,
            rows=round(group.rows),
            steps=group.steps,
            value=Interval(value=float(value), low=float(value - below), high=float(value + above)),
            seeds=len(group.predictions),
        )
        for group, (value, below, above) in zip(groups, ends, strict=True)
    ]


def _forecast(factor: int, law: power_law.Law, laws: power_law.Law, confidence: float) -> Forecast:
    from tasks.bootstrap import interval

    gain = interval(float(law.gain(factor)[0]), laws.gain(factor), confidence)
    return Forecast(factor=factor, rows=round(factor * law.most), gain=gain)


def judged(forecasts: Sequence[Forecast], metric: str, margin: float) -> tuple[CurveVerdict, str]:
    """Whether more rows are worth having, in a word and in a sentence.

    Args:
        forecasts: The first is for the fewest rows.
        metric: What is gained.
        margin: Gain that is no gain worth having.
    """
    if not forecasts:
        few = f"fewer than {power_law.FEWEST_POINTS} points cannot tell what more rows would add: ask for more --shares"
        return "undecided", few
    first = forecasts[0]
    gain = first.gain
    added = f"{first.rows:,} rows, {first.factor} times as many, would add {gain.value:+.3f} "
    added += f"({gain.low:+.3f} to {gain.high:+.3f}) {metric}"
    if gain.high < margin:
        return "flat", f"{added}: the curve is flat, look for better rows or another model"
    if gain.low > 0:
        return "rises", f"{added}: the curve still rises, more rows are worth their labels"
    return "undecided", f"{added}: the points cannot tell, more --seeds or validation rows might"


def _report(
    points: Sequence[CurvePoint], forecasts: Sequence[Forecast], told: str, metric: str, validation_rows: int
) -> str:  # fmt: skip
    """The page for MLflow and Prefect."""
    rows = [
        (f"{point.share:g}", f"{point.rows:,}", f"{point.steps:,}", f"{point.seeds}", shown(point.value))
        for point in points
    ]
    more = [(f"{f.factor} times", f"{f.rows:,}", shown(f.gain, "+.3f")) for f in forecasts]
    parts = [
        f"# {metric} by training rows",
        f"{told[:1].upper()}{told[1:]}.",
        "![The metric against the number of training rows](curve.png)",
        table(("share", "rows", "steps", "seeds", metric), rows),
        *([table(("as many", "rows", "would add"), more)] if more else []),
        f"On {validation_rows:,} validation rows; the test rows play no part.",
    ]
    return "\n\n".join(parts) + "\n"


def shown(found: Interval, how: str = ".3f") -> str:
    """A value with its interval, in words of a table."""
    return f"{found.value:{how}} ({found.low:{how}} to {found.high:{how}})"


def _normal(confidence: float) -> float:
    """Standard errors from the middle of a normal distribution to the ends of an interval."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + confidence) / 2)


@stage_task
def validate(context: Context, tokens: Artifact, model: Artifact) -> Artifact:
    """Predict the validation rows with a model of the curve."""
    recipe = context.recipe
    return context.artifact(
        "validate",
        validation_predictions,
        settings={"task": recipe.task, "metric": recipe.metric},
        inputs={"tokens": tokens, "model": model},
        unkeyed={"predict": predict_in_child(context)},
        modules=("tasks.predict", type(context.family).__module__),
        libraries=("numpy", "polars", "scikit-learn", "scipy", "torch", "transformers"),
    )


@stage_task
def curve(context: Context, tokens: Artifact, trained: Sequence[Trained]) -> Artifact:
    """Draw the curve through its points, and foretell what lies beyond."""
    recipe = context.recipe
    return context.artifact(
        "curve",
        draw_curve,
        settings={
            **settings_of(recipe),
            "margin": recipe.gate.champion_margin,
            "models": [one.about for one in trained],
        },
        inputs={"tokens": tokens, "predictions": [one.predictions for one in trained]},
        modules=(type(context.family).__module__,),
        libraries=MEASURED_WITH,
    )
