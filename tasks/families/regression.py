"""Regression: a number for each text, such as a rating, a price, a degree of something.

Encoders and decoders that transformers offers for sequence classification. The loss is the squared error in standard
deviations of the training values: the head learns numbers around 0, and the mean and the scale that make them values
of the source's units are in the model's config. Does not cover several numbers per text, or values that must stay
within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from schemas.base import TaskSection
from schemas.errors import DataError, Problem
from schemas.records import Interval, Paired
from tasks.families import Encoded, Loss, Meta
from tasks.families.base import Base

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.predict import Windows
    from tasks.rules.repair import Step
    from tasks.tokenizer import BaseTokenizer

TOLERANCE = 1e-4
"""Largest difference of a served value, in standard deviations of the training values: see that of classification."""
ROUNDING = 1e-6
"""The same as a share of the value: recorded values have seven digits."""


class RegressionTask(TaskSection):
    """A number for each text."""

    metrics: ClassVar[tuple[str, ...]] = ("r2", "pearson", "spearman")
    measures: ClassVar[tuple[str, ...]] = ("rmse", "mae")
    family: Literal["regression"] = "regression"
    text_column: str = "text"
    """Column of the source that holds the text."""
    value_column: str = "value"
    """Column of the source that holds the number; a row where it is none is quarantined."""

    def columns(self) -> dict[str, str]:
        """Role → column of the source."""
        return {"text": self.text_column, "value": self.value_column}


class Regression(Base):
    """See `tasks.families.Family`."""

    section = RegressionTask
    serving = Path(__file__).with_name("serve_regression.py")
    target_columns = ("value",)
    row_score = "1 less the absolute error in standard deviations, at least 0,"

    def target_repairs(self, task: RegressionTask, usual: Sequence[Step]) -> Sequence[Step]:
        """The usual ones, and one spelling for each number."""
        from tasks.rules import numbers

        del task
        return [*usual, ("number", numbers.spelt_alike)]

    def rejects(self, task: RegressionTask) -> list[tuple[str, pl.Expr]]:
        """Rows without a value, and rows whose value is no finite number."""
        import polars as pl

        from tasks.rules import numbers

        del task
        value = pl.col("value")
        missing = value.is_null() | (value.str.strip_chars() == "")
        return [("missing_value", missing), ("not_a_number", ~numbers.is_number("value"))]

    def describe(self, task: RegressionTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """Nothing: mean and scale are those of the training rows alone."""
        import polars as pl

        if rows.select(pl.col("value").n_unique()).collect(engine="streaming").item() < 2:
            rule, remedy = "the clean rows all have the same value", "name the column that holds the numbers"
            raise DataError(Problem("task.value_column", task.value_column, rule, remedy))
        return {}

    def of_training(self, rows: pl.LazyFrame, meta: Meta) -> dict[str, Any]:
        """`mean` and `scale`, the standard deviation, of the training values."""
        import polars as pl

        del meta
        value = pl.col("value").cast(pl.Float64)
        asked = rows.select(value.mean().alias("mean"), value.std(ddof=0).alias("scale"))
        found: dict[str, float] = asked.collect(engine="streaming").row(0, named=True)
        if not found["scale"]:
            rule, remedy = "the training rows all have the same value", "collect rows that have others"
            raise DataError(Problem("value", found["mean"], rule, remedy))
        return found

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Tokens of the text, and the value in the source's units."""
        import polars as pl

        from tasks.encoding import encode_texts

        return encode_texts(rows["text"].to_list(), rows["value"].cast(pl.Float64).to_list(), meta, tokenizer)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model under a head with one output; a head that has learnt already stays in its own units."""
        from tasks import sequence_model

        model = sequence_model.load(base, meta, None, "regression", **options)
        config: Any = model.config
        if getattr(config, "value_scale", None) is None:
            config.value_mean, config.value_scale = meta["mean"], meta["scale"]
        return model

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Squared errors in standard deviations, summed."""
        from tasks import sequence_model

        del loss
        return _squared_error(model, sequence_model.logits(model, batch), batch["labels"])

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """Values in the source's units, `[batch]`, and the summed loss."""
        import numpy as np

        from tasks import sequence_model

        del loss
        logits = sequence_model.logits(model, batch)
        config: Any = model.config
        found = config.value_mean + config.value_scale * logits[:, 0].double().cpu().numpy()
        return found.astype(np.float32), _squared_error(model, logits, batch["labels"])

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """The true and the predicted value: the mean over windows."""
        del meta
        return {"truth": windows.of_texts("labels"), "prediction": windows.means().astype(float).tolist()}

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """See `tasks.values.score`."""
        from tasks import values

        return values.score(predictions, meta)

    def intervals(
        self, predictions: pl.DataFrame, meta: Meta, *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Interval]:
        """Percentile intervals over resampled rows."""
        from tasks import values

        return values.intervals(predictions, meta, resamples=resamples, confidence=confidence, seed=seed)

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
        """Paired bootstrap over the rows both have."""
        from tasks import values

        return values.paired(new, old, meta, metric, resamples=resamples, confidence=confidence, seed=seed)

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Values as they were answered; no answer counts as the mean, which is what knowing nothing would say."""
        import polars as pl

        found = [meta["mean"] if answer["value"] is None else answer["value"] for answer in served]
        return pl.DataFrame(
            {
                "id": rows["id"],
                "truth": rows["value"].cast(pl.Float64),
                "prediction": pl.Series(found, dtype=pl.Float64),
            }
        )

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """1 for a right value, 0 for one that is off by a standard deviation of the training values or more."""
        from tasks import values

        return values.row_scores(predictions, meta)

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Another value."""
        if now["value"] is None:
            return f"{was['prediction']:g} was recorded, nothing is served"
        apart = abs(now["value"] - was["prediction"])
        if not apart <= TOLERANCE * meta["scale"] + ROUNDING * abs(was["prediction"]):  # NaN is a difference, too
            return f"{was['prediction']:g} was recorded, {now['value']:g} is served"
        return None

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """The mean of the training values, and ridge regression on TF-IDF."""
        from tasks import value_baselines

        return value_baselines.regression(split, meta, metric, out)

    def plots(self, predictions: pl.DataFrame, uncalibrated: pl.DataFrame, meta: Meta, out: Path) -> list[Path]:
        """Predicted against true values, and the errors."""
        from tasks import value_plots

        del uncalibrated, meta
        return [
            value_plots.predicted_against_true(predictions, out / "predicted_against_true.png"),
            value_plots.residuals(predictions, out / "residuals.png"),
        ]


def _squared_error(model: torch.nn.Module, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    config: Any = model.config
    wanted = (values - config.value_mean) / config.value_scale
    found: torch.Tensor = (logits[:, 0] - wanted.float()).square().sum()
    return found
