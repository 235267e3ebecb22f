"""What a search comes to: the finalists on all rows with several seeds, and whether the best of them is surely better.

Validation rows decide, never the test: those are for the gate. Two kinds of luck are told from skill. Seeds: each
finalist is trained several times, and what trainings of one recipe differ by is part of the interval. Choice: the best
of several looks better than it is, so the intervals of the gains are as wide as holds for all finalists at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.recipe import Recipe
from schemas.records import Artifact
from schemas.tune import Finalist, Range, Space, Trial, TuneVerdict
from tasks.context import Context
from tasks.curve import PREDICTIONS, shown
from tasks.evaluate import MEASURED_WITH, SEED, meta_of, read_predictions
from tasks.families import family_of
from tasks.markdown import table
from tasks.measure import Measure, mean_of, settings_of, widened
from tasks.space import said
from tasks.stage import stage_task
from tasks.study import importance_of, rebuilt

if TYPE_CHECKING:
    import polars as pl

NO_TRIAL = "as it is"
"""What the recipe is called beside its finalists."""


@dataclass(frozen=True)
class Trained:
    """One training of a finalist.

    Attributes:
        trial: Number of the trial; none for the recipe as it is.
        values: Field → value.
        seed: Of the training.
        model: The train artifact.
        predictions: Of the validation rows.
    """

    trial: int | None
    values: Mapping[str, Any]
    seed: int
    model: Artifact
    predictions: Artifact

    @property
    def about(self) -> dict[str, Any]:
        """All that the conclusion needs to know of it beside its predictions."""
        return {
            "trial": self.trial,
            "values": dict(self.values),
            "seed": self.seed,
            "seconds": self.model.summary["seconds"],
        }


@dataclass(frozen=True)
class Group:
    """The trainings of one finalist, in the order of their seeds."""

    trial: int | None
    values: Mapping[str, Any]
    seconds: float
    predictions: tuple[pl.DataFrame, ...]


def draw_conclusion(
    *, task: TaskSection, metric: str, confidence: float, resamples: int, recipe: Recipe, space: Mapping[str, Any],
    trials: Sequence[Trial], trainings: Sequence[Mapping[str, Any]], tokens: Path, predictions: Sequence[Path],
    out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Measure the finalists, say whether the best is surely better, and write the pictures and `report.md`.

    Args:
        task: The recipe's task.
        metric: The one that decides.
        confidence: Of every interval.
        resamples: Of the validation rows.
        recipe: As it is.
        space: What was tried.
        trials: All.
        trainings: What `Trained.about` says of each.
        tokens: Folder of the tokenize artifact.
        predictions: Folders that `tasks.curve.validation_predictions` wrote, one for each training.
        out: Where to write.

    Returns:
        `finalists`, `verdict`, `told`, `importance`: see `schemas.tune.Tuned`; `winner`: field → value of the best,
        empty where the recipe stays.
    """
    from tasks import tuning_plots

    groups = _groups(trainings, [read_predictions(folder / PREDICTIONS) for folder in predictions])
    measure = Measure(family_of(task), meta_of(task, tokens), metric, confidence, resamples, SEED)
    finalists = measured(groups, measure)
    verdict, told = judged(finalists, metric, rows=groups[0].predictions[0].height)
    dimensions = {field: Range.model_validate(d) if isinstance(d, Mapping) else tuple(d) for field, d in space.items()}
    importance = importance_of(rebuilt(trials, dimensions, recipe))
    pictures = tuning_plots.draw(trials, dimensions, importance, metric=recipe.learns_by, out=out)
    found: dict[str, Any] = {
        "finalists": [finalist.model_dump(mode="json") for finalist in finalists],
        "verdict": verdict,
        "told": told,
        "importance": importance,
        "winner": dict(finalists[0].values) if verdict == "better" else {},
    }
    kept = found | {"trials": [trial.model_dump(mode="json") for trial in trials]}
    (out / "tuning.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    parts = [
        f"# A better recipe, by {metric}",
        f"{told[:1].upper()}{told[1:]}.",
        finalists_table(finalists, metric),
        _ended(trials),
        *(f"![{title}]({name})" for name, title in pictures.items()),
        *([_importance_table(importance)] if importance else []),
        "## Trials",
        trials_table(trials),
    ]
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return found


