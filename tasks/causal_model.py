"""Decoder-only models that learn to write: loaded, and the likelihood of what they should write.

Logits are made for the tokens that are learnt alone, some at a time: with a vocabulary of 50,000 they are most of the
memory, and most tokens of a conversation are not learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tasks.families import IGNORED
from tasks.layers import bare

LOGITS = 1 << 26
"""Most logits at a time: 256 MiB in float32."""
CHANGED_AFTERWARDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""What architectures do to logits behind the output layer, as their configurations call it."""

GIVEN = ("input_ids", "attention_mask", "position_ids", "places", "found_at")
"""What of a batch the model is given."""


def load(base: str, meta: Mapping[str, Any], **options: Any) -> torch.nn.Module:
    """The base model, weights in float32; `options` go to `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, **options
    )
    config: Any = model.config
    config.pad_token_id = meta["pad_token_id"]
    return model


def losses(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of every wanted token, and the row that each is of; both `[wanted]`, float32 and int64.

    Args:
        model: As `load` gave it, adapters and all.
        batch: `input_ids`, `attention_mask` and `labels`, `[rows, width]`, padded on the right; or packed, see
            `tasks.packing.packed`.
    """
    labels = batch["labels"][:, 1:]
    rows, places = (labels != IGNORED).nonzero(as_tuple=True)
    wanted = labels[rows, places]
    row_of = batch["row_of"][places] if "row_of" in batch else rows
    given = {name: batch[name] for name in GIVEN if name in batch}
    inner: Any = bare(model)
    if any(getattr(inner.config.get_text_config(), name, None) not in {None, 1} for name in CHANGED_AFTERWARDS):
        logits: torch.Tensor = inner(**given, use_cache=False).logits[rows, places]
        return cross_entropy(logits.float(), wanted, reduction="none"), row_of
    states: torch.Tensor = inner.base_model(**given, use_cache=False).last_hidden_state[rows, places]
    head = inner.get_output_embeddings()
    size = max(1, LOGITS // inner.config.get_text_config().vocab_size)
    parts = list(zip(torch.split(states, size), torch.split(wanted, size), strict=True))
    keep = len(parts) == 1 or not torch.is_grad_enabled()
    found = [_of(head, *part) if keep else checkpoint(_of, head, *part, use_reentrant=False) for part in parts]
    return torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32), row_of


def _of(head: torch.nn.Module, states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = cross_entropy(head(states).float(), wanted.long(), reduction="none")
    return found
