"""What a task family is: the one place that knows what a row means, what is learnt, and how it is measured.

Stages call a family through `Family`; nothing else in hone knows the task. Another package adds a family by registering
a class with this shape under the entry point `hone.families`. Its recipe section derives from
`schemas.base.TaskSection`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from schemas.base import TaskSection, load_family
from schemas.records import Interval, Paired

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import torch

    from tasks.labels import Labelled
    from tasks.predict import Windows
    from tasks.rules.repair import Step, TextRules
    from tasks.rules.writing import Answer
    from tasks.tokenizer import Base, BaseTokenizer

    Ints = np.ndarray[Any, np.dtype[np.integer[Any]]]

DRAWING = (
    "tasks.baselines", "tasks.calibration", "tasks.classification_report", "tasks.entity_baselines",
    "tasks.label_set_baselines", "tasks.plots", "tasks.tfidf", "tasks.value_baselines", "tasks.value_plots",
)  # fmt: skip
"""Modules that families use for reports alone: a change in them retrains nothing."""
MEASURING = (
    *DRAWING, "tasks.answer_baselines", "tasks.answer_metrics", "tasks.classification", "tasks.entity_metrics",
    "tasks.ranks", "tasks.row_metrics", "tasks.values",
)  # fmt: skip
"""Modules that families use once there is a model: a change in them prepares no data again."""

Meta = Mapping[str, Any]
"""What the clean rows say of the task, as JSON values; `labels` for classification. Travels with tokens and model."""


IGNORED = -100
"""Label of a token that teaches nothing; torch's cross-entropy leaves it out."""


REFERENCE = "reference"
"""Column of a batch with what the untaught model finds, two numbers for each row, where a family `refers` to it."""


@dataclass(frozen=True)
class Encoded:
    """Some rows as a model reads them. An overlong row is cut, or becomes several windows, one after the other.

    Attributes:
        input_ids: Of each window, special tokens included, none longer than `max_seq_length`.
        pieces: Windows of each row, at least 1.
        uncut: Tokens of each row before the cut.
        columns: What else the model is given or the predictions need, one value for each window: `labels` always. A
            number or list of fixed length is of the window, a list of another length holds one number for each token,
            and text is kept for `Family.predictions`, not for the model.
    """

    input_ids: Sequence[Sequence[int]] | pa.ListArray
    pieces: Sequence[int] | Ints
    uncut: Sequence[int] | Ints
    columns: Mapping[str, pa.Array]


@dataclass(frozen=True)
class Loss:
    """How the loss of an example is made.

    Attributes:
        weights: Of each label; none where all weigh the same.
        label_smoothing: Share of each label that is spread evenly over all of them.
        focal_gamma: Power of the model's doubt that an example's loss is multiplied by; 0 for plain cross-entropy.
        preference_beta: How much a change of a log-likelihood is worth.
    """

    weights: torch.Tensor | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    preference_beta: float = 0.1


