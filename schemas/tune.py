"""What the search for a better recipe may change, what it may cost, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Section
from schemas.data import PositiveInt
from schemas.found import FoundRecipe
from schemas.records import Interval, Outcome, Record

UNTUNABLE = {
    "name": "it names the recipe",
    "description": "it changes nothing",
    "collect": "every trial must be measured on the same rows",
    "clean": "every trial must be measured on the same rows",
    "split": "every trial must be measured on the same rows",
    "evaluate": "every trial must be measured alike",
    "gate": "it decides on the test rows, which the search never sees",
    "registry": "it changes nothing that is learnt",
    "retrain": "it changes nothing that is learnt",
    "schedule": "it changes nothing that is learnt",
    "tune": "it is the search itself",
    "task.family": "it says what is measured",
    "tokenize.overlong": "every trial must be measured on the same rows",
    "train.seed": "luck is no setting: the finalists are trained with several seeds",
    "train.eval_steps": "the search decides when to look at a trial",
    "train.save_steps": "it changes nothing that is learnt",
    "train.save_minutes": "it changes nothing that is learnt",
}
"""Field or section of a recipe → why no search may change it."""


class Range(Section):
    """Numbers that are tried: from `low` to `high`, whole ones where both are whole and the field's are."""

    low: int | float
    """The least."""
    high: int | float
    """The largest."""
    log: bool = False
    """Tried evenly by their logarithm, for what spans orders of magnitude."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}: with log it must be above 0")
        return self


Choices = Annotated[tuple[Any, ...], Field(min_length=2)]
Dimension = Range | Choices
"""What is tried of one field."""
Space = dict[str, Dimension]
"""Field of the recipe, such as `train.learning_rate` → what is tried."""


def why_untunable(field: str) -> str | None:
    """Why no search may change this field; none where it may."""
    names = field.split(".")
    known = (".".join(names[:depth]) for depth in range(1, len(names) + 1))
    return next((UNTUNABLE[name] for name in known if name in UNTUNABLE), None)


class Tune(Section):
    """The search for a better recipe, by `hone tune`."""

    space: Space = Field(default_factory=dict)
    """Field of the recipe: {low, high, log} or a list of values. Empty: what fits task and method."""
    trials: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Most recipes that are tried; the first is this one."""
    minutes: Annotated[float, Field(gt=0, title="Time (minutes)")] | None = None
    """Most minutes in all, the finalists included; empty: as long as the trials take."""
    tokens: PositiveInt | None = None
    """Most tokens that all trials learn from together; empty: any number."""
    share: Annotated[float, Field(gt=0, le=1, title="Share of the rows")] | None = None
    """Of the training rows, for trials to learn from; default: a quarter, but enough for 100 steps."""
    prune: Annotated[bool, Field(title="Give up early")] = True
    """A trial is given up that is worse than half of the others were when as much of them was done."""
    parallel: PositiveInt | None = None
    """Trials at once; default: one for each GPU, or for every eight processor cores."""
    finalists: Annotated[int, Field(ge=1, le=10)] = 2
    """How many of the best trials learn from all rows, beside the recipe as it is."""
    seeds: Annotated[int, Field(ge=2, le=20)] = 3
    """Trainings of each finalist, each with a seed of its own, so that luck is told from skill."""

    @model_validator(mode="after")
    def _may_be_changed(self) -> Self:
        refused = [f"{field} may not be tuned: {why}" for field in self.space if (why := why_untunable(field))]
        if refused:
            raise ValueError("; ".join(refused))
        return self


TrialState = Literal["complete", "pruned", "failed"]


class Trial(Outcome):
    """One recipe that was tried, on a part of the rows.

    Attributes:
        number: From 0; that one is the recipe as it is.
        state: `pruned`: given up, as others were better when as much of them was done.
        values: Field → value.
        value: The best of the metric on validation, as far as the trial came; none of a failed one.
        reached: Share of the training that was done.
        course: Share of the training → the metric on validation then.
        steps: Optimiser steps it was to take.
        tokens: Learnt from.
        learning_seconds: How long its steps took, whenever that was; 0 of one that was not brought to an end.
        evaluation_seconds: How long the looks at it took, on top.
        told: Why it failed.
    """

    number: int
    state: TrialState
    values: dict[str, Any]
    value: float | None
    reached: float
    course: dict[float, float] = Field(default_factory=dict)
    steps: int
    tokens: int
    learning_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    told: str = ""

    def seconds_on_all(self, share: float) -> float:
        """How long the same training takes on all rows, of which this one learnt a share; it is looked at as often."""
        return self.learning_seconds / share + self.evaluation_seconds


class Finalist(Record):
    """A recipe that learnt from all rows, with several seeds.

    Attributes:
        trial: Its number; none for the recipe as it is.
        values: Field → value, of those that were searched.
        seeds: Trainings.
        value: Mean of the metric on validation over the seeds, with the interval over validation rows and seeds.
        spread: Standard deviation over the seeds.
        gain: Over the recipe as it is, paired by row and seed, wide enough for the best of all finalists; none for
            that recipe itself.
        seconds: Mean time of a training.
    """

    trial: int | None
    values: dict[str, Any]
    seeds: int
    value: Interval
    spread: float
    gain: Interval | None
    seconds: float


TuneVerdict = Literal["better", "within"]


class Tuned(FoundRecipe):
    """What a search found; `hone tune --json` prints it.

    Attributes:
        study: Name of the search in the database of studies.
        trials: All, in order.
        finalists: The best first.
        verdict: `better`: the best finalist surely gains over the recipe. `within`: it is within the interval.
        importance: Field → share of the metric's variation that it explains; empty where trials are few.
    """

    study: str
    trials: tuple[Trial, ...]
    finalists: tuple[Finalist, ...]
    verdict: TuneVerdict
    importance: dict[str, float]

    @property
    def winner(self) -> Mapping[str, Any]:
        """Field → value of the recipe that won, where it is another one."""
        return {field: after for field, (_, after) in self.changes.items()}
