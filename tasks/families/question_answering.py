"""Extractive question answering: the answer to a question is a span of a context, or there is none.

Encoder models of any architecture that transformers offers for question answering, whose first token stands for no
answer. Contexts longer than the model reads are read in overlapping windows. Does not cover answers that are no span,
nor questions without a context.

References:
    J. Devlin et al. (2019), BERT: Pre-training of Deep Bidirectional Transformers, sections 4.2 and 4.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.base import TaskSection
from schemas.errors import DataError, Problem
from tasks.families import Encoded, Loss, Meta
from tasks.families.base import Base

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import torch

    from schemas.recipe import Recipe
    from tasks.bootstrap import Floats
    from tasks.predict import Windows
    from tasks.rules.repair import Step, TextRules
    from tasks.rules.spans import Ranked, Window
    from tasks.tokenizer import BaseTokenizer

SPECIAL_TOKENS = 4
"""Those that encoders put around and between two texts, at most."""
TOLERANCE = 1e-3
"""Largest difference of a served probability: scores add two logits of float32, summed in another order."""
ODDS_TOLERANCE = 0.01
"""Distance from the threshold within which no answer is as good as an answer."""
NO_ANSWER = ""
"""What is predicted where there is no answer."""


class QuestionAnsweringTask(TaskSection):
    """A span of a context answers each question, or nothing does."""

    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    measures: ClassVar[tuple[str, ...]] = ()
    family: Literal["question-answering"] = "question-answering"
    context_column: str = "context"
    """Column of the source that holds the text in which the answer is looked for."""
    question_column: str = "question"
    """Column of the source that holds the question."""
    answers_column: str = "answers"
    """Column with the true answers: text, or JSON with text and start of each; [] where there is none."""
    start_column: str | None = None
    """Column with the first character of the answer, where the answers do not tell; default: the first place found."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=512)] = 30
    """Longest answer that is predicted, in tokens."""
    max_question_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Longest question that is read, in tokens; the rest of a longer one is not."""

    def columns(self) -> dict[str, str]:
        """Role → column of the source."""
        roles = {"context": self.context_column, "question": self.question_column, "answers": self.answers_column}
        return roles | ({"start": self.start_column} if self.start_column else {})

    def misfits(self, recipe: Recipe) -> list[str]:
        """Long contexts are never cut, windows get on, and no answer is what abstaining is here."""
        asked, found = recipe.tokenize, []
        if asked.overlong == "truncate":
            found.append(
                "tokenize.overlong is 'truncate', which would cut answers off with the end of their context: "
                "set it to window, drop or raise"
            )
        room = asked.max_seq_length - SPECIAL_TOKENS - self.max_question_tokens
        if asked.stride >= room:
            found.append(
                f"tokenize.stride ({asked.stride}) must be less than {room}: max_seq_length less {SPECIAL_TOKENS} "
                f"special tokens less task.max_question_tokens ({self.max_question_tokens})"
            )
        if recipe.evaluate.abstain_precision is not None:
            found.append(
                "evaluate.abstain_precision is not for question-answering: give it questions without an answer, and it "
                "gives none where that is better"
            )
        return found


class QuestionAnswering(Base):
    """See `tasks.families.Family`."""

    section = QuestionAnsweringTask
    serving = Path(__file__).with_name("serve_question_answering.py")
    text_columns = ("context", "question")
    target_columns = ("answers",)
    row_score = "mean F1"
    part = "kind of question"

    def target_repairs(self, task: QuestionAnsweringTask, usual: Sequence[Step]) -> Sequence[Step]:
        """None: answers follow their context."""
        del task, usual
        return []

    def follow(self, before: pl.DataFrame, after: pl.DataFrame, rules: TextRules) -> pl.DataFrame:
        """Answers at their places in the cleaned context."""
        from tasks.rules import answers

        return answers.follow(before, after, rules)

    def rejects(self, task: QuestionAnsweringTask) -> list[tuple[str, pl.Expr]]:
        """Rows that do not say their answers, not even [], say them unclearly, or say what is not in the context."""
        import polars as pl

        from tasks.rules.answers import fault_of

        columns = ["context", "answers", *(["start"] if task.start_column else [])]

        def faults(rows: pl.Series) -> pl.Series:
            values = zip(*(rows.struct.field(name) for name in columns), strict=True)
            return pl.Series([fault_of(*row) for row in values], dtype=pl.String)

        fault = pl.struct(columns).map_batches(faults, pl.String)
        return [(name, fault == name) for name in ("missing_answers", "broken_answers", "answer_not_in_context")]

    def describe(self, task: QuestionAnsweringTask, rows: pl.LazyFrame) -> dict[str, Any]:
        """Whether a question may have no answer, and how long answers and questions may be."""
        import polars as pl

        silent = pl.col("answers") == "[]"
        found = rows.select(pl.len().alias("rows"), silent.sum().alias("silent")).collect(engine="streaming")
        count, without = found.row(0)
        if count == without:
            raise DataError(
                Problem(
                    "task.answers_column", task.answers_column, f"none of {count:,} questions has an answer",
                    "name the column that holds answers",
                )
            )  # fmt: skip
        return {
            "unanswerable": without > 0,
            "max_answer_tokens": task.max_answer_tokens,
            "max_question_tokens": task.max_question_tokens,
        }

    def encode(self, rows: pl.DataFrame, meta: Meta, tokenizer: BaseTokenizer) -> Encoded:
        """Windows of question and context, and in each of them the first and last token of an answer.

        The first answer that lies wholly in the window is learnt; a window without one has the first token for both.
        Where overlong rows are not read in windows, they are set aside or refused, and only their first one is made.
        """
        import pyarrow as pa

        from tasks.rules import spans

        questions, contexts = rows["question"].to_list(), rows["context"].to_list()
        most, whole = meta["max_question_tokens"], meta["overlong"] == "window"
        found = spans.windows(
            tokenizer.backend, questions, contexts,
            longest=meta["max_seq_length"], stride=meta["stride"] if whole else 0, question=most,
        )  # fmt: skip
        uncut = spans.pair_lengths(tokenizer.backend, questions, contexts, most)
        found = found if whole else [windows[:1] for windows in found]
        answers = [json.loads(written) for written in rows["answers"]]
        every = [window for windows in found for window in windows]
        labels = [_labels(window, row) for windows, row in zip(found, answers, strict=True) for window in windows]
        first = [place == 0 for windows in found for place in range(len(windows))]
        of_first = iter(zip(contexts, answers, strict=True))
        told = [next(of_first) if is_first else (None, None) for is_first in first]
        return Encoded(
            [window.input_ids for window in every],
            [len(windows) for windows in found],
            uncut,
            {
                "labels": pa.array(labels, pa.list_(pa.int64(), 2)),
                "token_type_ids": _per_token([window.token_type_ids for window in every]),
                "begins": _per_token([window.begins for window in every]),
                "ends": _per_token([window.ends for window in every]),
                "context": pa.array([context for context, _ in told], pa.string()),
                "truths": pa.array([None if row is None else _texts(row) for _, row in told], pa.string()),
            },
        )

    def load_model(self, base: str, meta: Meta, **options: Any) -> torch.nn.Module:
        """The base model under a head that tells first and last tokens."""
        import torch
        from transformers import AutoModelForQuestionAnswering

        model: torch.nn.Module = AutoModelForQuestionAnswering.from_pretrained(
            base, num_labels=2, dtype=torch.float32, use_safetensors=True, **options
        )
        _config(model).max_answer_tokens = meta["max_answer_tokens"]
        return model

    def loss_sum(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
        """Mean of the cross-entropies of first and last token, summed over windows."""
        del loss
        return _cross_entropy(self._logits(model, batch), batch["labels"])

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], loss: Loss
    ) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
        """The best spans of each window, see `tasks.rules.spans.best_spans`, and the summed loss."""
        from tasks.rules import spans

        del loss
        logits = self._logits(model, batch)
        most: int = _config(model).max_answer_tokens
        found: np.ndarray[Any, Any] = spans.best_spans(*logits, (batch["begins"], batch["ends"]), most).cpu().numpy()
        return found, _cross_entropy(logits, batch["labels"])

    def _logits(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        from tasks.rules import spans

        types = {"token_type_ids": batch["token_type_ids"]} if spans.told_types(_config(model)) else {}
        given = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **types)
        return spans.masked(given.start_logits, batch["begins"]), spans.masked(given.end_logits, batch["begins"])

    def predictions(self, windows: Windows, meta: Meta) -> dict[str, Any]:
        """The true answers, the predicted one with its probability, and what the decision hung on.

        Columns `best`, `start`, `end`: the best span, whether it is predicted or not, and where it is in the clean
        context; `best_score`, `second_score`, `no_answer_score`: probabilities; `odds`: score of no answer less that of
        the best span; `margin`: how far these lie above the threshold.
        """
        import numpy as np
        import polars as pl

        from tasks.rules import spans

        numbers = np.asarray(windows.outputs)
        ends = [*windows.starts[1:].tolist(), len(numbers)]
        found = [
            _row(spans.merged(numbers[begin:end], context, unanswerable=meta["unanswerable"]), context)
            for begin, end, context in zip(windows.starts.tolist(), ends, windows.of_texts("context"), strict=True)
        ]
        truths = [json.loads(texts) for texts in windows.of_texts("truths")]
        places, scores = ("start", "end"), ("best_score", "second_score", "no_answer_score", "odds")
        schema = {"best": pl.String, **dict.fromkeys(places, pl.Int64), **dict.fromkeys(scores, pl.Float64)}
        frame = pl.DataFrame(found, schema=schema, orient="row").with_columns(_truth(truths))
        return _decided(frame, spans.threshold_of(meta, {})).to_dict()

    def numbers(self, predictions: pl.DataFrame, meta: Meta) -> Floats:
        """See `tasks.answer_metrics.numbers`."""
        from tasks import answer_metrics

        del meta
        return answer_metrics.numbers(predictions["prediction"].to_list(), predictions["truth"].to_list())

    def metrics_of(self, sums: Floats, meta: Meta) -> Mapping[str, Floats]:
        """F1 and exact match, also by whether there is an answer where some questions have none."""
        from tasks import answer_metrics

        return answer_metrics.metrics_of(sums, by_kind=meta["unanswerable"])

    def row_scores(self, predictions: pl.DataFrame, meta: Meta) -> pl.Series:
        """F1 of each answer."""
        import polars as pl

        return pl.Series("score", self.numbers(predictions, meta)[:, 1], dtype=pl.Float64)

    def calibrate(
        self, validation: pl.DataFrame, meta: Meta, *, abstain_precision: float | None, confidence: float
    ) -> dict[str, Any]:
        """The odds above which there is no answer, so that F1 on validation is greatest; nothing for SQuAD 1.1's kind.

        Returns:
            `no_answer_above`, and F1 `before` and `after`.
        """
        from tasks import answer_metrics

        del abstain_precision, confidence
        if not meta["unanswerable"]:
            return {}
        truths = validation["truth"].to_list()
        answered = answer_metrics.numbers(validation["best"].to_list(), truths)[:, 1]
        silent = answer_metrics.numbers([answer_metrics.NO_ANSWER] * len(truths), truths)[:, 1]
        threshold, after = answer_metrics.best_threshold(validation["odds"].to_numpy(), answered, silent)
        return {"no_answer_above": threshold, "before": self.score(validation, meta)["f1"], "after": after}

    def decided(self, predictions: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """With no answer where it is better on these rows: early on all of them may seem to have one."""
        fitted = self.calibrate(predictions, meta, abstain_precision=None, confidence=0.95)
        return self.calibrated(predictions, fitted)

    def calibrated(self, predictions: pl.DataFrame, calibration: Mapping[str, Any]) -> pl.DataFrame:
        """The predictions with no answer where the odds are above the threshold."""
        return _decided(predictions, calibration["no_answer_above"]) if calibration else predictions

    def calibration_told(self, calibration: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
        """The threshold, and what it is worth."""
        del abstention
        if not calibration:
            return []
        return [
            "There is no answer where its score is above that of the best span by more than "
            f"{calibration['no_answer_above']:.3f}; that threshold, fitted on validation, took F1 there from "
            f"{calibration['before']:.4f} to {calibration['after']:.4f}."
        ]

    def report_sections(
        self, predictions: pl.DataFrame, baselines: Mapping[str, pl.DataFrame], meta: Meta
    ) -> list[str]:
        """How the questions were answered."""
        from tasks.markdown import table

        del baselines
        rows = self.numbers(predictions, meta)
        scores, same, has = rows[:, 1], rows[:, 2] == 1, rows[:, 3] == 1
        said = (predictions["prediction"] != "").to_numpy()
        ways = {
            "the very answer": has & same,
            "some of its words": has & said & ~same & (scores > 0),
            "another span": has & said & (scores == 0),
            "none, though there is one": has & ~said & ~same,
            "none, and there is none": ~has & ~said,
            "a span, though there is none": ~has & said,
        }
        shown = [(way, f"{mask.sum():,}", f"{mask.mean():.1%}") for way, mask in ways.items() if mask.any()]
        return ["## Answers", table(("answered with", "questions", "share"), shown)]

    def from_served(self, served: Sequence[Mapping[str, Any]], rows: pl.DataFrame, meta: Meta) -> pl.DataFrame:
        """The answers as they were given; none is none."""
        import polars as pl

        del meta
        truths = [[answer["text"] for answer in json.loads(written)] for written in rows["answers"]]
        answers = [answer["answer"] or NO_ANSWER for answer in served]
        return pl.DataFrame({"id": rows["id"], "prediction": pl.Series(answers, dtype=pl.String)}).with_columns(
            _truth(truths)
        )

    def difference(self, was: Mapping[str, Any], now: Mapping[str, Any], meta: Meta) -> str | None:
        """Another answer, or another probability.

        Another answer counts where the recorded best two, or span and no answer, are further apart than rounding.
        """
        return _difference(was, now, unanswerable=meta["unanswerable"])

    def baselines(self, split: Path, meta: Meta, metric: str, out: Path) -> dict[str, dict[str, Any]]:
        """The commonest answer that the context has, and the span whose surroundings are most like the question."""
        from tasks import answer_baselines

        return answer_baselines.predict(split, metric, out, unanswerable=meta["unanswerable"])


def _config(model: torch.nn.Module) -> Any:
    """What is saved with the weights, the longest answer among it."""
    return model.config


def _labels(window: Window, answers: Sequence[Mapping[str, Any]]) -> list[int]:
    """First and last token of the first answer that lies in the window; [0, 0] where none does."""
    inside = [place for place, begin in enumerate(window.begins) if begin >= 0]
    for answer in answers if inside else ():
        begin, end = answer["start"], answer["start"] + len(answer["text"])
        if window.begins[inside[0]] > begin or window.ends[inside[-1]] < end:
            continue
        touched = [place for place in inside if window.begins[place] < end and window.ends[place] > begin]
        if touched:
            return [touched[0], touched[-1]]
    return [0, 0]


def _texts(answers: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([answer["text"] for answer in answers], ensure_ascii=False)


def _per_token(values: Sequence[Sequence[int]]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.list_(pa.int32()))


def _cross_entropy(logits: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    import torch

    firsts, lasts = (
        torch.nn.functional.cross_entropy(scores, labels[:, place], reduction="sum")
        for place, scores in enumerate(logits)
    )
    return (firsts + lasts) / 2


def _row(ranked: Ranked, context: str) -> tuple[Any, ...]:
    """The columns that tell of the best span, see `QuestionAnswering.predictions`."""
    begin, end = ranked.spans[0] if ranked.spans else (-1, -1)
    first, second = [*ranked.probabilities, 0.0, 0.0][:2]
    return context[begin:end] if ranked.spans else NO_ANSWER, begin, end, first, second, ranked.nothing, ranked.odds


def _truth(truths: Sequence[Sequence[str]]) -> pl.Series:
    import polars as pl

    return pl.Series("truth", truths, dtype=pl.List(pl.String))


def _decided(predictions: pl.DataFrame, threshold: float | None) -> pl.DataFrame:
    """The predictions with `prediction`, `score` and `margin` by the odds above which there is no answer.

    Args:
        predictions: With what the decision hangs on.
        threshold: See `tasks.rules.spans.Ranked.decided`.
    """
    import polars as pl

    margin = pl.lit(0.0) if threshold is None else pl.col("odds") - threshold
    silent = pl.lit(threshold is not None) & (margin > 0)
    return predictions.with_columns(
        prediction=pl.when(silent).then(pl.lit(NO_ANSWER)).otherwise("best"),
        score=pl.when(silent | (pl.col("best") == NO_ANSWER)).then("no_answer_score").otherwise("best_score"),
        margin=margin,
    )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any], *, unanswerable: bool) -> str | None:
    """What differs between the recorded and the served answer of a row, beyond rounding."""
    if now["score"] is None:
        return f"{was['prediction']!r} was recorded, nothing is served"
    recorded, served = was["prediction"], now["answer"] or NO_ANSWER
    tied = unanswerable and abs(was["margin"]) <= ODDS_TOLERANCE
    tied |= NO_ANSWER not in {recorded, served} and was["best_score"] - was["second_score"] <= 2 * TOLERANCE
    if served != recorded and not tied:
        return f"{recorded or 'no answer'!r} was recorded, {served or 'no answer'!r} is served"
    apart = abs(was["score"] - now["score"])
    if not apart <= TOLERANCE and not tied:  # NaN is a difference, too
        return f"the probability differs by {apart:.2g}"
    return None
