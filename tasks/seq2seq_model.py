"""Models with an encoder that reads and a decoder that writes: loaded, and the likelihood of what they should write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tasks.families import IGNORED
from tasks.layers import bare


def load(base: str, meta: Mapping[str, Any], **options: Any) -> torch.nn.Module:
    """The base model, weights in float32; `options` go to `from_pretrained`."""
    from transformers import AutoModelForSeq2SeqLM

    model: torch.nn.Module = AutoModelForSeq2SeqLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, **options
    )
    config: Any = model.config
    config.pad_token_id = meta["pad_token_id"]
    begin = (meta.get("languages") or {}).get("generation", {}).get("decoder_start_token_id")
    if begin is not None:
        config.decoder_start_token_id = begin
    return model


def losses(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of every wanted token, and the row that each is of; both `[wanted]`, float32 and int64.

    Args:
        model: As `load` gave it, adapters and all.
        batch: `input_ids`, `attention_mask`, `[rows, width]`, and `labels`, `[rows, own width]`: what is to be written.
    """
    labels = batch["labels"]
    rows, places = (labels != IGNORED).nonzero(as_tuple=True)
    inner: Any = bare(model)
    found = inner(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=shifted(labels, inner.config),
        use_cache=False,
    )
    logits: torch.Tensor = found.logits[rows, places]
    return cross_entropy(logits.float(), labels[rows, places].long(), reduction="none"), rows


def shifted(labels: torch.Tensor, config: Any) -> torch.Tensor:
    """What the decoder is given: its start, then all that is wanted but the last token of each row."""
    start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.pad_token_id
    given = labels.new_full(labels.shape, int(start))
    given[:, 1:] = labels[:, :-1]
    return given.masked_fill(given == IGNORED, int(config.pad_token_id)).long()
