"""What most task families have in common: one text a row, no calibration, metrics that follow from sums over rows.

A family that derives from `Base` says what a row teaches, what the model predicts, and what a prediction is worth
(`numbers`, `metrics_of`); everything here may be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.records import Interval, Paired
from tasks.families import Loss, Meta

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.bootstrap import Floats
    from tasks.labels import Labelled
    from tasks.rules.repair import Step, TextRules
    from tasks.rules.writing import Answer
    from tasks.tokenizer import Base as BaseModel
    from tasks.tokenizer import BaseTokenizer


class Base:
    """Defaults of `tasks.families.Family`."""

    serving_libraries: tuple[str, ...] = ("torch", "transformers", "safetensors", "pandas", "numpy")
    text_columns: tuple[str, ...] = ("text",)
    checked_rows = 512
    writes = False
    packs = False
    refers = False
    unserved: tuple[str, ...] = ()
    labelled: Labelled | None = None
    row_score = "accuracy"
    part = "label"

    @property
    def asked_columns(self) -> tuple[str, ...]:
        """The texts."""
        return self.text_columns

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """What the metrics of a row are made of, `[rows, numbers]`; see `tasks.row_metrics`."""
        raise NotImplementedError

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """Name → metric, `[…]`, of the numbers of several rows added up, `[…, numbers]`."""
        raise NotImplementedError

    def target_repairs(self, task: Any, usual: Sequence[Step]) -> Sequence[Step]:
        """The usual ones."""
        del task
        return usual

    def of_training(self, rows: pl.LazyFrame, meta: Meta) -> dict[str, Any]:
        """Nothing."""
        del rows, meta
        return {}

    def of_base(self, task: Any, base: BaseModel) -> dict[str, Any]:
        """Nothing."""
        del task, base
        return {}

    def follow(self, before: pl.DataFrame, after: pl.DataFrame, rules: TextRules) -> pl.DataFrame:
        """As they are: no target points into a text."""
        del before, rules
        return after

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """What differs between the recorded and the served prediction of a row, beyond rounding; none: nothing does."""
        raise NotImplementedError

    def disagreements(
        self, served: Sequence[Mapping[str, Any]], recorded: pl.DataFrame, meta: Meta
    ) -> list[tuple[str, str]]:
        """Rows with a `difference`."""
        pairs = zip(recorded.iter_rows(named=True), served, strict=True)
        found = ((was["id"], self.difference(was, now, meta)) for was, now in pairs)
        return [(row, difference) for row, difference in found if difference]

    def head_modules(self, model: torch.nn.Module) -> list[str]:
        """The task's head: every top-level module outside the pretrained body."""
        body = model.base_model_prefix
        return [
            name for name, module in model.named_children() if name != body and any(True for _ in module.parameters())
        ]

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """None: it reads the text."""
        del row, meta, tokenizer
        return None

    def finish(self, model: Any, tokenizer: Any, meta: Meta) -> None:
        """Nothing."""

    def written(
        self,
        model: torch.nn.Module,
        folder: Path,
        columns: Mapping[str, Sequence[Any]],
        meta: Meta,
        kept: MutableMapping[int, Answer] | None = None,
    ) -> Mapping[str, list[Any]]:
        """Nothing."""
        del model, folder, columns, meta, kept
        return {}

    def examples(self, rows: pl.DataFrame, meta: Meta, count: int) -> list[dict[str, Any]]:
        """None."""
        del rows, meta, count
        return []

    def reference(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """It refers to none."""
        raise NotImplementedError

    def loss_weights(self, labels: np.ndarray[Any, Any], meta: Meta, how: str) -> tuple[tuple[float, ...] | None, str]:
        """None: the task has no classes to weigh."""
        del labels, meta, how
        return None, "none: the task has no classes to weigh"

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Windows."""
        import torch

        del loss
        return torch.tensor(float(len(labels)))

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """Every metric on these rows."""
        from tasks import row_metrics

        return row_metrics.score(self.numbers(predictions, meta), lambda sums: self.metrics_of(sums, meta))

    def decided(self, predictions: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """The predictions as they are: a calibration that moves probabilities alone changes no answer."""
        del meta
        return predictions

    def intervals(
        self, predictions: pl.DataFrame, meta: Meta, *, resamples: int, confidence: float, seed: int
    ) -> dict[str, Interval]:
        """Percentile intervals over resampled rows."""
        from tasks import row_metrics

        return row_metrics.intervals(
            self.numbers(predictions, meta),
            lambda sums: self.metrics_of(sums, meta),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
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
        """Paired bootstrap over the rows both have."""
        from tasks import row_metrics

        return row_metrics.paired(
            new,
            old,
            lambda predictions: self.numbers(predictions, meta),
            lambda sums: self.metrics_of(sums, meta),
            metric,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )

    def calibrate(
        self, validation: pl.DataFrame, meta: Meta, *, abstain_precision: float | None, confidence: float
    ) -> dict[str, Any]:
        """Nothing."""
        del validation, meta, abstain_precision, confidence
        return {}

    def calibrated(self, predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
        """The predictions as they are."""
        del calibration
        return predictions

    def abstention(
        self, predictions: pl.DataFrame, calibration: Mapping[str, Any], *, confidence: float
    ) -> dict[str, Any]:
        """It never does."""
        del predictions, calibration, confidence
        return {}

    def calibration_told(self, calibration: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
        """Nothing."""
        del calibration, abstention
        return []

    def report_sections(
        self, predictions: pl.DataFrame, baselines: Mapping[str, pl.DataFrame], meta: Meta
    ) -> list[str]:
        """None."""
        del predictions, baselines, meta
        return []

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """None; a recipe of such a family says `gate.beat_baseline: false`."""
        del split, meta, metric, out
        return {}

    def plots(self, predictions: pl.DataFrame, uncalibrated: pl.DataFrame, meta: Meta, out: Path) -> list[Path]:
        """None."""
        del predictions, uncalibrated, meta, out
        return []
