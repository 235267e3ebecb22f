"""Text written token by token: for evaluation and for serving alike, so that what is recorded is what is served.

Prompts of like length go together, as many as a budget of tokens allows, padded on the left. This module travels with
every model; it imports nothing of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

BATCH_TOKENS = 8_192
"""Most tokens of one batch, those still to be written counted."""
MOST_AT_ONCE = 64
"""Most sequences of one batch: beyond that a processor gains nothing."""
HANDED_ON = (
    "num_beams", "length_penalty", "no_repeat_ngram_size", "repetition_penalty", "decoder_start_token_id",
    "forced_bos_token_id",
)  # fmt: skip
"""Settings that are handed to transformers as they are."""
UNSURE = 0.0
"""Margin of what was not chosen by the largest logit alone: drawn, or found by beams."""


@dataclass(frozen=True)
class Written:
    """What the model wrote after a prompt.

    Attributes:
        ids: Its tokens, without the one that ended it.
        ended: Whether it came to an end by itself.
        margin: Smallest distance, over the tokens, of the logit chosen from the next one. Where it is tiny, another
            order of summing may choose another token.
    """

    ids: list[int]
    ended: bool
    margin: float


def write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    *,
    pad: int,
    stop: Sequence[int],
    most_at_once: int = MOST_AT_ONCE,
) -> Iterator[tuple[int, Written]]:
    """What the model writes after each prompt, with the prompt's place; the longest come first.

    Args:
        model: Of transformers, in evaluation mode.
        prompts: Token ids; those of a source text where the model has an encoder.
        settings: `max_new_tokens`, those of `HANDED_ON`, and to draw instead of taking the likeliest token:
            `temperature` above 0, `top_p`, `top_k`; `seed`, so that the same prompts get the same texts.
        pad: Token that fills shorter prompts.
        stop: Tokens that end a text.
        most_at_once: Most prompts of a batch.
    """
    config, beams = _config(settings, pad, stop), settings.get("num_beams") or 1
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
    start = 0
    while start < len(order):
        room = (len(prompts[order[start]]) + settings["max_new_tokens"]) * beams
        places = order[start : start + max(1, min(most_at_once, BATCH_TOKENS // room))]
        with _drawing(settings.get("seed"), start):
            texts = _batch(model, [prompts[place] for place in places], config, stop)
        yield from zip(places, texts, strict=True)
        start += len(places)


def stream(
    model: Any, tokenizer: Any, prompt: Sequence[int], settings: Mapping[str, Any], *, pad: int, stop: Sequence[int]
) -> Iterator[tuple[str, bool | None]]:
    """What a model without an encoder writes after one prompt, in pieces as they come.

    Whoever stops listening stops the writing.

    Args:
        model: Of transformers, in evaluation mode.
        tokenizer: Its own.
        prompt: Token ids.
        settings: See `write`; beams cannot be told before they end, so there are none.
        pad: Token that fills.
        stop: Tokens that end a text.

    Yields:
        Text, and none; at the end what is left of it, and whether it came to an end by itself.
    """
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    listening = _Listening(stop)
    faults: list[BaseException] = []
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)

    def writing() -> None:
        try:
            with torch.inference_mode(), _drawing(settings.get("seed"), 0):
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=_config({**settings, "num_beams": 1}, pad, stop),
                    stopping_criteria=StoppingCriteriaList([listening]),
                    streamer=pieces,
                )
        except BaseException as fault:  # noqa: BLE001  told to whoever listens
            faults.append(fault)
            pieces.end()

    thread = threading.Thread(target=writing, daemon=True)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield piece, None
    finally:
        listening.asked.clear()
        thread.join()
    if faults:
        raise faults[0]
    yield "", listening.ended


class _Listening(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Stops the writing when nobody listens any more, and knows whether a text has ended."""

    def __init__(self, stop: Sequence[int]) -> None:
        self.asked, self.ended = threading.Event(), False
        self.asked.set()
        self._stop = set(stop)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """`[batch]`: whether to stop."""
        del scores
        self.ended = int(input_ids[0, -1]) in self._stop
        return torch.full((len(input_ids),), not self.asked.is_set(), device=input_ids.device)


@contextmanager
def _drawing(seed: int | None, start: int) -> Iterator[None]:
    """Draw by a seed of this batch's own, if there is one, and leave the global one as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed + start)
        yield


def _config(settings: Mapping[str, Any], pad: int, stop: Sequence[int]) -> GenerationConfig:
    temperature = settings.get("temperature") or 0.0
    how: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if temperature > 0:
        more = {"top_p": settings.get("top_p") or 1.0, "top_k": settings.get("top_k") or 0}
        how |= {"do_sample": True, "temperature": temperature, **more}
    chosen = {name: settings[name] for name in HANDED_ON if settings.get(name) is not None}
    return GenerationConfig(
        max_new_tokens=settings["max_new_tokens"],
        pad_token_id=pad,
        eos_token_id=list(stop),
        use_cache=True,
        **how | chosen,
    )


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig, stop: Sequence[int]
) -> list[Written]:
    apart = bool(model.config.is_encoder_decoder)
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), int(config.pad_token_id), device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        if len(prompt):  # a decoder goes on from the right end, an encoder reads from the left
            where = slice(0, len(prompt)) if apart else slice(width - len(prompt), width)
            ids[row, where] = torch.tensor(list(prompt), device=device)
            mask[row, where] = 1
    margin = Margin(stop) if not config.do_sample and config.num_beams == 1 else None
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([margin] if margin else []),
        )
    margins = [UNSURE] * len(prompts) if margin is None else margin.smallest(len(prompts))
    begin = 1 if apart else width
    return [_written(row, stop, each) for row, each in zip(found[:, begin:].tolist(), margins, strict=True)]


def _written(row: list[int], stop: Sequence[int], margin: float) -> Written:
    end = next((place for place, token in enumerate(row) if token in stop), None)
    return Written(row if end is None else row[:end], end is not None, margin)


class Margin(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Looks on, and keeps for each sequence how near the likeliest token ever was to the next one.

    Args:
        stop: Tokens that end a text; what follows them counts no more.
    """

    def __init__(self, stop: Sequence[int]) -> None:
        self._stop = torch.tensor(list(stop))
        self._least: torch.Tensor | None = None
        self._alive: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`[batch, vocabulary]` as it came."""
        best = scores.float().topk(2, dim=-1).values
        apart = best[:, 0] - best[:, 1]
        if self._least is None or self._alive is None:
            self._least, self._alive = apart, torch.ones_like(apart, dtype=torch.bool)
        else:
            self._alive &= ~torch.isin(input_ids[:, -1], self._stop.to(input_ids.device))
            self._least = torch.where(self._alive, torch.minimum(self._least, apart), self._least)
        return scores

    def smallest(self, count: int) -> list[float]:
        """The margin of each sequence."""
        return [UNSURE] * count if self._least is None else [float(each) for each in self._least.cpu()]
