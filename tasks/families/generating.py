"""What task families have in common whose models write text: likelihood while they learn, written texts afterwards.

While a model learns only the likelihood of what it should write is measured: writing takes a pass over the model for
every token. Evaluation has it write an answer to every row of validation and test.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from schemas.base import TaskSection
from tasks.families import IGNORED, Loss, Meta
from tasks.families.base import Base

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from schemas.recipe import Recipe
    from tasks.bootstrap import Floats
    from tasks.predict import Windows
    from tasks.rules.writing import Answer, Rewriter

LIKELIHOODS = ("likelihood", "loss", "perplexity")
UNSURE = 1e-3
"""Distance of two logits within which another order of summing may choose the other token."""
SHOWN = 10
"""Rows whose texts the report shows."""
SHOWN_CHARS = 400
GENERATION = (
    "max_new_tokens", "num_beams", "length_penalty", "no_repeat_ngram_size", "repetition_penalty", "temperature",
    "top_p", "top_k",
)  # fmt: skip
SEED = 0
"""Of what is drawn, so that evaluating again writes the same texts."""


class GeneratingTask(TaskSection):
    """How a model writes, and how what it writes is measured."""

    metrics: ClassVar[tuple[str, ...]] = ("rouge_l", "chrf", "bleu", "exact_match", "likelihood")
    measures: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    learning_rates: ClassVar[Mapping[str, float]] = {
        "full": 2e-5, "freeze": 5e-5, "lora": 5e-4, "rslora": 2e-4, "dora": 5e-4, "qlora": 2e-4, "ia3": 5e-3,
        "bitfit": 1e-3,
    }  # fmt: skip
    heeds: ClassVar[tuple[str, ...]] = ("packing", "shots")
    learns_by: ClassVar[str | None] = "likelihood"
    late: ClassVar[tuple[str, ...]] = (*GENERATION, "bleu_tokenize")
    max_new_tokens: PositiveInt = 128
    """Most tokens of an answer; a longer one is broken off."""
    num_beams: Annotated[int, Field(ge=1, le=32)] = 1
    """Candidates that are kept while an answer is written; 1 takes the likeliest token each time."""
    length_penalty: float | None = None
    """Of beams: above 1 favours longer answers, below 1 shorter ones."""
    no_repeat_ngram_size: PositiveInt | None = None
    """Runs of so many tokens occur once in an answer."""
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Above 1, tokens that occurred are less likely to come again."""
    temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    """Tokens are drawn, the more evenly the higher it is; empty: the likeliest is taken."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Drawn among the likeliest tokens that together have this probability."""
    top_k: PositiveInt | None = None
    """Drawn among so many of the likeliest tokens."""
    bleu_tokenize: str = "13a"
    """sacreBLEU's tokenizer: 13a, zh, char, intl …"""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k say among which tokens is drawn: set temperature, or leave them out")
        if self.temperature is not None and self.num_beams > 1:
            raise ValueError(f"temperature draws and num_beams {self.num_beams} searches: leave one of them out")
        return self

    def misfits(self, recipe: Recipe) -> list[str]:
        """Windows, ONNX files, and examples where nothing that is written decides."""
        found = super().misfits(recipe)
        if recipe.tokenize.overlong == "window":
            found.append(f"tokenize.overlong 'window' is not for {self.family}: choose truncate, drop or raise")
        if recipe.registry.onnx:
            found.append(f"registry.onnx is not for {self.family}, which writes token by token: leave it out")
        if recipe.evaluate.shots and recipe.metric in LIKELIHOODS:
            found.append(
                f"evaluate.shots goes by what is written, and evaluate.metric is {recipe.metric}: leave it out"
            )
        return found

    def notes(self) -> dict[str, Any]:
        """`generation`, the settings of `tasks.rules.generation.write`, and how BLEU counts."""
        written_by = {name: getattr(self, name) for name in GENERATION if getattr(self, name) is not None}
        return {"generation": written_by, "bleu_tokenize": self.bleu_tokenize}


