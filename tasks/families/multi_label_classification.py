"""Classification with any number of labels per text: topics, tags, attributes; none is an answer, too.

Every label is a question of its own, learnt by binary cross-entropy; from which score on it is predicted is fitted on
validation. Encoders and decoders that transformers offers for sequence classification. Does not cover labels that form
a tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.base import Label, TaskSection
from schemas.errors import DataError, Problem
from schemas.records import Interval
from tasks.families import Encoded, Loss, Meta
from tasks.families.base import Base
from tasks.labels import Labelled

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.bootstrap import Floats
    from tasks.predict import Windows
    from tasks.rules.repair import Step
    from tasks.tokenizer import BaseTokenizer

AUTO_WEIGHTS_FROM = 10.0
"""Rows without the rarest label over rows with it from which `class_weights: auto` weighs the loss."""
TOLERANCE = 1e-4
"""Largest difference of a served score: see that of classification."""


class MultiLabelClassificationTask(TaskSection):
    """Any number of labels for each text."""

    metrics: ClassVar[tuple[str, ...]] = (
        "macro_f1", "micro_f1", "weighted_f1", "subset_accuracy", "precision", "recall",
    )  # fmt: skip
    measures: ClassVar[tuple[str, ...]] = ("auroc", "auprc", "log_loss")
    heeds: ClassVar[tuple[str, ...]] = ("class_weights",)
    family: Literal["multi-label-classification"] = "multi-label-classification"
    text_column: str = "text"
    """Column of the source that holds the text."""
    labels_column: str = "labels"
    """Column of the source that holds the labels: a list, or text with a separator."""
    separator: Annotated[str, Field(min_length=1, max_length=5)] | None = None
    """What stands between two labels where the column is text; default: it holds lists, in CSV as JSON."""
    labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    """The labels; a row with another one is quarantined. Default: the labels found in the rows."""

    def columns(self) -> dict[str, str]:
        """Role → column of the source."""
        return {"text": self.text_column, "labels": self.labels_column}


class MultiLabelClassification(Base):
    """See `tasks.families.Family`."""

    section = MultiLabelClassificationTask
    serving = Path(__file__).with_name("serve_multi_label_classification.py")
    target_columns = ("labels",)
    labelled = Labelled("labels", several=True)
    row_score = "mean F1 of a row's labels"

    def target_repairs(self, task: MultiLabelClassificationTask, usual: Sequence[Step]) -> Sequence[Step]:
        """One JSON list for each set of labels."""
        from tasks.rules import label_sets

        return [("label_set", partial(label_sets.canonical, separator=task.separator, usual=usual))]

    def rejects(self, task: MultiLabelClassificationTask) -> list[tuple[str, pl.Expr]]:
        """Rows where nothing is said of labels, what is said is no list, or one is not the recipe's."""
        import polars as pl

        from tasks.rules import label_sets

        column = pl.col("labels")
        missing = column.is_null() | (column.str.strip_chars() == "")
        found = [
            ("missing_labels", missing),
            ("not_a_list", ~column.map_batches(label_sets.is_list, return_dtype=pl.Boolean)),
        ]
        if task.labels is None:
            return found
        others = column.map_batches(partial(label_sets.names_others, labels=task.labels), return_dtype=pl.Boolean)
        return [*found, ("unknown_label", others)]

    def describe(self, task: MultiLabelClassificationTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """The labels, in the recipe's order or sorted."""
        from tasks.rules import label_sets

        each = rows.select(label_sets.lists("labels").alias("label")).explode("label").drop_nulls()
        found = each.unique().collect(engine="streaming")["label"].sort().to_list()
        if not found:
            rule, remedy = "no clean row has a label", "name the column that holds the labels"
            raise DataError(Problem("task.labels_column", task.labels_column, rule, remedy))
        return {"labels": list(task.labels or found)}

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Tokens of the text, and 1 or 0 for each label."""
        from tasks import label_sets
        from tasks.encoding import encode_texts
        from tasks.rules.label_sets import lists

        marked, _ = label_sets.marks(rows.select(lists("labels")).to_series(), meta["labels"])
        return encode_texts(rows["text"].to_list(), marked.astype(int).tolist(), meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model under a head with one output for each label."""
        from tasks import sequence_model

        return sequence_model.load(base, meta, meta["labels"], "multi_label_classification", **options)

    def loss_weights(self, labels: np.ndarray[Any, Any], meta: Meta, how: str) -> tuple[tuple[float, ...] | None, str]:
        """Weight of the rows that have a label, of each label: those without it by those with it, or its root."""
        import numpy as np

        del meta
        having = np.maximum(1, labels.sum(0))
        odds = np.maximum(1.0, (len(labels) - having) / having)
        if how == "auto":
            how = "sqrt" if odds.max() >= AUTO_WEIGHTS_FROM else "none"
        reason = f"{how}: {odds.max():.1f} rows without the rarest label for each that has it"
        if how == "none":
            return None, reason
        weights = odds ** (0.5 if how == "sqrt" else 1.0)
        return tuple(float(weight) for weight in weights), reason

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Binary cross-entropy, summed over rows and labels."""
        from tasks import sequence_model

        return _cross_entropy(sequence_model.logits(model, batch), batch["labels"], loss)

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Rows times labels, or the sum of their weights."""
        import torch

        if loss.weights is None:
            return torch.tensor(float(labels.numel()))
        return torch.where(labels > 0, loss.weights, 1.0).sum()

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """Probability of each label, `[batch, labels]`, and the summed loss."""
        from tasks import sequence_model

        logits = sequence_model.logits(model, batch)
        scores: np.ndarray[Any, Any] = logits.sigmoid().cpu().numpy()
        return scores, _cross_entropy(logits, batch["labels"], loss)

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """True labels, those with a score of at least a half, and all scores: means over windows."""
        import numpy as np

        from tasks import label_sets

        labels, scores = list(meta["labels"]), windows.means()
        truth = np.stack([np.asarray(marked) for marked in windows.of_texts("labels")])
        return {
            "truth": label_sets.sets(truth > 0, labels),
            **label_sets.decided(scores, np.full(len(labels), label_sets.HALF), labels),
            "scores": scores.tolist(),
        }

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """See `tasks.label_sets.numbers`."""
        from tasks import label_sets

        return label_sets.numbers(predictions, meta["labels"])

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """See `tasks.label_sets.metrics_of`."""
        from tasks import label_sets

        return label_sets.metrics_of(sums, meta["labels"])

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """Point values, those of one label as `f1/<label>`."""
        from tasks import label_sets

        return label_sets.score(predictions, meta["labels"])

    def decided(self, predictions: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """By the thresholds that these rows would have: early on no score reaches a half, and all would look alike."""
        from tasks import label_sets

        return label_sets.calibrated(predictions, label_sets.fit(predictions, meta["labels"]))

    def intervals(
        self, predictions: pl.DataFrame, meta: Meta, *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Interval]:
        """Percentile intervals over resampled rows."""
        from tasks import label_sets

        return label_sets.intervals(predictions, meta["labels"], resamples=resamples, confidence=confidence, seed=seed)

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Labels and scores as they were answered; no answer names no label, and each is as likely as not.

        Without scores where the model knows other labels than `meta`.
        """
        import polars as pl

        from tasks.rules.label_sets import lists

        labels = list(meta["labels"])
        nothing = dict.fromkeys(labels, 0.5)
        named = [answer["scores"] or nothing for answer in served]
        told = [answer["labels"] or [] for answer in served]
        found = rows.select("id", lists("labels").alias("truth")).with_columns(
            prediction=pl.Series(told, dtype=pl.List(pl.String))
        )
        if any(scores.keys() != nothing.keys() for scores in named):
            return found
        return found.with_columns(scores=pl.Series([[scores[label] for label in labels] for scores in named]))

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """F1 of each row's labels."""
        from tasks import label_sets

        del meta
        return label_sets.row_scores(predictions)

    def calibrate(
        self, validation: pl.DataFrame, meta: Meta, *, abstain_precision: float | None, confidence: float
    ) -> dict[str, Any]:
        """The score of each label from which it is predicted."""
        from tasks import label_sets

        del abstain_precision, confidence
        return label_sets.fit(validation, meta["labels"])

    def calibrated(self, predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
        """The predictions by the fitted thresholds; the scores stay."""
        from tasks import label_sets

        return label_sets.calibrated(predictions, calibration)

    def calibration_told(self, calibration: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
        """The thresholds."""
        from tasks import label_sets

        del abstention
        return label_sets.told(calibration)

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Other labels, or other scores.

        Other labels count where no recorded score is so near to its threshold that rounding may decide.
        """
        return _difference(was, now, meta["labels"])

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """The most frequent set of labels, and a logistic regression for each label on TF-IDF."""
        from tasks import label_set_baselines

        return label_set_baselines.multi_label(split, meta["labels"], metric, out)

    def plots(self, predictions: pl.DataFrame, uncalibrated: pl.DataFrame, meta: Meta, out: Path) -> list[Path]:
        """Precision against recall, where there are scores."""
        from tasks import label_sets, plots

        del uncalibrated
        rankings = [(label, ranking) for label, ranking, _ in label_sets.rankings(predictions, meta["labels"])]
        return [plots.precision_recall_of(rankings, out / "precision_recall.png")] if rankings else []


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], labels: Sequence[str]) -> str | None:
    """What differs between the recorded and the served prediction of a row, beyond rounding."""
    told = ", ".join(was["prediction"]) or "no label"
    if now["scores"] is None:
        return f"{told} was recorded, nothing is served"
    named = dict(zip(labels, was["scores"], strict=True))
    apart = max(abs(named.get(label, 2.0) - score) for label, score in now["scores"].items())
    if set(now["labels"]) != set(was["prediction"]) and was["margin"] > 2 * TOLERANCE:
        return f"{told} was recorded, {', '.join(now['labels']) or 'no label'} is served"
    if not apart <= TOLERANCE:  # NaN is a difference, too
        return f"a score differs by {apart:.2g}"
    return None


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=loss.weights, reduction="sum")
