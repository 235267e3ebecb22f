"""Preference tuning: of two answers to one question, the better becomes likelier than it was, the worse less so.

Direct preference optimisation: the model is its own reward model, its reward for an answer being how much likelier than
the untaught model it finds it. What the untaught model finds is computed once, before the first step.

References:
    R. Rafailov et al. (2023), Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
    E. Mitchell (2023), A note on DPO with noisy preferences: label smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.families import REFERENCE, Encoded, Loss, Meta
from tasks.families.causal_lm import CausalLm, TurnsTask
from tasks.families.generating import Generating

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.bootstrap import Floats
    from tasks.predict import Windows
    from tasks.tokenizer import BaseTokenizer


class PreferenceTask(TurnsTask):
    """The better of two answers becomes likelier."""

    metrics: ClassVar[tuple[str, ...]] = ("preference_accuracy", "rouge_l", "chrf", "bleu", "exact_match", "likelihood")
    measures: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "preference_likelihood", "reward_accuracy")
    heeds: ClassVar[tuple[str, ...]] = ("label_smoothing", "preference_beta")
    learning_rates: ClassVar[Mapping[str, float]] = {
        "full": 1e-6, "freeze": 5e-6, "lora": 5e-5, "rslora": 2e-5, "dora": 5e-5, "qlora": 5e-5, "ia3": 5e-4,
        "bitfit": 1e-4,
    }  # fmt: skip
    learns_by: ClassVar[str | None] = "preference_likelihood"
    family: Literal["preference"] = "preference"
    prompt_column: str | None = "prompt"
    """The column with what is asked, text or messages; empty where both answers are whole conversations."""
    chosen_column: str = "chosen"
    """The column with the better answer."""
    rejected_column: str = "rejected"
    """The column with the worse one."""
    system_column: str | None = None
    """The column with what is said beforehand, where there is one."""

    def columns(self) -> dict[str, str]:
        """All are composed when rows are collected."""
        return {"text": "text", "conversation": "conversation", "rejected": "rejected"}

    def parts(self) -> dict[str, str]:
        """What both conversations are made of."""
        named = {name: getattr(self, f"{name}_column") for name in ("prompt", "chosen", "rejected", "system")}
        return {name: column for name, column in named.items() if column}


class Preference(CausalLm):
    """See `tasks.families.Family`."""

    section = PreferenceTask
    target_columns = ("conversation", "rejected")
    packs = False
    refers = True
    row_score = "share of pairs in order"
    unserved = ("loss", "tokens", "rejected_loss")

    def rejects(self, task: Any) -> list[tuple[str, pl.Expr]]:
        """Also pairs that teach nothing, and those that are not of one question."""
        import polars as pl

        pair = pl.struct("conversation", "rejected").map_elements(_fault_of_pair, pl.String, skip_nulls=False)
        reasons = ("other_question", "same_answer")
        return [*super().rejects(task), *((name, (pair == name).fill_null(value=False)) for name in reasons)]

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Both conversations, one after the other; only the last answer of each has labels."""
        import pyarrow as pa

        from tasks.rules import chat
        from tasks.supervision import encode_conversations

        sides = []
        for column in ("conversation", "rejected"):
            read = [chat.read(text) for text in rows[column]]
            sides.append(encode_conversations(read, meta, tokenizer, "task.chat_template", last=True))
        better, worse = sides
        labels = [side.columns["labels"].to_pylist() for side in sides]
        columns = {
            "labels": pa.array([0] * rows.height, pa.int32()),
            "wanted": pa.array([a + b for a, b in zip(*labels, strict=True)], pa.list_(pa.int32())),
            "second": pa.array([len(ids) for ids in better.input_ids], pa.int32()),
            "conversation": pa.array(rows["conversation"].to_list(), pa.string()),
        }
        both = [[*a, *b] for a, b in zip(better.input_ids, worse.input_ids, strict=True)]
        return Encoded(
            both, better.pieces, [max(pair) for pair in zip(better.uncut, worse.uncut, strict=True)], columns
        )

    def example(self, row: Mapping[str, Any], meta: Meta, tokenizer: BaseTokenizer) -> str | None:
        """Both, as the chat template has them."""
        better = super().example(row, meta, tokenizer)
        worse = super().example({"conversation": row["rejected"]}, meta, tokenizer)
        return f"{better}\nrather than\n{worse}"

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Pairs."""
        return super(Generating, self).loss_count(labels, loss)

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Of each pair, the negative log-likelihood that the better answer is preferred; summed."""
        from torch.nn.functional import logsigmoid

        margins = self._margins(self._found(model, batch)[0], batch, loss)
        doubt = loss.label_smoothing
        found: torch.Tensor = -((1 - doubt) * logsigmoid(margins) + doubt * logsigmoid(-margins)).sum()
        return found

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """Of each pair, `[batch, 5]`: mean negative log-likelihood and tokens of the better answer, then of the worse.

        The last one is how much larger the better one's reward is: no number where nobody knows what was found before.
        """
        import torch
        from torch.nn.functional import logsigmoid

        losses, counts = self._found(model, batch)
        known = REFERENCE in batch
        margins = self._margins(losses, batch, loss) if known else torch.full_like(losses[0], float("nan"))
        means = losses / counts
        columns = torch.stack([means[0], counts[0], means[1], counts[1], margins], dim=1)
        found: np.ndarray[Any, Any] = columns.float().cpu().numpy()
        return found, -logsigmoid(margins).sum() if known else torch.zeros((), device=losses.device)

    def _found(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood and tokens of better and worse answers, both `[2, batch]`."""
        import torch

        size = len(batch["input_ids"])
        losses, rows = self.token_losses(model, apart(batch))
        total = torch.zeros(2 * size, device=losses.device).index_add_(0, rows, losses)
        return total.view(2, size), torch.bincount(rows, minlength=2 * size).float().view(2, size)

    def _margins(self, losses: torch.Tensor, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """How much larger the reward of the better answer is, `[batch]`."""
        rewards = loss.preference_beta * (batch[REFERENCE].T - losses)
        return rewards[0] - rewards[1]

    def reference(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Negative log-likelihood of both answers, `[rows, 2]`."""
        import numpy as np

        return np.stack([outputs[:, 0] * outputs[:, 1], outputs[:, 2] * outputs[:, 3]], axis=1)

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """Also what the model finds of the worse answer, and the margin of rewards."""
        found = windows.means()
        columns = super().predictions(windows, meta)
        if meta.get("shown"):
            return columns
        return columns | {
            "rejected_loss": found[:, 2].astype(float).tolist(),
            "reward_margin": found[:, 4].astype(float).tolist(),
        }

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """Also whether the better answer is the likelier one, token by token, and whether anybody knows."""
        import numpy as np

        known = "rejected_loss" in predictions.columns
        ordered = np.zeros((predictions.height, 2))
        if known:
            ordered[:, 0] = (predictions["loss"] < predictions["rejected_loss"]).to_numpy()
            ordered[:, 1] = 1
        return np.concatenate([super().numbers(predictions, meta), ordered], axis=1)

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """Also `preference_accuracy`, where known."""
        import numpy as np

        from tasks.row_metrics import ratio

        found = super().metrics_of(sums[..., :-2], meta)
        ordered, pairs = np.moveaxis(np.asarray(sums[..., -2:]), -1, 0)
        return {"preference_accuracy": ratio(ordered, pairs), **found} if np.all(pairs > 0) else found

    def score(self, predictions: pl.DataFrame, meta: Meta) -> dict[str, float]:
        """While nothing is written also what the rewards say."""
        import numpy as np

        found = super().score(predictions, meta)
        if predictions["prediction"].null_count() < predictions.height:
            return found
        margins = predictions["reward_margin"].to_numpy()
        return found | {
            "preference_accuracy": float((predictions["loss"] < predictions["rejected_loss"]).to_numpy().mean()),
            "preference_likelihood": float(np.exp(-np.logaddexp(0.0, -margins).mean())),
            "reward_accuracy": float((margins > 0).mean()),
            "reward_margin": float(margins.mean()),
        }

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """Whether the better answer is the likelier one."""
        import polars as pl

        return pl.Series("score", self.numbers(predictions, meta)[:, -2], dtype=pl.Float64)


def apart(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Better answers, then worse ones, as rows of their own.

    Args:
        batch: Both of a pair in one row, `wanted` for labels, and `second`, where the worse one begins.

    Returns:
        `input_ids`, `attention_mask` and `labels`, `[2 * rows, width]`.
    """
    import torch

    from tasks.batches import padded_width
    from tasks.families import IGNORED

    lengths, second = batch["attention_mask"].sum(1), batch["second"].long()
    sizes = torch.cat([second, lengths - second])
    starts = torch.cat([torch.zeros_like(second), second])
    width = min(padded_width(int(sizes.max())), batch["input_ids"].shape[1])
    places = starts[:, None] + torch.arange(width, device=starts.device)
    mask = places < (starts + sizes)[:, None]
    places = torch.where(mask, places, 0)
    ids, labels = (torch.cat([batch[name]] * 2).gather(1, places) for name in ("input_ids", "wanted"))
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "labels": torch.where(mask, labels, IGNORED),
    }


def _fault_of_pair(pair: Mapping[str, str | None]) -> str | None:
    """Why two conversations are no pair; none where they are, or where one is no conversation at all."""
    from tasks.rules import chat

    try:
        better, worse = (chat.read(pair[name])["messages"] for name in ("conversation", "rejected"))
    except chat.UnreadableError:
        return None
    if better[:-1] != worse[:-1]:
        return "other_question"
    return "same_answer" if better[-1] == worse[-1] else None