def measured(groups: Sequence[Group], measure: Measure) -> list[Finalist]:
    """The finalists, the best first.

    Args:
        groups: The recipe as it is among them, and all with as many trainings.
        measure: The metric that decides.
    """
    import numpy as np
    from scipy.stats import t

    seeds = len(groups[0].predictions)
    intervals = [[measure.of(predictions) for predictions in group.predictions] for group in groups]
    spreads = np.array([[one.value for one in each] for each in intervals]).std(axis=1, ddof=1)
    # Trainings of all finalists scatter alike, so that few seeds of each tell together how much.
    freedom = len(groups) * (seeds - 1)
    noise = float(np.sqrt((spreads**2).mean() / seeds))
    strict = 1 - (1 - measure.confidence) / max(1, len(groups) - 1)  # holds for all finalists at once (Bonferroni)
    apart = noise * float(t.ppf((1 + measure.confidence) / 2, freedom))
    apart_gain = noise * 2**0.5 * float(t.ppf((1 + strict) / 2, freedom))
    (base,) = (group for group in groups if group.trial is None)
    finalists = []
    for group, each, spread in zip(groups, intervals, spreads, strict=True):
        pairs = zip(group.predictions, base.predictions, strict=True)
        gains = [] if group is base else [measure.gain(one, other, strict) for one, other in pairs]
        finalists.append(
            Finalist(
                trial=group.trial,
                values=dict(group.values),
                seeds=seeds,
                value=widened(mean_of(each), apart),
                spread=float(spread),
                gain=widened(mean_of(gains), apart_gain) if gains else None,
                seconds=group.seconds,
            )
        )
    # Of equals the recipe as it is comes first.
    return sorted(finalists, key=lambda one: (-one.value.value, one.trial is not None))


def judged(finalists: Sequence[Finalist], metric: str, *, rows: int) -> tuple[TuneVerdict, str]:
    """Whether the best finalist is surely better than the recipe as it is, in a word and in a sentence."""
    best = finalists[0]
    on = f"on {rows:,} validation rows and {best.seeds} seeds"
    if best.gain is None:
        return "within", f"the recipe as it is stays: no finalist did better {on}"
    gained = f"{shown(best.gain, '+.4f')} {metric} over the recipe as it is, {on}"
    if best.gain.low > 0:
        return "better", f"trial {best.trial} gains {gained}"
    return "within", f"the recipe as it is stays: trial {best.trial} gains {gained}, which luck would explain"


def _groups(trainings: Sequence[Mapping[str, Any]], predictions: Sequence[pl.DataFrame]) -> list[Group]:
    numbers = list(dict.fromkeys(about["trial"] for about in trainings))
    groups = []
    for number in numbers:
        places = [place for place, about in enumerate(trainings) if about["trial"] == number]
        groups.append(
            Group(
                trial=number,
                values=trainings[places[0]]["values"],
                seconds=sum(trainings[place]["seconds"] for place in places) / len(places),
                predictions=tuple(predictions[place] for place in places),
            )
        )
    return groups


def finalists_table(finalists: Sequence[Finalist], metric: str) -> str:
    """The finalists, the best first, with what they were given."""
    fields = list(dict.fromkeys(field for one in finalists for field in one.values))
    rows = [
        (
            NO_TRIAL if one.trial is None else f"trial {one.trial}",
            shown(one.value, ".4f"),
            f"{one.spread:.4f}",
            "" if one.gain is None else shown(one.gain, "+.4f"),
            f"{one.seconds:.0f}",
            *(said(one.values.get(field, "")) for field in fields),
        )
        for one in finalists
    ]
    return table(("", metric, "spread of seeds", "gain", "seconds", *map(short, fields)), rows)


def short(field: str) -> str:
    """A field without its section: `train.method.r` is method.r."""
    return field.partition(".")[2]


def _ended(trials: Sequence[Trial]) -> str:
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(trials)} trials on a part of the rows: {counts}. The test rows played no part."


def _importance_table(importance: Mapping[str, float]) -> str:
    return table(("field", "share of the variation"), [(field, f"{share:.2f}") for field, share in importance.items()])


def trials_table(trials: Sequence[Trial]) -> str:
    """All trials, the best first; those that were given up after them."""
    fields = list(dict.fromkeys(field for trial in trials for field in trial.values))
    order = sorted(trials, key=lambda trial: (trial.state != "complete", -(trial.value or 0.0)))
    rows = [
        (
            f"{trial.number}",
            trial.state if trial.state != "pruned" else f"given up at {trial.reached:.0%}",
            "" if trial.value is None else f"{trial.value:.4f}",
            f"{trial.seconds:.0f}",
            *(said(trial.values.get(field, "")) for field in fields),
        )
        for trial in order
    ]
    return table(("trial", "", "value", "seconds", *map(short, fields)), rows)


@stage_task
def conclude(
    context: Context, tokens: Artifact, space: Space, trials: Sequence[Trial], trained: Sequence[Trained]
) -> Artifact:  # fmt: skip
    """Say what the search comes to."""
    recipe = context.recipe
    return context.artifact(
        "tune",
        draw_conclusion,
        settings={
            **settings_of(recipe),
            "recipe": recipe,
            "space": {f: d.model_dump() if isinstance(d, Range) else list(d) for f, d in space.items()},
            "trials": list(trials),
            "trainings": [one.about for one in trained],
        },
        inputs={"tokens": tokens, "predictions": [one.predictions for one in trained]},
        modules=(type(context.family).__module__,),
        libraries=(*MEASURED_WITH, "optuna"),
    )
