"""What a learning curve is asked, and what it found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.records import Interval, Record

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the training rows, where nothing else is asked."""
MOST_SEEDS = 20
PartOfRows = Annotated[float, Field(gt=0, le=1)]
Seeds = Annotated[int, Field(ge=1, le=MOST_SEEDS)]
CurveVerdict = Literal["rises", "flat", "undecided"]


class CurvePoint(Record):
    """What models are worth, on the validation rows, that learnt a share of the training rows.

    Attributes:
        share: Of the training rows.
        rows: How many these are; of several seeds the mean, as each draws others.
        steps: Optimiser steps.
        value: Of the metric, with the ends of its interval: over validation rows, and over seeds where there are some.
        seeds: Trainings that this is the mean of.
    """

    share: float
    rows: int
    steps: int
    value: Interval
    seeds: int


class Forecast(Record):
    """What more rows of the same kind would add to the metric.

    Attributes:
        factor: Times the rows of the curve's largest point.
        rows: These.
        gain: Over that point.
    """

    factor: int
    rows: int
    gain: Interval


class Curve(Record):
    """A metric on the validation rows against the number of training rows; `hone curve --json` prints it.

    Attributes:
        points: Ascending.
        forecasts: None where there are too few points.
        verdict: `rises`: more rows would surely add to the metric. `flat`: they would surely add less than the gate's
            `champion_margin`. `undecided`: the points cannot tell.
        told: The same in a sentence.
        trained: Trainings of this run; the others were in the store.
    """

    recipe: str
    flow_run_id: str
    mlflow_run_id: str
    mlflow_url: str | None
    metric: str
    validation_rows: int
    points: tuple[CurvePoint, ...]
    forecasts: tuple[Forecast, ...]
    verdict: CurveVerdict
    told: str
    trained: int
    seconds: float
