"""The small frozen records that travel between stages; never frames, tensors or models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SMALLEST_MICRO_BATCH_TOKENS = 64
"""Below this a micro-batch is not halved again."""


class Record(BaseModel):
    """Base of all records: frozen, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Outcome(Record):
    """What every stage ends with.

    Attributes:
        stage: The stage, or the name of a part of one (`plan`, `baseline`).
        key: Hash of everything that shaped the content.
        cached: Whether it was there already.
        why: Why it was computed: what changed since the last run of this recipe.
        seconds: How long this run took to have it.
        run_id: MLflow run that made it.
    """

    stage: str
    key: str
    cached: bool
    why: str
    seconds: float
    run_id: str


class Artifact(Outcome):
    """What a stage left in the store.

    Attributes:
        summary: Counts and measures for reports, straight from the manifest.
    """

    summary: dict[str, Any]


class Interval(Record):
    """A metric on the test rows, with its bootstrap interval."""

    value: float
    low: float
    high: float


class Plan(Record):
    """What training will do on this machine, decided before step one and then frozen.

    Attributes:
        micro_batch_tokens: Most tokens, padding counted, in one forward pass.
        threads: Threads of one operation.
        class_weights: Loss weight per label, or none.
        reasons: Why, for each choice that was not the recipe's.
    """

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["bf16", "fp32"]
    attention: Literal["eager", "sdpa"]
    threads: int
    global_batch_size: int
    micro_batch_tokens: int
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    decay_steps: int
    eval_steps: int
    class_weights: tuple[float, ...] | None
    reasons: dict[str, str]

    def halved(self) -> Plan | None:
        """The plan with half the micro-batch, or none when it is as small as it gets; the step stays."""
        smaller = self.micro_batch_tokens // 2
        if smaller < SMALLEST_MICRO_BATCH_TOKENS:
            return None
        reasons = self.reasons | {"micro_batch_tokens": f"halved from {self.micro_batch_tokens}: memory ran out"}
        return self.model_copy(update={"micro_batch_tokens": smaller, "reasons": reasons})


class Check(Record):
    """One named check of the gate.

    Attributes:
        name: `threshold:accuracy`, `baseline:macro_f1`, `champion:macro_f1`.
        rule: What was asked, in words.
        found: What was found, in words.
    """

    name: str
    passed: bool
    rule: str
    found: str


class Verdict(Outcome):
    """What the gate decided, and against which champion.

    Attributes:
        champion: Version that held the alias when the verdict was measured; none when nothing served.
        same_model: The champion is this very model.
    """

    passed: bool
    checks: tuple[Check, ...]
    champion: str | None
    same_model: bool = False


class ModelVersion(Outcome):
    """A version in the MLflow registry; `cached` when an earlier run registered this very model."""

    name: str
    version: str
    aliases: tuple[str, ...]


class StageLine(Record):
    """One line of the summary's table of stages; see `Outcome`."""

    name: str
    key: str
    cached: bool
    why: str
    seconds: float
    run_id: str


class Summary(Record):
    """What a run ends with; `hone run --json` prints it as its last line."""

    recipe: str
    flow_run_id: str
    mlflow_run_id: str
    mlflow_url: str | None
    model: ModelVersion
    metric: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    gate: Verdict
    rows: dict[str, Any]
    train: dict[str, Any]
    stages: tuple[StageLine, ...]
    seconds: float