class Family(Protocol):
    """A task family. Heavy libraries are imported inside the methods that need them."""

    section: type[TaskSection]
    """The recipe section that chooses this family."""
    serving: Path
    """MLflow models-from-code file that predicts with the saved model and imports nothing of ours."""
    serving_libraries: tuple[str, ...]
    """Distributions the serving file needs; pinned in the model's requirements."""
    text_columns: tuple[str, ...]
    """Columns that cleaning repairs and bounds; the first one is what splits and duplicates go by."""
    asked_columns: tuple[str, ...]
    """Columns that a registered model is asked with."""
    checked_rows: int
    """Test rows that a fresh process must predict as they were recorded before a model is registered."""
    target_columns: tuple[str, ...]
    """Columns that are learnt, the text itself where it is all there is; rows equal in text and unequal here
    contradict each other."""
    labelled: Labelled | None
    """Where clean rows have labels to be counted; none where the task has no labels."""
    writes: bool
    """Whether predictions are texts written token by token; then the base model can do the task as well."""
    packs: bool
    """Whether its loss takes packed rows, see `tasks.packing`, where the model does."""
    refers: bool
    """Whether its loss goes by what the untaught model finds of each row, `REFERENCE`."""
    unserved: tuple[str, ...]
    """Columns of predictions that a registered model does not tell: read off its weights where it is compared."""
    row_score: str
    """What the mean of `row_scores` is, as people read it."""
    part: str
    """What `<metric>/<part>` is measured on, as people read it."""

    def target_repairs(self, task: TaskSection, usual: Sequence[Step]) -> Sequence[Step]:
        """(name, rule) that puts every target column right, in order, before rows are judged.

        Args:
            task: The recipe's.
            usual: Rules for one label: white space around it, and other spellings.
        """
        ...

    def follow(self, before: pl.DataFrame, after: pl.DataFrame, rules: TextRules) -> pl.DataFrame:
        """The repaired rows with targets that point into their texts moved to where these stand now.

        Args:
            before: Rows as collected.
            after: The same once the rules for texts were followed.
            rules: Those of `tasks.rules.repair`.
        """
        ...

    def rejects(self, task: TaskSection) -> list[tuple[str, pl.Expr]]:
        """(reason, expression true for the rows to quarantine), in order; the first match names the reason."""
        ...

    def describe(self, task: TaskSection, rows: pl.LazyFrame) -> dict[str, Any]:
        """The meta of the clean rows, which are a scan of files: reduce it before `collect(engine="streaming")`.

        Raises:
            DataError: The rows cannot teach this task (fewer than two labels, say).
        """
        ...

    def of_training(self, rows: pl.LazyFrame, meta: Meta) -> dict[str, Any]:
        """What the training rows alone say of the task, such as the mean of a value; joins the meta."""
        ...

    def of_base(self, task: TaskSection, base: Base) -> dict[str, Any]:
        """What the task becomes with this base model, as JSON values; joins the meta once there are tokens.

        Args:
            task: The recipe's.
            base: Read no more of it than is needed: it is asked in every run.

        Raises:
            RecipeError: The task cannot be done with this base model.
        """
        ...

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """The rows as the model reads them; `tasks.encoding` does it for rows of one text.

        Args:
            rows: Clean rows.
            meta: The task's, with `max_seq_length`, `overlong` (`window` or `truncate`) and `stride`.
            tokenizer: The base model's.
        """
        ...

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """A clean row as the model reads it, what is learnt between « and »; none where that shows nothing new."""
        ...

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The pretrained model with this task's head, weights in float32; `options` go to `from_pretrained`."""
        ...

    def head_modules(self, model: torch.nn.Module) -> list[str]:
        """Names of the newly made modules, which learn under every method."""
        ...

    def finish(self, model: Any, tokenizer: Any, meta: Meta) -> None:
        """Change what of a trained model and its tokenizer is not weights, before both are saved."""
        ...

    def loss_weights(self, labels: np.ndarray[Any, Any], meta: Meta, how: str) -> tuple[tuple[float, ...] | None, str]:
        """Loss weight per label by the recipe's rule `how`, and why; for the labels see `TokenTable.labels_of`."""
        ...

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Sum of the (weighted) losses of a batch, in float32; divide by `loss_count` over the whole optimiser step."""
        ...

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """What `loss_sum` is divided by: examples, or the sum of their weights; see `TokenTable.labels_of`."""
        ...

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any] | Sequence[np.ndarray[Any, Any]], torch.Tensor]:
        """What is predicted for each window of a batch, float32 on the CPU, and `loss_sum` of the batch.

        `[batch, …]`, or for each window `[tokens, …]` where something is predicted for every token.
        """
        ...

    def reference(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`REFERENCE` of rows, `[rows, 2]`, out of the untaught model's `outputs`; where the family `refers` to it."""
        ...

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """Columns `truth`, `prediction` and what belongs to them, one value for each text."""
        ...

    def written(
        self,
        model: torch.nn.Module,
        folder: Path,
        columns: Mapping[str, Sequence[Any]],
        meta: Meta,
        kept: MutableMapping[int, Answer] | None = None,
    ) -> Mapping[str, list[Any]]:
        """Column → a value for each text, where the family `writes`: what the model writes, token by token.

        Args:
            model: In evaluation mode, on its device.
            folder: Of its files, the tokenizer among them.
            columns: What the family encoded of the rows.
            meta: The task's; with `shown`, turns that come before every conversation.
            kept: Answers that are known already, by place; the others are added as they are written.
        """
        ...

    def examples(self, rows: pl.DataFrame, meta: Meta, count: int) -> list[dict[str, Any]]:
        """Turns of a conversation in which the task is done for some clean rows, where the family `writes`."""
        ...

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """Every metric of the family on these predictions."""
        ...

    def decided(self, predictions: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Validation predictions with the answers that they have once thresholds are fitted on these very rows."""
        ...

    def intervals(
        self, predictions: pl.DataFrame, meta: Meta, *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Interval]:
        """Every metric with its bootstrap interval."""
        ...

    def paired(
        self,
        new: pl.DataFrame,
        old: pl.DataFrame,
        meta: Meta,
        metric: str,
        *,
        resamples: int,
        confidence: float,
        seed: int,
    ) -> Paired:
        """`new` against `old` on the same rows (joined by id), by one metric and the test that fits it."""
        ...

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Predictions out of what a registered model answered, for the rows (clean, in the same order) it was asked.

        A registered model may know other labels than `meta`: what it said is kept as it is.
        """
        ...

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """How good each prediction is, 0 to 1, Float64: right or wrong for classification. Slices are means of it."""
        ...

    def calibrate(
        self, validation: pl.DataFrame, meta: Meta, *, abstain_precision: float | None, confidence: float
    ) -> dict[str, Any]:
        """What is fitted on the predictions of the validation rows and travels with the model, as JSON values.

        Args:
            validation: Predictions as the model makes them.
            meta: The task's.
            abstain_precision: Share of right answers wanted where the model does not abstain; none: it never does.
            confidence: That the wanted share is reached.

        Returns:
            Empty where the family has nothing to fit.
        """
        ...

    def calibrated(self, predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
        """The predictions as the calibrated model makes them; those given where `calibration` is empty."""
        ...

    def abstention(
        self, predictions: pl.DataFrame, calibration: Mapping[str, Any], *, confidence: float
    ) -> dict[str, Any]:
        """Of these rows: `coverage`, and `precision` (value, low, high); empty where it never does."""
        ...

    def calibration_told(self, calibration: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
        """Sentences on what was fitted, for the report and the model card; none where nothing was.

        Args:
            calibration: See `calibrate`.
            abstention: See `abstention`, of the test rows.
        """
        ...

    def report_sections(
        self, predictions: pl.DataFrame, baselines: Mapping[str, pl.DataFrame], meta: Meta
    ) -> list[str]:
        """Markdown that only this task's report has, after what `tasks.evaluation_report` says of every one.

        Args:
            predictions: Of the test rows.
            baselines: Baseline → its predictions of the same rows.
            meta: The task's.
        """
        ...

    def disagreements(
        self, served: Sequence[Mapping[str, Any]], recorded: pl.DataFrame, meta: Meta
    ) -> list[tuple[str, str]]:
        """(id, what differs) of every row that is served otherwise than it was recorded, beyond rounding.

        Args:
            served: What the registered model predicts, in the order of `recorded`.
            recorded: Calibrated predictions.
            meta: The task's.
        """
        ...

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """Fit the trivial baselines, choose their settings on validation, predict the test rows into `<name>.parquet`.

        Returns:
            Name → what was chosen.
        """
        ...

    def plots(self, predictions: pl.DataFrame, uncalibrated: pl.DataFrame, meta: Meta, out: Path) -> list[Path]:
        """Draw the family's pictures of these predictions, calibrated and as the model made them, below `out`."""
        ...


def family_of(task: TaskSection) -> Family:
    """The family a recipe's `task` section chose."""
    family: Family = load_family(task.family)
    return family
