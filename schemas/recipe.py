"""The recipe: one fine-tuning job, validated as a whole before anything runs.

One section per stage, so that a stage's cache key covers the section it reads and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import (
    FamilyUnion,
    ModelLocation,
    OrWord,
    PlainUnion,
    Section,
    TaskSection,
    family_names,
    load_family,
)
from schemas.data import Clean, Collect, Count, HashSplit, OpenShare, PositiveInt, Share, Split, Tokenize
from schemas.schedule import Retrain, Schedules
from schemas.tune import Tune


class Model(Section):
    """The pretrained model to start from."""

    base: ModelLocation
    """Folder with safetensors, `package://<package>/<folder>`, `models:/<name>/<version>`, or a Hugging Face name."""
    revision: str | None = None
    """Commit of a hub model; pin it, so that the same recipe means the same model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for code you have read."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout while training; default: the model's own. 0 saves 40 % of the forward pass on a CPU."""


class FullFineTuning(Section, title="Full"):
    """Every parameter learns."""

    kind: Literal["full"] = "full"


class LowRank(Section):
    """What the methods with low-rank adapters have in common: merged for serving, and the head learns as well."""

    kind: str
    r: Annotated[PositiveInt, Field(title="Rank (r)")] = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Scale: the adapter's output is multiplied by alpha / r, under rsLoRA by alpha / sqrt(r)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear layers that get adapters; default: all of them but the head."""


class Lora(LowRank, title="LoRA"):
    """Low-rank adapters beside the frozen weights (Hu et al. 2021)."""

    kind: Literal["lora"] = "lora"


class RankStabilizedLora(LowRank, title="rsLoRA"):
    """LoRA that learns as much at a high rank as at a low one (Kalajdzievski 2023)."""

    kind: Literal["rslora"] = "rslora"


class Dora(LowRank, title="DoRA"):
    """LoRA for the direction of each row of a weight, and a number of its own for its length (Liu et al. 2024)."""

    kind: Literal["dora"] = "dora"


class Qlora(LowRank, title="QLoRA"):
    """LoRA beside weights of 4 bits (Dettmers et al. 2023). Needs a CUDA GPU and the extra `bitsandbytes`."""

    kind: Literal["qlora"] = "qlora"


class Ia3(Section, title="IA3"):
    """Scales of keys, values and feed-forward activations, and the head (Liu et al. 2022); merged for serving."""

    kind: Literal["ia3"] = "ia3"


class BitFit(Section, title="BitFit"):
    """The biases and the head learn (Ben Zaken et al. 2021)."""

    kind: Literal["bitfit"] = "bitfit"


class Freeze(Section):
    """The top layers and the head learn; what lies below is left as it is, and passes no gradients."""

    kind: Literal["freeze"] = "freeze"
    layers: PositiveInt = 2
    """How many of the top layers learn; of encoder and decoder each, where a model has both."""


Adapters = LowRank | Ia3
"""Methods that leave every weight as it is and learn something beside it."""
Method = Annotated[
    FullFineTuning | Lora | RankStabilizedLora | Dora | Qlora | Ia3 | Freeze | BitFit,
    Field(discriminator="kind"),
    PlainUnion("kind"),
]

LEARNING_RATES = {
    "lora": 1.5e-3, "rslora": 5e-4, "dora": 1.5e-3, "qlora": 2e-4, "ia3": 1.5e-2, "bitfit": 3e-3, "freeze": 3e-4,
}  # fmt: skip
"""Method → peak learning rate where neither recipe nor task names one; `benchmarks/methods.py` measures around them."""


Rate = Annotated[float, Field(gt=0, le=1)]
LEARNING_RATE = 5e-5
"""Of methods that are not listed."""


