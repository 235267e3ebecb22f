"""Answers as spans of a context: what a model reads of it, which spans it likes best, and where they lie in the text.

A question and its context are read in windows that overlap, the question in front of each. Positions are characters
(Unicode code points) of the context. Training, evaluation and serving all come here; this module travels with every
model and imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Encoding, Tokenizer

N_BEST = 20
"""Best spans that are kept of each window, and then of each context."""
OUTSIDE = -1
"""Place of a token that is not of the context; padding has a negative one, too."""
NUMBERS = 1 + 3 * N_BEST
"""What is kept of a window: the score of no answer; score, begin and end of each of its best spans."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its context, as a model reads them.

    Attributes:
        input_ids: Special tokens included.
        token_type_ids: Which of the two texts each token is of, for models that are told.
        begins: First character of each token in the context; `OUTSIDE` for the other tokens.
        ends: One after its last character.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    begins: list[int]
    ends: list[int]


def windows(
    backend: Tokenizer, questions: Sequence[str], contexts: Sequence[str], *, longest: int, stride: int, question: int
) -> list[list[Window]]:
    """The windows of every context, from its beginning on.

    Args:
        backend: Tokenizer that neither cuts nor pads; it must not be in use elsewhere meanwhile.
        questions: One for each context.
        contexts: What answers are looked for in.
        longest: Most tokens of a window, special tokens included.
        stride: Tokens of the context that neighbouring windows share.
        question: Most tokens of a question; the rest of it is not read.
    """
    pairs = list(zip(_cut(backend, questions, question), contexts, strict=True))
    backend.enable_truncation(longest, stride=stride, strategy="only_second", direction="right")
    try:
        found = backend.encode_batch(pairs)
    finally:
        backend.no_truncation()
    return [[_window(encoding) for encoding in (first, *first.overflowing)] for first in found]


def pair_lengths(backend: Tokenizer, questions: Sequence[str], contexts: Sequence[str], question: int) -> list[int]:
    """Tokens of each question and its whole context, special tokens included."""
    pairs = zip(_cut(backend, questions, question), contexts, strict=True)
    return [len(encoding.ids) for encoding in backend.encode_batch(list(pairs))]


def _cut(backend: Tokenizer, questions: Sequence[str], most: int) -> list[str]:
    """The questions, those with more tokens without their ends."""
    encodings = backend.encode_batch(list(questions), add_special_tokens=False)
    return [
        text if len(encoding.ids) <= most else text[: encoding.offsets[most - 1][1]]
        for text, encoding in zip(questions, encodings, strict=True)
    ]


def _window(encoding: Encoding) -> Window:
    begins, ends = [], []
    for part, (begin, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        inside = part == 1 and begin < end
        begins.append(begin if inside else OUTSIDE)
        ends.append(end if inside else OUTSIDE)
    return Window(encoding.ids, encoding.type_ids, begins, ends)


def told_types(config: Any) -> bool:
    """Whether a model is told by `token_type_ids` which text a token is of."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def masked(logits: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """`[batch, tokens]` float32: minus infinity where no answer can begin or end, which is neither context nor first.

    The first token stands for no answer.
    """
    allowed = begins >= 0
    allowed[:, 0] = True
    return logits.float().masked_fill(~allowed, -math.inf)


def best_spans(
    starts: torch.Tensor, ends: torch.Tensor, places: tuple[torch.Tensor, torch.Tensor], most_tokens: int
) -> torch.Tensor:
    """The score of no answer and the best spans of each window, `[batch, NUMBERS]` float32; see `merged`.

    Every span of up to `most_tokens` tokens is scored, by the sum of two logits; where there are fewer than `N_BEST`,
    the rest is filled up with scores of minus infinity.

    Args:
        starts: Masked logits of the first token, `[batch, tokens]`.
        ends: Those of the last token.
        places: `begins` and `ends` of the tokens, `[batch, tokens]` each.
        most_tokens: Longest answer.
    """
    import torch

    width = starts.shape[1]
    nothing = starts[:, 0] + ends[:, 0]
    starts, ends = starts.clone(), ends.clone()
    starts[:, 0] = ends[:, 0] = -math.inf
    most_tokens = min(most_tokens, width)
    later = torch.nn.functional.pad(ends, (0, most_tokens - 1), value=-math.inf)
    # [batch, tokens, length - 1]: the span from a token that has so many further ones
    scores = starts.unsqueeze(-1) + later.unfold(1, most_tokens, 1)
    found, places_of = scores.flatten(1).topk(min(N_BEST, width * most_tokens), dim=1)
    first = places_of // most_tokens
    last = (first + places_of % most_tokens).clamp(max=width - 1)
    best = torch.stack([found, places[0].gather(1, first).float(), places[1].gather(1, last).float()], dim=-1)
    filled = torch.nn.functional.pad(best.flatten(1), (0, NUMBERS - 1 - 3 * found.shape[1]), value=-math.inf)
    return torch.cat([nothing.unsqueeze(1), filled], dim=1)


@dataclass(frozen=True)
class Ranked:
    """What a model thinks of a context, over all its windows.

    Attributes:
        spans: (begin, end) of the best spans, the best first; empty where the context has no token.
        probabilities: Of each of these.
        nothing: Probability that there is no answer; 0 for a model that always answers.
        odds: Score of no answer less that of the best span.
    """

    spans: list[tuple[int, int]]
    probabilities: list[float]
    nothing: float
    odds: float

    def decided(self, threshold: float | None) -> tuple[tuple[int, int] | None, float]:
        """The best span, or none, and how probable that is.

        Args:
            threshold: Odds above which there is no answer; none: there always is one.
        """
        if not self.spans or (threshold is not None and self.odds > threshold):
            return None, self.nothing
        return self.spans[0], self.probabilities[0]


def merged(numbers: np.ndarray[Any, Any], context: str, *, unanswerable: bool) -> Ranked:
    """The best spans of a context out of those of its windows.

    Where windows overlap, a span counts by its better score. No answer must be found in every window, so that its score
    is the least one of all windows. A probability is that among the spans kept and, where there may be none, no answer.

    Args:
        numbers: What `best_spans` gave of each window, `[windows, NUMBERS]`.
        context: To which characters belong.
        unanswerable: Whether there may be no answer.
    """
    found: dict[tuple[int, int], float] = {}
    for score, begin, end in numbers[:, 1:].reshape(-1, 3).tolist():
        span = trimmed(context, int(begin), int(end)) if score > -math.inf else None
        if span is not None:
            found[span] = max(score, found.get(span, -math.inf))
    best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:N_BEST]
    nothing = float(numbers[:, 0].min())
    if not best:
        return Ranked([], [], 1.0, 0.0)
    top = max(best[0][1], nothing) if unanswerable else best[0][1]
    powers = [math.exp(score - top) for _, score in best]
    power = math.exp(nothing - top) if unanswerable else 0.0
    total = sum(powers) + power
    return Ranked([span for span, _ in best], [p / total for p in powers], power / total, nothing - best[0][1])


def trimmed(context: str, begin: int, end: int) -> tuple[int, int] | None:
    """The span without white space at its ends; none where nothing is left."""
    text = context[begin:end]
    begin += len(text) - len(text.lstrip())
    end -= len(text) - len(text.rstrip())
    return (begin, end) if begin < end else None


def threshold_of(about: Mapping[str, Any], calibration: Mapping[str, Any]) -> float | None:
    """Odds above which a model says that there is no answer; none for one that always answers.

    Args:
        about: What training knew of the task.
        calibration: What was fitted on validation.
    """
    return float(calibration.get("no_answer_above", 0.0)) if about["unanswerable"] else None
