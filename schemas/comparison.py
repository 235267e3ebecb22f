"""What base models and methods were compared, and which one is worth having."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Section
from schemas.found import FoundRecipe
from schemas.records import Interval, Record

MethodName = Literal["full", "lora", "rslora", "dora", "qlora", "ia3", "freeze", "bitfit"]


class Candidates(Section):
    """What is compared, and what it may cost."""

    bases: tuple[str, ...] = ()
    """Base models, each written as the recipe's `model.base`; empty: the recipe's own."""
    methods: tuple[MethodName, ...] = ()
    """Which parameters learn; empty: the recipe's own method."""
    share: Annotated[float, Field(gt=0, le=1, title="Share of the rows")] = 1.0
    """Of the training rows, that all of them learn from."""
    minutes: Annotated[float, Field(gt=0, title="Time (minutes)")] | None = None
    """Most minutes of training, of all together: they learn from as many rows as that allows; empty: no limit."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Trainings of each, so that luck is told from skill."""


class Candidate(Record):
    """A base model and a method, or a trivial model, measured on the validation rows.

    Attributes:
        name: For people; no two have the same.
        base: The base model; none of a trivial one.
        method: How it learnt; none of a trivial one.
        value: Of the metric, the mean over seeds, with its interval over rows and seeds; none where it failed.
        behind: What the best one has more, paired by row and seed, with its interval; none of the best itself.
        front: No other one is both better and faster.
        latency_ms: Median of single requests; none of a trivial model.
        rows_per_second: In batches of 32.
        size_mb: Megabytes of the model's files.
        parameters, learnt_parameters: Of the model, and how many of them learn.
        train_seconds: Mean time of a training.
        tokens_per_second: While it learnt.
        memory_bytes: Most that training ever had.
        told: Why it failed.
    """

    name: str
    base: str | None
    method: str | None
    seeds: int = 1
    value: Interval | None = None
    behind: Interval | None = None
    front: bool = False
    latency_ms: float | None = None
    rows_per_second: float | None = None
    size_mb: float | None = None
    parameters: int | None = None
    learnt_parameters: int | None = None
    train_seconds: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    told: str = ""

    @property
    def trivial(self) -> bool:
        """Whether nothing of it was fine-tuned."""
        return self.base is None


class Comparison(FoundRecipe):
    """Base models and methods side by side; `hone compare --json` prints it.

    Attributes:
        candidates: The best first.
        chosen: Name of the one that is recommended.
    """

    candidates: tuple[Candidate, ...]
    chosen: str