class Train(Section):
    """How the model learns."""

    method: Method = FullFineTuning()
    """Which parameters learn."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training rows; default: 2, and of few rows as many as make 100 steps."""
    max_steps: PositiveInt | None = None
    """Optimiser steps in all, instead of epochs."""
    optimizer: Literal["adamw", "adafactor", "muon", "adamw-8bit"] = "adamw"
    """Muon (hidden matrices, AdamW the rest) wants ten times the learning rate; adafactor, adamw-8bit save memory."""
    learning_rate: Annotated[float | Literal["auto"], OrWord("auto", Rate)] = LEARNING_RATE
    """Peak, reached at the end of the warm-up; default: 5e-5, or what fits method and task; auto: by a range test."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer, as a share of that of the layer above; the head has the full one. 1: all the same."""
    schedule: Literal["linear", "cosine", "polynomial", "warmup-stable-decay", "constant"] = "linear"
    """Course of the learning rate after the warm-up; all but constant end at zero."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps over which the learning rate rises from zero; default: 0.06."""
    warmup_steps: Count | None = None
    """Optimiser steps over which the learning rate rises from zero, instead of a share of all."""
    decay_ratio: OpenShare = 0.2
    """Share of the steps over which warmup-stable-decay falls to zero."""
    decay_power: Annotated[float, Field(gt=0, le=10)] = 2.0
    """Of polynomial: the learning rate falls as the share of steps still to come, to this power; 1 is linear."""
    global_batch_size: PositiveInt = 64
    """Examples per optimiser step, over all devices."""
    micro_batch_tokens: Annotated[int, Field(ge=64)] | None = None
    """Most tokens, padding counted, in one forward pass; default: chosen for the machine. Changes memory alone."""
    packing: bool | None = None
    """Rows of models that write follow each other without padding, each attending to itself; default: where it pays."""
    activation_checkpointing: bool | None = None
    """Activations are made anew for the backward pass: less memory, a third more time; default: where memory asks."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of a weight, times the learning rate, by which each step shrinks it; biases and norms have none."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; empty: never."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Rows of an epoch: each once, or as many with every class equally often; rows of large classes then take turns."""
    class_weights: Literal["auto", "none", "balanced", "sqrt"] = "auto"
    """Loss weight per class: inverse frequency, its square root, none; auto: sqrt from an imbalance of 10 to 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread evenly over all classes, so that the model stays less sure; 0.1 is usual."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Focal loss: what the model is sure of counts less, by (1 - probability)^gamma; 2 is usual, 0 is cross-entropy."""
    neftune_alpha: Annotated[float, Field(gt=0, le=100, title="NEFTune alpha")] | None = None
    """Noise on the embeddings while learning (Jain et al. 2023), for models that write; 5 is usual, empty: none."""
    preference_beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Of preferences: how closely the model stays to what it was; smaller lets it go further."""
    eval_steps: Annotated[PositiveInt | None, Field(title="Evaluate every (steps)")] = None
    """Steps between two evaluations on validation; default: half an epoch."""
    early_stopping_patience: PositiveInt | None = 4
    """Evaluations without a better metric before training stops; empty: never."""
    save_steps: Annotated[PositiveInt | None, Field(title="Checkpoint every (steps)")] = None
    """Steps between two checkpoints; default: by time alone."""
    save_minutes: Annotated[float, Field(gt=0, title="Checkpoint every (minutes)")] = 5
    """Minutes between two checkpoints: the most work a crash can cost."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; weights stay float32. Auto: bf16 where the processor has it."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention implementation."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the new head, the order of the rows and dropout."""

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError(
                f"warmup_ratio ({self.warmup_ratio}) and warmup_steps ({self.warmup_steps}) exclude each other"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_ends_before_the_decay(self) -> Self:
        shares = (self.warmup_ratio or 0) + self.decay_ratio
        if self.schedule == "warmup-stable-decay" and shares > 1:
            raise ValueError(f"warmup_ratio and decay_ratio are {shares:g} of the steps together: at most 1")
        return self

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.sampling == "balanced" and self.class_weights not in {"auto", "none"}:
            raise ValueError(
                f"sampling 'balanced' and class_weights {self.class_weights!r} make up for imbalance twice"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_fits_the_method(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "learning_rate" in data:
            return data
        method = data.get("method")
        kind = method.get("kind") if isinstance(method, Mapping) else getattr(method, "kind", method)
        rate = LEARNING_RATES.get(kind) if isinstance(kind, str) else None
        return data if rate is None else {**data, "learning_rate": rate}

    @model_validator(mode="after")
    def _layer_decay_has_pretrained_weights_to_spare(self) -> Self:
        if self.layer_decay < 1 and isinstance(self.method, Adapters):
            raise ValueError(
                f"layer_decay spares what lower layers know, and method {self.method.kind!r} changes none of it: "
                "leave layer_decay at 1, or use full, freeze or bitfit"
            )
        return self


NO_CLASSES, NO_PAIRS, NO_TEXTS = "has no classes", "has no pairs of answers", "writes no texts"
HEEDED_BY_SOME: dict[str, tuple[tuple[object, ...], str]] = {
    "train.sampling": (("shuffled",), NO_CLASSES),
    "train.class_weights": (("auto", "none"), NO_CLASSES),
    "train.label_smoothing": ((0,), NO_CLASSES),
    "train.focal_gamma": ((0,), NO_CLASSES),
    "train.packing": ((None, False), NO_TEXTS),
    "train.preference_beta": ((0.1,), NO_PAIRS),
    "evaluate.shots": ((0,), NO_TEXTS),
}
"""Fields that not every task family heeds → values that ask for nothing, and what families lack that do not heed it."""


def usual_learning_rate(task: TaskSection, train: Train) -> float:
    """What fits method and task, whatever the recipe says."""
    kind = train.method.kind
    return task.learning_rates.get(kind, LEARNING_RATES.get(kind, LEARNING_RATE))


class Slices(Section):
    """Parts of the test rows that are measured on their own: by label, length, source, time, language and columns."""

    columns: tuple[str, ...] = ()
    """Columns named by `collect.keep` whose values part the rows."""
    languages: bool = False
    """Also by language. Needs the extra `language`."""
    weak: Annotated[bool, Field(title="Search weak slices")] = True
    """Search validation for parts on which the model is weak, and measure on the test what was found."""
    min_rows: Annotated[int, Field(ge=5)] = 30
    """Fewest test rows of a slice; a smaller one is not measured."""


class Evaluate(Section):
    """How the model is measured."""

    metric: str | None = None
    """The metric that picks the best checkpoint and that the gate compares; default: the task family's first."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of every interval and test."""
    bootstrap_resamples: Annotated[int, Field(ge=200, le=1_000_000)] = 5_000
    """Resamples of the test rows behind every interval."""
    calibrate: bool = True
    """Temperature scaling: probabilities are made to mean what they say, by one number fitted on validation."""
    abstain_precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of right answers wanted where the model answers; it abstains below the threshold found on validation."""
    shots: Annotated[int, Field(ge=0, le=32)] = 0
    """Training rows that the untaught base model is shown before each test row, where models write; 0: no."""
    slices: Slices = Slices()
    """Parts of the test rows that are measured on their own."""

    @model_validator(mode="after")
    def _abstains_by_calibrated_probabilities(self) -> Self:
        if self.abstain_precision is not None and not self.calibrate:
            raise ValueError("abstain_precision needs calibrate: true")
        return self


class Threshold(Section):
    """A test metric and its bound."""

    metric: str
    """Name of the metric; `f1/<label>` and the like for one label."""
    at_least: float | None = None
    """Least value that passes."""
    at_most: float | None = None
    """Largest value that passes: for ece, brier and log_loss, which are better when lower."""
    slice: str | None = None
    """Only on the test rows of this slice, named as in the report: `label=negative`; default: on all."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"the bound of {self.metric} must be at_least or at_most")
        return self


class Gate(Section):
    """What a model must show before it may serve."""

    thresholds: tuple[Threshold, ...] = ()
    """Bounds on test metrics."""
    beat_baseline: bool = True
    """Better than the best trivial baseline: the paired interval of the gain lies above zero."""
    beat_champion: Literal["better", "not-worse", "ignore"] = "not-worse"
    """Against the serving model on rows neither was trained on: gain above zero, or loss within the margin."""
    champion_margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Loss of the metric that still counts as not worse."""
    slice_floor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least share of right answers on any slice; one that is surely below fails, however many slices there are."""
    slice_margin: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Loss of right answers against the champion on any slice that still counts as not worse."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds that 95 of 100 single requests may take on the evaluating machine."""
    min_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Rows a second in batches of 32 on the evaluating machine."""
    max_size_mb: Annotated[float, Field(gt=0)] | None = None
    """Megabytes of the model's files."""
    max_quarantined: Share | None = None
    """Share of the collected rows that cleaning and the split may have set aside."""
    max_truncated: Share | None = None
    """Share of the test rows that may have been cut."""
    max_label_shift: Share | None = None
    """Difference of a label's share between test and training rows."""


class Environment(Section):
    """A stage of roll-out behind the first: a registered model of its own, to which passing versions are copied."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    """Such as staging or prod; its registered model is `<model>-<name>`."""
    gate: Gate = Gate()
    """What a version must show, against the champion of this environment, to serve in it."""


class Registry(Section):
    """Where the model goes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None
    """Registered model in MLflow; default: the recipe's name."""
    promote: Literal["auto", "manual"] = "manual"
    """Auto: a model that passes the gate becomes champion at once; manual: it waits as challenger."""
    environments: tuple[Environment, ...] = ()
    """Where a version goes from here, in order; `hone promote NAME --to staging` takes it there."""
    onnx: Annotated[bool, Field(title="ONNX file")] = False
    """Lay an ONNX file of the model beside it, checked against it, for runtimes without PyTorch. Needs extra `onnx`."""
    intended_use: str = ""
    """One sentence for the model card."""

    @model_validator(mode="after")
    def _environments_distinct(self) -> Self:
        repeated = [name for name, times in Counter(e.name for e in self.environments).items() if times > 1]
        if repeated:
            raise ValueError(f"environments names {', '.join(repeated)} more than once")
        return self


class Recipe(Section):
    """One fine-tuning job."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """Lower-case letters, digits and dashes; names the deployments, the MLflow experiment and the model."""
    description: str = ""
    """One line for people."""
    task: Annotated[TaskSection, FamilyUnion(), PlainUnion("family")]
    """What the model learns to do."""
    collect: Collect
    clean: Clean = Clean()
    split: Split = HashSplit()
    """Which rows train, which choose, which test."""
    tokenize: Tokenize = Tokenize()
    model: Model
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    registry: Registry = Registry()
    tune: Tune = Tune()
    retrain: Retrain = Retrain()
    schedule: Schedules = Schedules()

    @property
    def metric(self) -> str:
        """The metric that decides, resolved."""
        return self.evaluate.metric or self.task.metrics[0]

    @property
    def learns_by(self) -> str:
        """The metric that picks the best checkpoint."""
        return self.task.learns_by or self.metric

    @property
    def model_name(self) -> str:
        """Name of the registered model, resolved."""
        return self.registry.name or self.name

    @model_validator(mode="after")
    def _metrics_known(self) -> Self:
        bounded = (*self.task.metrics, *self.task.measures)
        wanted = {"evaluate.metric": (self.metric, self.task.metrics)}
        gates = {"gate": self.gate}
        gates |= {f"registry.environments.{e.name}.gate": e.gate for e in self.registry.environments}
        for key, gate in gates.items():
            for place, threshold in enumerate(gate.thresholds):
                wanted[f"{key}.thresholds.{place}.metric"] = threshold.metric.partition("/")[0], bounded
        unknown = [
            f"{key} is {metric!r}: {self.task.family} has {', '.join(known)}"
            for key, (metric, known) in wanted.items()
            if metric not in known
        ]
        if unknown:
            raise ValueError("; ".join(unknown))
        return self

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_fits_the_task(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("task"), Mapping):
            return data
        family, train = data["task"].get("family"), data.get("train") or {}
        if family not in family_names() or not isinstance(train, Mapping) or "learning_rate" in train:
            return data
        method = train.get("method", "full")
        kind = method.get("kind") if isinstance(method, Mapping) else method
        rate = load_family(family).section.learning_rates.get(kind) if isinstance(kind, str) else None
        return data if rate is None else {**data, "train": {**train, "learning_rate": rate}}

    @model_validator(mode="after")
    def _what_is_asked_is_heeded(self) -> Self:
        for field, (idle, lacks) in HEEDED_BY_SOME.items():
            section, name = field.split(".")
            value = getattr(getattr(self, section), name)
            if name not in self.task.heeds and value not in idle:
                raise ValueError(f"{field} is {value!r}: {self.task.family} {lacks} that it could be for")
        return self

    @model_validator(mode="after")
    def _sections_fit_the_task(self) -> Self:
        misfits = self.task.misfits(self)
        if misfits:
            raise ValueError("; ".join(misfits))
        return self

    @model_validator(mode="after")
    def _slice_columns_kept(self) -> Self:
        missing = [column for column in self.evaluate.slices.columns if column not in self.collect.keep]
        if missing:
            raise ValueError(f"evaluate.slices.columns names {', '.join(missing)}, which collect.keep does not")
        return self

    @model_validator(mode="after")
    def _split_has_what_it_goes_by(self) -> Self:
        source = self.collect.source
        has_test = bool(self.collect.split_column or getattr(source, "test_path", None))
        if source.kind == "hub":
            has_test = has_test or len(source.splits) > 1
        if self.split.kind == "official" and not has_test:
            raise ValueError(
                "split.kind 'official' needs collect.split_column, collect.source.test_path or several "
                "collect.source.splits"
            )
        if self.split.kind != "official" and has_test:
            raise ValueError("the source brings its own test rows: set split.kind to 'official' or name no test source")
        if self.split.kind == "time" and self.collect.time_column is None:
            raise ValueError("split.kind 'time' needs collect.time_column")
        return self
