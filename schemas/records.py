"""The small frozen records that travel between stages; never frames, tensors or models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field

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


class Paired(Record):
    """One model against another on the same rows.

    Attributes:
        gain: Metric of the one less that of the other, with its paired bootstrap interval.
        se: Standard error of the gain.
        p: Two-sided chance to find this much difference between models that are equally good.
        test: Name of the test behind `p`.
    """

    gain: Interval
    se: float
    p: float
    test: str


class Plan(Record):
    """What training will do on this machine, decided before step one and then frozen.

    Attributes:
        attention: `packed`: rows follow each other in one sequence, and each attends to itself.
        micro_batch_tokens: Most tokens, padding counted, in one forward pass.
        activation_checkpointing: Activations of each layer are made anew for the backward pass.
        memory_bytes: What training is thought to need; 0 where that was not counted.
        threads: Threads of one operation.
        class_weights: Loss weight per label, or none.
        label_smoothing, focal_gamma, preference_beta: Of the loss, as in the recipe.
        learning_rate: Found by a range test; none where the recipe says it.
        reasons: Why, for each choice that was not the recipe's.
    """

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["bf16", "fp32"]
    attention: Literal["eager", "sdpa", "packed"]
    threads: int
    global_batch_size: int
    micro_batch_tokens: int
    optimizer: str
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    decay_steps: int
    eval_steps: int
    class_weights: tuple[float, ...] | None
    label_smoothing: float
    focal_gamma: float
    preference_beta: float = 0.1
    activation_checkpointing: bool = False
    memory_bytes: int = 0
    learning_rate: float | None = None
    reasons: dict[str, str]

    @property
    def packs(self) -> bool:
        """Whether rows follow each other in one sequence."""
        return self.attention == "packed"

    def halved(self) -> Plan | None:
        """The plan with half the micro-batch, or none when it is as small as it gets; the step stays."""
        smaller = self.micro_batch_tokens // 2
        if smaller < SMALLEST_MICRO_BATCH_TOKENS:
            return None
        reasons = self.reasons | {"micro_batch_tokens": f"halved from {self.micro_batch_tokens}: memory ran out"}
        return self.model_copy(update={"micro_batch_tokens": smaller, "reasons": reasons})


class SliceScore(Record):
    """A part of the test rows, and what the model is worth on it.

    Attributes:
        name: Such as `label=negative`, `length=longest quarter`, `length > 25 and has_url`.
        kind: What parts the rows: `label`, `length`, `source`, `time`, `language`, `column`, `weak`.
        value: Mean row score: share of right answers for classification; with its interval in low and high.
        p_weaker: Chance to find it this much worse than the other rows when it is not, adjusted for all slices (Holm).
    """

    name: str
    kind: str
    rows: int
    value: float
    low: float
    high: float
    p_weaker: float


CheckOutcome = Literal["passed", "failed", "undecidable", "not better"]
Decision = Literal["promote", "challenger", "reject", "undecidable"]


class Check(Record):
    """One named check of the gate.

    Attributes:
        name: `threshold:accuracy`, `baseline:macro_f1`, `champion:macro_f1`, `slices:floor`, `budget:latency`.
        rule: What was asked, in words.
        found: What was found, in words.
        rows_needed: Of an undecidable one: test rows in all that would decide it, as far as today's rows tell.
    """

    name: str
    outcome: CheckOutcome
    rule: str
    found: str
    rows_needed: int | None = None

    @property
    def passed(self) -> bool:
        """Whether it stands in nobody's way."""
        return self.outcome == "passed"


class Verdict(Outcome):
    """What the gate decided, and against which champion.

    Attributes:
        decision: `promote`: every check passed. `challenger`: good, and not shown to be better than the champion, which
            was asked. `undecidable`: nothing failed, but the test rows are too few. `reject`: a check failed.
        champion: Version that held the alias when the verdict was measured; none when nothing served.
        same_model: The champion is this very model.
        rows_needed: Of an undecidable one: test rows that would decide.
    """

    decision: Decision
    checks: tuple[Check, ...]
    champion: str | None
    same_model: bool = False
    rows_needed: int | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way
    @property
    def passed(self) -> bool:
        """Whether the model may serve."""
        return self.decision == "promote"


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
    """What a run ends with; `hone run --json` prints it as its last line.

    Attributes:
        started_from: The registered version that learnt on, as MLflow's URI; none where the base model learnt.
        rows: By what became of them; of a model that learnt on, also `new` and `replayed` ones of train.
    """

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
    started_from: str | None = None


class Partial(Record):
    """What a run ends with that was asked to stop after a stage.

    Attributes:
        until: The stage.
        found: Its counts and measures, or the gate's verdict.
        mlflow_run_id: Empty where no model was made, so that there is nothing to log.
    """

    recipe: str
    until: str
    flow_run_id: str
    mlflow_run_id: str
    mlflow_url: str | None
    found: dict[str, Any]
    stages: tuple[StageLine, ...]
    seconds: float


class Attempt(Record):
    """A model that was judged: made of which rows by which recipe, against which champion.

    Attributes:
        key: Of the rows and the recipe.
        champion: Version that served when the verdict was measured; none when nothing did.
        version: Of the model, in the registry.
        at: When it was judged, in UTC.
        run_id: Its MLflow run.
    """

    key: str
    champion: str | None
    decision: Decision
    version: str
    at: str
    flow_run_id: str
    run_id: str


class Skipped(Record):
    """What a retraining ends with that has nothing to do.

    Attributes:
        skipped: Why.
        attempt: The one that it would repeat.
    """

    recipe: str
    flow_run_id: str
    skipped: str
    attempt: Attempt
    stages: tuple[StageLine, ...]
    seconds: float
