"""Text classification with one label per text: sentiment, topics, routing.

Encoder models of any architecture that transformers offers for sequence classification. Does not cover several labels
per text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Label, TaskSection
from schemas.errors import DataError, Problem
from schemas.records import Interval, Paired
from tasks.families import Encoded, Loss, Meta
from tasks.families.base import Base
from tasks.labels import Labelled

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.predict import Windows
    from tasks.tokenizer import BaseTokenizer

AUTO_WEIGHTS_FROM = 10.0
"""Largest class over smallest from which `class_weights: auto` weighs the loss."""
NO_ANSWER = ""
"""Stands for the label where a model gives none."""
TOLERANCE = 1e-4
"""Largest difference of a served probability. Float32 sums in another order differ by 1e-6, a wrong token by 1e-3."""
OTHER_LABEL = "(another label)"
"""What a prediction counts as, between two models, that is none of the labels: a champion may know others."""


class TextClassificationTask(TaskSection):
    """One label for each text."""

    metrics: ClassVar[tuple[str, ...]] = (
        "macro_f1", "micro_f1", "accuracy", "precision", "recall", "mcc", "balanced_accuracy", "weighted_f1",
    )  # fmt: skip
    abstains: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("auroc", "auprc", "log_loss", "brier", "ece")
    heeds: ClassVar[tuple[str, ...]] = ("sampling", "class_weights", "label_smoothing", "focal_gamma")
    family: Literal["text-classification"] = "text-classification"
    text_column: str = "text"
    """Column of the source that holds the text."""
    label_column: str = "label"
    """Column of the source that holds the label."""
    labels: Annotated[tuple[Label, ...], Field(min_length=2)] | None = None
    """The labels; a row with another one is quarantined. Default: the labels found in the rows."""

    @model_validator(mode="after")
    def _labels_distinct(self) -> TextClassificationTask:
        repeated = [label for label, count in Counter(self.labels or ()).items() if count > 1]
        if repeated:
            raise ValueError(f"labels names {', '.join(repeated)} more than once")
        return self

    def columns(self) -> dict[str, str]:
        """Role → column of the source."""
        return {"text": self.text_column, "label": self.label_column}


class TextClassification(Base):
    """See `tasks.families.Family`."""

    section = TextClassificationTask
    serving = Path(__file__).with_name("serve_text_classification.py")
    target_columns = ("label",)
    labelled = Labelled("label")

    def rejects(self, task: TextClassificationTask) -> list[tuple[str, pl.Expr]]:
        """Rows without a label, and rows with one the recipe does not know."""
        import polars as pl

        label = pl.col("label")
        missing = ("missing_label", label.is_null() | (label.str.strip_chars() == ""))
        if task.labels is None:
            return [missing]
        return [missing, ("unknown_label", ~label.is_in(list(task.labels)))]

    def describe(self, task: TextClassificationTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """The labels, in the recipe's order or sorted."""
        found = rows.select("label").unique().collect(engine="streaming")["label"].sort().to_list()
        if len(found) < 2:
            raise DataError(
                Problem(
                    "task.label_column", task.label_column, f"the clean rows have {len(found)} label(s): {found}",
                    "name the column that holds at least two labels",
                )
            )  # fmt: skip
        return {"labels": list(task.labels or found)}

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Tokens of the text, index of the label."""
        from tasks.encoding import encode_texts

        index = {label: i for i, label in enumerate(meta["labels"])}
        labels = [index[label] for label in rows["label"].to_list()]
        return encode_texts(rows["text"].to_list(), labels, meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model under a classification head."""
        from tasks import sequence_model

        return sequence_model.load(base, meta, meta["labels"], "single_label_classification", **options)

    def loss_weights(self, labels: np.ndarray[Any, Any], meta: Meta, how: str) -> tuple[tuple[float, ...] | None, str]:
        """Inverse class frequency or its root, scaled so that the mean weight of a training row is 1."""
        import numpy as np

        counts = np.bincount(labels, minlength=len(meta["labels"]))
        if (counts == 0).any():
            empty = [label for label, count in zip(meta["labels"], counts, strict=True) if count == 0]
            raise DataError(
                Problem(
                    "task.labels",
                    empty,
                    "no training row has this label",
                    "remove the label or collect rows that have it",
                )
            )
        imbalance = counts.max() / counts.min()
        if how == "auto":
            how = "sqrt" if imbalance >= AUTO_WEIGHTS_FROM else "none"
        reason = f"{how}: largest class is {imbalance:.1f} times the smallest"
        if how == "none":
            return None, reason
        weights = (counts.sum() / counts) ** (0.5 if how == "sqrt" else 1.0)
        weights = weights / (weights * counts).sum() * counts.sum()
        return tuple(float(w) for w in weights), reason

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Cross-entropy or focal loss, summed."""
        from tasks import sequence_model

        return _loss_sum(sequence_model.logits(model, batch), batch["labels"], loss)

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Rows, or the sum of their weights."""
        import torch

        return torch.tensor(float(len(labels))) if loss.weights is None else loss.weights[labels].sum()

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """Class probabilities `[batch, labels]`, and the summed loss."""
        from tasks import sequence_model

        logits = sequence_model.logits(model, batch)
        probabilities: np.ndarray[Any, Any] = logits.softmax(-1).cpu().numpy()
        return probabilities, _loss_sum(logits, batch["labels"], loss)

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """True and most probable label, and all probabilities in the order of `meta["labels"]`: means over windows."""
        names, outputs = list(meta["labels"]), windows.means()
        return {
            "truth": [names[i] for i in windows.of_texts("labels")],
            "prediction": [names[i] for i in outputs.argmax(-1)],
            "probabilities": outputs.tolist(),
        }

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """Point values, the per-class ones as `f1/<label>`."""
        from tasks import classification

        return classification.score(predictions, meta["labels"])

    def intervals(
        self, predictions: pl.DataFrame, meta: Meta, *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Interval]:
        """Percentile intervals over resampled rows; a prediction that is none of the labels is a wrong answer."""
        from tasks import classification

        return classification.intervals(
            predictions,
            meta["labels"],
            resamples=resamples,
            confidence=confidence,
            seed=seed,
            others=OTHER_LABEL,
        )

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
        """Paired bootstrap over the rows both have, and McNemar's test where the metric is a share of right answers."""
        from tasks import classification

        return classification.paired_test(
            new,
            old,
            meta["labels"],
            metric,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
            others=OTHER_LABEL,
        )

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Label and probabilities as they were answered; no answer is a wrong one, of which nothing is probable.

        Without probabilities where the model knows other labels than `meta`.
        """
        import polars as pl

        labels = list(meta["labels"])
        nothing = dict.fromkeys(labels, 1 / len(labels))
        named = [answer["probabilities"] or nothing for answer in served]
        found = pl.DataFrame(
            {
                "id": rows["id"],
                "truth": rows["label"],
                "prediction": [answer["label"] or NO_ANSWER for answer in served],
            }
        )
        if any(probabilities.keys() != nothing.keys() for probabilities in named):
            return found
        return found.with_columns(probabilities=pl.Series([[row[label] for label in labels] for row in named]))

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """1 where the prediction is the truth, else 0."""
        import polars as pl

        del meta
        right = pl.col("truth") == pl.col("prediction")
        return predictions.select(right.cast(pl.Float64).alias("score")).to_series()

    def calibrate(
        self, validation: pl.DataFrame, meta: Meta, *, abstain_precision: float | None, confidence: float
    ) -> dict[str, Any]:
        """A temperature and, where asked for, the probability below which the model abstains."""
        from tasks import calibration

        return calibration.fit(validation, meta["labels"], abstain_precision=abstain_precision, confidence=confidence)

    def calibrated(self, predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
        """The predictions with calibrated probabilities; the predicted labels stay."""
        from tasks import calibration as fitted

        return fitted.calibrated(predictions, calibration)

    def abstention(
        self, predictions: pl.DataFrame, calibration: Mapping[str, Any], *, confidence: float
    ) -> dict[str, Any]:
        """Coverage and precision where the model does not abstain; see `tasks.calibration.abstention`."""
        from tasks import calibration as fitted

        return fitted.abstention(predictions, calibration, confidence=confidence)

    def calibration_told(self, calibration: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
        """The temperature, and when the model abstains."""
        from tasks import classification_report

        return classification_report.calibration_told(calibration, abstention)

    def report_sections(
        self, predictions: pl.DataFrame, baselines: Mapping[str, pl.DataFrame], meta: Meta
    ) -> list[str]:
        """What was taken for what."""
        from tasks import classification_report

        del baselines
        return classification_report.confusion_section(predictions, meta["labels"])

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Another label, or other probabilities.

        Another label counts where the recorded best two probabilities are further apart than the tolerance allows.
        """
        return _difference(was, now, meta["labels"])

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """The most frequent label, and logistic regression on TF-IDF."""
        from tasks import baselines

        return baselines.classification(split, meta["labels"], metric, out)

    def plots(self, predictions: pl.DataFrame, uncalibrated: pl.DataFrame, meta: Meta, out: Path) -> list[Path]:
        """The confusion matrix and, where there are probabilities, precision against recall and the calibration."""
        from tasks import plots

        drawn = [plots.confusion_matrix(predictions, meta["labels"], out / "confusion_matrix.png")]
        if "probabilities" in predictions.columns:
            drawn.append(plots.precision_recall(predictions, meta["labels"], out / "precision_recall.png"))
            drawn.append(plots.reliability(uncalibrated, predictions, out / "reliability.png"))
        return drawn


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], labels: Sequence[str]) -> str | None:
    """What differs between the recorded and the served prediction of a row, beyond rounding."""
    if now["probabilities"] is None:
        return f"{was['prediction']} was recorded, nothing is served"
    named = dict(zip(labels, was["probabilities"], strict=True))
    apart = max(abs(named.get(label, 2.0) - p) for label, p in now["probabilities"].items())
    best, second = sorted(was["probabilities"])[-1:-3:-1]
    if now["label"] != was["prediction"] and best - second > 2 * TOLERANCE:
        return f"{was['prediction']} was recorded, {now['label']} is served"
    if not apart <= TOLERANCE:  # NaN is a difference, too
        return f"a probability differs by {apart:.2g}"
    return None


def _loss_sum(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    if loss.focal_gamma:
        return _focal_loss_sum(logits, labels, loss)
    return cross_entropy(logits, labels, loss.weights, label_smoothing=loss.label_smoothing, reduction="sum")


def _focal_loss_sum(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Cross-entropy whose every term, of one class, is multiplied by the model's doubt of that class, to a power.

    References:
        Lin et al. 2017, Focal loss for dense object detection, which has one term for each example: unsmoothed labels.
    """
    import torch

    log_probabilities = logits.log_softmax(-1)
    # Where float32 knows no doubt, a power below 1 would have no finite gradient.
    doubt = (1 - log_probabilities.exp()).clamp(min=torch.finfo(logits.dtype).eps)
    classes = logits.shape[-1]
    wanted = torch.nn.functional.one_hot(labels, classes) * (1 - loss.label_smoothing) + loss.label_smoothing / classes
    if loss.weights is not None:
        wanted = wanted * loss.weights
    return -(wanted * doubt**loss.focal_gamma * log_probabilities).sum()
