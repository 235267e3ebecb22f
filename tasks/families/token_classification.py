"""Token classification: a tag for every word of a text, such as the names in it or its parts of speech.

Encoder models of any architecture that transformers offers for token classification. A word is what stands between
white space; its first token tells its tag. Does not cover entities that overlap or lie within each other.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Label, TaskSection
from schemas.errors import DataError, Problem
from tasks.families import IGNORED, Encoded, Loss, Meta
from tasks.families.base import Base
from tasks.rules import tagging

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch

    from tasks.bootstrap import Floats
    from tasks.predict import Windows
    from tasks.rules.repair import Step
    from tasks.tokenizer import BaseTokenizer, Spans

logger = logging.getLogger(__name__)

Scheme = Literal["bio", "iob1", "bioes", "none"]
PREFIXES = {"bio": "BI", "iob1": "BI", "bioes": "BIES"}
"""Scheme → what stands before a type."""
POWERS = {"balanced": 1.0, "sqrt": 0.5}
"""Rule for class weights → power of the inverse frequency."""
TOLERANCE = 1e-4
"""Largest difference of a served probability. Float32 sums in another order differ by 1e-6, a wrong token by 1e-3."""
TINY = 1e-12
"""A smaller probability counts as this much."""


class TokenClassificationTask(TaskSection):
    """A tag for each word."""

    metrics: ClassVar[tuple[str, ...]] = ("f1", "macro_f1", "precision", "recall", "accuracy")
    heeds: ClassVar[tuple[str, ...]] = ("class_weights", "label_smoothing")
    word_lists: ClassVar[tuple[str, ...]] = ("text", "tags")
    family: Literal["token-classification"] = "token-classification"
    text_column: str = "text"
    """Column of the source with the words: a list of them, or a text that is split at white space."""
    tags_column: str = "tags"
    """Column with a tag for each word: a list, or a text that is split at white space."""
    scheme: Scheme | None = None
    """How tags make entities: B- and I-; the same in the older way (iob1); with E- and S-; or not. Default: told from
    the rows."""
    types: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    """Types of entities, or the tags without a scheme; a row with another one is quarantined. Default: those found."""

    @model_validator(mode="after")
    def _types_distinct(self) -> TokenClassificationTask:
        repeated = [name for name, count in Counter(self.types or ()).items() if count > 1]
        if repeated:
            raise ValueError(f"types names {', '.join(repeated)} more than once")
        return self

    def columns(self) -> dict[str, str]:
        """Role → column of the source."""
        return {"text": self.text_column, "tags": self.tags_column}


class TokenClassification(Base):
    """See `tasks.families.Family`."""

    section = TokenClassificationTask
    serving = Path(__file__).with_name("serve_token_classification.py")
    target_columns = ("tags",)
    row_score = "F1 of the entities (1 where there are none and none is found)"
    part = "entity type"

    def target_repairs(self, task: TokenClassificationTask, usual: Sequence[Step]) -> Sequence[Step]:
        """One space between two tags; then the usual rules for each of them."""
        from tasks.rules import text

        del task
        each = [(name, partial(_each_tag, rule=rule)) for name, rule in usual]
        return [("space_between_tags", text.collapse_whitespace), *each]

    def rejects(self, task: TokenClassificationTask) -> list[tuple[str, pl.Expr]]:
        """Rows without tags, with more or fewer of them than words, with unknown ones, or in an impossible order."""
        import polars as pl

        tags = pl.col("tags")
        missing = ("missing_tags", tags.is_null() | (tags.str.strip_chars() == ""))
        differ = pl.struct("text", "tags").map_elements(_counts_differ, return_dtype=pl.Boolean)
        found = [missing, ("words_and_tags_differ", differ)]
        known = None if task.types is None else frozenset(_known_tags(task.types, task.scheme))
        for reason, holds in (
            ("unknown_tag", partial(_has_unknown, scheme=task.scheme, known=known)),
            ("broken_tags", partial(_has_broken, scheme=task.scheme)),
        ):
            found.append((reason, tags.map_elements(holds, return_dtype=pl.Boolean)))
        return found

    def describe(self, task: TokenClassificationTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """The scheme, the types in the recipe's order or sorted, and all tags that these make."""
        import polars as pl

        tags = pl.col("tags").str.split(" ")
        found = sorted(rows.select(tags.explode().unique()).collect(engine="streaming")["tags"].to_list())
        scheme = task.scheme or _scheme_of_all(found)
        if task.scheme is None and scheme == "bioes":
            _refuse_mixed(rows)
        types = list(
            task.types or (found if scheme == "none" else sorted({tagging.parts(tag)[1] for tag in found} - {""}))
        )
        if not types or (scheme == "none" and len(types) < 2):
            rule = f"the clean rows have no other tag than {', '.join(found)}"
            remedy = "name the column that holds several tags"
            raise DataError(Problem("task.tags_column", task.tags_column, rule, remedy))
        logger.info(
            "tags are %s (%s): %s", scheme, "the recipe's" if task.scheme else "told from the rows", ", ".join(types)
        )
        return {"scheme": scheme, "types": types, "tags": _tags_of(types, scheme)}

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Tokens of the text; the place of its tag for the first token of each word, nothing for the others."""
        import pyarrow as pa

        texts, tags = rows["text"].to_list(), rows["tags"].to_list()
        place = {tag: i for i, tag in enumerate(meta["tags"])}
        stride = meta["stride"] if meta["overlong"] == "window" else 0
        uncut, found = _windows(texts, tokenizer, meta["max_seq_length"], stride, windows=meta["overlong"] == "window")
        words, labels, kept = [], [], []
        for text, row, windows in zip(texts, tags, found, strict=True):
            names, bounds = row.split(" "), tagging.bounds_of(text)
            for number, (_, spans) in enumerate(windows):
                first = tagging.first_tokens(bounds, spans)
                words.append(first)
                labels.append([IGNORED if word == tagging.NO_WORD else place[names[word]] for word in first])
                kept.append(None if number else row)
        columns = {
            "labels": pa.array(labels, pa.list_(pa.int64())),
            "words": pa.array(words, pa.list_(pa.int32())),
            "tags": pa.array(kept, pa.string()),
        }
        ids = [ids for windows in found for ids, _ in windows]
        return Encoded(ids, [len(windows) for windows in found], uncut, columns)

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model under a classification head for each token."""
        import torch
        from transformers import AutoModelForTokenClassification

        tags = list(meta["tags"])
        model: torch.nn.Module = AutoModelForTokenClassification.from_pretrained(
            base,
            num_labels=len(tags),
            id2label=dict(enumerate(tags)),
            label2id={tag: i for i, tag in enumerate(tags)},
            dtype=torch.float32,
            use_safetensors=True,
            **options,
        )
        return model

    def loss_weights(self, labels: np.ndarray[Any, Any], meta: Meta, how: str) -> tuple[tuple[float, ...] | None, str]:
        """None by default: most words are outside, and must be found to be; else inverse frequency or its root.

        Scaled so that the mean weight of a training word is 1; a tag that no training row has weighs as much.
        """
        import numpy as np

        if how not in POWERS:
            return None, "none: that most words are in no entity is as it will be in use"
        counts = np.bincount(labels[labels != IGNORED], minlength=len(meta["tags"]))
        weights = (counts.sum() / np.maximum(counts, 1)) ** POWERS[how]
        weights = np.where(counts == 0, 1.0, weights / (weights * counts).sum() * counts.sum())
        return tuple(float(weight) for weight in weights), f"{how}: by the frequency of tags"

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Cross-entropy of the first tokens of words, summed."""
        return _cross_entropy(_logits(model, batch), batch["labels"], loss)

    def loss_count(self, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Words, or the sum of their weights."""
        import torch

        told = labels[labels != IGNORED]
        return torch.tensor(float(len(told))) if loss.weights is None else loss.weights[told].sum()

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[Sequence[np.ndarray[Any, Any]], torch.Tensor]:
        """Probabilities of the tags for each token, `[tokens, tags]` for each window; and the summed cross-entropy."""
        logits = _logits(model, batch)
        probabilities = logits.softmax(-1).cpu().numpy()
        lengths = batch["attention_mask"].sum(-1).tolist()
        found = [of_window[:length] for of_window, length in zip(probabilities, lengths, strict=True)]
        return found, _cross_entropy(logits, batch["labels"], loss)

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """True and predicted tags of each text, one for each word, and the probability of each predicted one."""
        truth = [row.split(" ") for row in windows.of_texts("tags")]
        words = [found.tolist() for found in windows.columns["words"]]
        ends, outputs = [*windows.starts[1:].tolist(), len(words)], list(windows.outputs)
        found = [
            tagging.tagged(outputs[begin:end], words[begin:end], len(row), meta["tags"], meta["scheme"])
            for begin, end, row in zip(windows.starts.tolist(), ends, truth, strict=True)
        ]
        return {
            "truth": truth,
            "prediction": [tags for tags, _ in found],
            "confidence": [scores for _, scores in found],
        }

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """Right, predicted and true entities of each type, and right words; see `tasks.entity_metrics`."""
        from tasks import entity_metrics

        return entity_metrics.numbers(predictions, meta["types"], meta["scheme"])

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """Micro F1 of the entities and so on; those of one type as `f1/<type>`."""
        from tasks import entity_metrics

        return entity_metrics.metrics_of(sums, meta["types"])

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """F1 of the row's entities, 1 where there are none and none is found."""
        import polars as pl

        from tasks import entity_metrics

        return pl.Series("score", entity_metrics.row_scores(self.numbers(predictions, meta)), pl.Float64)

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """Tags and probabilities as they were answered; a word without an answer counts as outside."""
        import polars as pl

        del meta
        return pl.DataFrame(
            {
                "id": rows["id"],
                "truth": rows["tags"].str.split(" "),
                "prediction": pl.Series([answer["tags"] for answer in served], dtype=pl.List(pl.String)),
                "confidence": pl.Series([answer["scores"] for answer in served], dtype=pl.List(pl.Float64)),
            }
        )

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Other tags, or other probabilities.

        Other tags are a matter of rounding where the two sequences are as probable as each other, and the two tags of a
        word may be so together.
        """
        del meta
        return _difference(was, now)

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """The most frequent tag, and the most frequent tag of each word."""
        from tasks import entity_baselines

        del meta, metric
        return entity_baselines.tagging(split, out)


def _windows(
    texts: Sequence[str], tokenizer: BaseTokenizer, longest: int, stride: int, *, windows: bool
) -> tuple[list[int], list[list[Spans]]]:
    """Tokens of each text before the cut, and its windows, of which the cut leaves the first."""
    found = tokenizer.spans(texts)
    uncut = [len(ids) for ((ids, _),) in found]
    overlong = [place for place, length in enumerate(uncut) if length > longest]
    shorter = tokenizer.spans([texts[place] for place in overlong], longest, stride)
    for place, several in zip(overlong, shorter, strict=True):
        found[place] = several if windows else several[:1]
    return uncut, found


def _logits(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.float()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        loss.weights,
        ignore_index=IGNORED,
        label_smoothing=loss.label_smoothing,
        reduction="sum",
    )


def _counts_differ(row: Mapping[str, str | None]) -> bool:
    text, tags = row["text"], row["tags"]
    return text is not None and tags is not None and len(text.split()) != len(tags.split())


def _has_unknown(tags: str, scheme: Scheme | None, known: frozenset[str] | None) -> bool:
    """Whether some tag is none of the recipe's, or of another form than its scheme has."""
    if known is not None:
        return not known.issuperset(tags.split())
    if scheme in {None, "none"}:
        return False
    return any(tag != tagging.OUTSIDE and tagging.parts(tag)[0] not in PREFIXES[scheme] for tag in tags.split())