class Generating(Base):
    """Defaults of `tasks.families.Family` for models that write."""

    checked_rows = 8
    writes = True
    packs = True
    unserved: tuple[str, ...] = ("loss", "tokens")
    row_score = "mean ROUGE-L"
    section: type[GeneratingTask]

    def head_modules(self, model: torch.nn.Module) -> list[str]:
        """None: nothing is newly made, and the output layer is the base model's."""
        del model
        return []

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Tokens that are learnt."""
        del loss
        return (labels != IGNORED).sum().float()

    def token_losses(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood of every wanted token, and the row that each is of."""
        raise NotImplementedError

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Negative log-likelihoods of all wanted tokens, summed."""
        del loss
        return self.token_losses(model, batch)[0].sum()

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """Mean negative log-likelihood of the wanted tokens, and how many there are, `[batch, 2]`; the summed loss."""
        import torch

        del loss
        losses, rows = self.token_losses(model, batch)
        size = len(batch["input_ids"])
        total = torch.zeros(size, device=losses.device).index_add_(0, rows, losses)
        count = torch.bincount(rows, minlength=size).float()
        found: np.ndarray[Any, Any] = torch.stack([total / count.clamp(min=1), count], dim=1).cpu().numpy()
        return found, losses.sum()

    def wanted(self, windows: Windows) -> list[str]:
        """The true text of each row."""
        raise NotImplementedError

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """The true text, its loss and tokens; nothing is written yet.

        Where examples are shown beforehand, the tokens were read without them: their likelihood says nothing.
        """
        import polars as pl

        found = windows.means()
        texts = {"truth": self.wanted(windows), "prediction": pl.Series([None] * len(found), dtype=pl.String)}
        if meta.get("shown"):
            return texts
        return texts | {
            "loss": found[:, 0].astype(float).tolist(),
            "tokens": found[:, 1].astype(int).tolist(),
        }

    def finish(self, model: Any, tokenizer: Any, meta: Meta) -> None:
        """The chat template that was learnt with goes with the tokenizer of a model without an encoder."""
        from tasks.rules import chat

        if not model.config.is_encoder_decoder:
            tokenizer.chat_template = meta.get("chat_template") or tokenizer.chat_template or chat.PLAIN

    def answers(
        self, answerer: Rewriter, columns: Mapping[str, Sequence[Any]], kept: MutableMapping[int, Answer] | None
    ) -> list[Answer]:
        """What is written to every row, in order; see `written`."""
        raise NotImplementedError

    def written(
        self,
        model: torch.nn.Module,
        folder: Path,
        columns: Mapping[str, Sequence[Any]],
        meta: Meta,
        kept: MutableMapping[int, Answer] | None = None,
    ) -> dict[str, list[Any]]:
        """What the model writes to every row: `prediction`, whether it `ended`, and the `margin` of its choices."""
        from transformers import AutoTokenizer

        from tasks.rules.writing import Rewriter

        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.finish(model, tokenizer, meta)
        seeded = {**meta, "generation": {**meta["generation"], "seed": SEED}}
        answers = self.answers(Rewriter(model, tokenizer, seeded), columns, kept)
        return {
            "prediction": [answer.text for answer in answers],
            "ended": [answer.ended for answer in answers],
            "margin": [answer.margin for answer in answers],
        }

    def answered(self, rows: pl.DataFrame, meta: Meta) -> list[list[dict[str, Any]]]:
        """A conversation of each clean row in which the task is done."""
        raise NotImplementedError

    def examples(self, rows: pl.DataFrame, meta: Meta, count: int) -> list[dict[str, Any]]:
        """The turns of some rows, spread evenly over the shorter half of them, so that there is room for the rest."""
        import numpy as np

        shorter = rows.sort(rows["text"].str.len_chars(), rows["id"]).head((rows.height + 1) // 2)
        chosen = np.unique(np.linspace(0, shorter.height - 1, min(count, shorter.height)).astype(int))
        return [message for turns in self.answered(shorter[chosen], meta) for message in turns]

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """See `tasks.written_metrics.numbers`."""
        import numpy as np

        from tasks import written_metrics

        known = "tokens" in predictions.columns
        tokens = predictions["tokens"].to_numpy() if known else np.zeros(predictions.height)
        losses = predictions["loss"].to_numpy() * tokens if known else tokens
        texts = predictions["prediction"].fill_null("").to_list()
        wanted = predictions["truth"].to_list()
        return written_metrics.numbers(texts, wanted, losses.tolist(), tokens.tolist(), meta["bleu_tokenize"])

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """See `tasks.written_metrics.metrics_of`."""
        from tasks import written_metrics

        del meta
        return written_metrics.metrics_of(sums)

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """Every metric; those of likelihood alone while nothing is written."""
        import numpy as np

        from tasks import written_metrics

        if predictions["prediction"].null_count() < predictions.height:
            return super().score(predictions, meta)
        tokens = predictions["tokens"].to_numpy()
        sums = np.array((predictions["loss"].to_numpy() * tokens).sum()), np.array(float(tokens.sum()))
        return {name: float(value) for name, value in written_metrics.likelihoods(*sums).items()}

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """ROUGE-L of each row, or chrF, whichever decides by default."""
        import polars as pl

        from tasks import written_metrics

        values = written_metrics.row_values(self.numbers(predictions, meta))[self.section.metrics[0]]
        return pl.Series("score", values, dtype=pl.Float64)

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Another text, where no choice was so near that another order of summing decides it."""
        del meta
        if now["text"] == was["prediction"] or (now["text"] is not None and was["margin"] <= UNSURE):
            return None
        return f"{was['prediction']!r} was recorded, {now['text']!r} is served"

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Texts as they were answered; likelihoods of what was wanted nobody has said."""
        del meta
        return rows.select("id", truth=self.truth_of(rows)).with_columns(
            prediction=_texts([answer["text"] or "" for answer in served])
        )

    def truth_of(self, rows: pl.DataFrame) -> pl.Series:
        """The true text of clean rows."""
        raise NotImplementedError

    def report_sections(
        self, predictions: pl.DataFrame, baselines: Mapping[str, pl.DataFrame], meta: Meta
    ) -> list[str]:
        """Some rows side by side, the base model's among them, how many were broken off, how BLEU and chrF count."""
        from tasks import written_metrics
        from tasks.markdown import plain, shortened

        shown = predictions.gather_every(max(1, predictions.height // SHOWN)).head(SHOWN)
        columns = {"wanted": shown["truth"], "written": shown["prediction"]}
        for name, rows in baselines.items():
            columns[name] = shown.select("id").join(rows, on="id", how="left", maintain_order="left")["prediction"]
        texts = [
            "\n".join(f"- {name}: {plain(shortened(text or '', SHOWN_CHARS))}" for name, text in row.items())
            for row in _side_by_side(columns)
        ]
        counted = ", ".join(f"`{each}`" for each in written_metrics.signatures(meta["bleu_tokenize"]))
        told = f"Counted by sacreBLEU: {counted}."
        if "ended" in predictions.columns:
            broken, most = int((~predictions["ended"]).sum()), meta["generation"]["max_new_tokens"]
            told = f"{broken:,} of {predictions.height:,} texts were broken off at {most} tokens. {told}"
        return ["## Texts", told, *(f"{place}.\n\n{text}" for place, text in enumerate(texts, 1))]


def _side_by_side(columns: Mapping[str, pl.Series]) -> list[dict[str, str | None]]:
    """Rows of columns of equal length."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _texts(values: Sequence[str]) -> pl.Series:
    import polars as pl

    return pl.Series("prediction", values, dtype=pl.String)