def _has_broken(tags: str, scheme: Scheme | None) -> bool:
    """Whether the tags cannot follow each other, by the recipe's scheme or the one that they look like."""
    names = tags.split()
    return tagging.is_broken(names, scheme or _scheme_of(names))


def _scheme_of(tags: Sequence[str]) -> Scheme:
    """What the tags of a row look like; entities are never taken for `iob1`."""
    prefixes = {tagging.parts(tag)[0] for tag in tags if tag != tagging.OUTSIDE}
    if tagging.OUTSIDE in prefixes:
        return "none"
    return "bioes" if prefixes & {"E", "S"} else "bio"


def _scheme_of_all(tags: Sequence[str]) -> Scheme:
    """What the tags of all rows look like.

    Raises:
        DataError: Some have a prefix, others have none.
    """
    scheme = _scheme_of(tags)
    prefixed = [tag for tag in tags if tagging.parts(tag)[0] != tagging.OUTSIDE]
    if scheme != "none" or not prefixed:
        return scheme
    plain = next(tag for tag in tags if tag != tagging.OUTSIDE and tagging.parts(tag)[0] == tagging.OUTSIDE)
    rule = f"cannot be told: {prefixed[0]} begins as tags of entities do, {plain} does not"
    raise DataError(Problem("task.scheme", None, rule, "name it: bio, iob1, bioes or none"))


def _refuse_mixed(rows: pl.LazyFrame) -> None:
    """Rows of E- and S- with others that B- and I- alone would fit."""
    import polars as pl

    broken = pl.col("tags").map_elements(partial(_has_broken, scheme="bioes"), return_dtype=pl.Boolean)
    count = rows.select(broken.sum()).collect(engine="streaming").item()
    if count:
        rule = f"cannot be told: some rows have E- or S-, and {count:,} others fit B- and I- alone"
        raise DataError(Problem("task.scheme", None, rule, "name it: bio or bioes"))


def _known_tags(types: Sequence[str], scheme: Scheme | None) -> list[str]:
    """Every tag that a row may have."""
    if scheme is None:
        return [*_tags_of(types, "bioes"), *types]
    return _tags_of(types, scheme)


def _tags_of(types: Sequence[str], scheme: Scheme) -> list[str]:
    """All tags of a scheme."""
    if scheme == "none":
        return list(types)
    return [tagging.OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in PREFIXES[scheme])]


def _each_tag(tags: pl.Series, rule: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """The tags of each row after a rule for single ones."""
    import polars as pl

    rows = pl.DataFrame({"row": range(len(tags)), "tag": tags.str.split(" ")}).explode("tag")
    rows = rows.with_columns(rule(rows["tag"]).alias("tag"))
    return rows.group_by("row", maintain_order=True).agg("tag")["tag"].list.join(" ").alias(tags.name)


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between the recorded and the served tags of a row, beyond rounding."""
    if len(now["tags"]) != len(was["prediction"]):
        return f"{len(was['prediction'])} tags were recorded, {len(now['tags'])} are served"
    words = list(zip(was["prediction"], now["tags"], was["confidence"], now["scores"], strict=True))
    gap = sum(log(max(before, TINY)) - log(max(after, TINY)) for *_, before, after in words)
    for word, (recorded, served, before, after) in enumerate(words):
        if recorded != served and (before + after > 1 + 2 * TOLERANCE or not abs(gap) <= 2 * TOLERANCE * len(words)):
            return f"{recorded} was recorded for word {word + 1}, {served} is served"
        if recorded == served and not abs(before - after) <= TOLERANCE:  # NaN is a difference, too
            return f"the probability of word {word + 1} differs by {abs(before - after):.2g}"
    return None
