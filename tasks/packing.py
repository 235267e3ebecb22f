"""Rows one after the other in one sequence, without padding between them: each attends to itself alone.

Everything but attention works token by token, so padding is neither computed nor kept for a backward pass. Attention is
computed row by row, padded behind each row's end, where a decoder never looks; it needs no mask. For decoder-only
models: what an encoder reads has no direction in which nobody looks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.batches import EpochBatches, Ints, micro_batches, padded_width, shape_of
from tasks.families import IGNORED
from tasks.layers import bare

ATTENTION = "packed"
"""Name by which transformers knows attention within rows."""
WORTH_IT = 0.1
"""Share of padding from which on rows are packed unasked."""
WORTH_IT_BESIDE_PLAIN = 0.4
"""The same where rows would else learn by plain attention, which is the faster by 1.3 to 1.6."""
SAME = 1e-3
"""Largest difference of a hidden state that rounding explains, as a share of the largest one."""

Batch = Mapping[str, torch.Tensor]


def wasted(lengths: Ints, global_batch_size: int, budget: int) -> float:
    """Share of what is computed that would be padding, were rows not packed: on one epoch's batches."""
    batches = [np.asarray(rows) for rows in EpochBatches(lengths, global_batch_size, seed=0)]
    cuts = [cut for rows in batches for cut in micro_batches(rows, lengths, budget)]
    computed = sum(math.prod(shape_of(lengths[cut])) for cut in cuts)
    return 1 - float(lengths.sum()) / computed


def packed(batch: Batch) -> dict[str, torch.Tensor]:
    """The rows of a padded batch in one sequence.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, `[rows, width]`, padded on the right.

    Returns:
        `input_ids`, `labels` and `position_ids`, `[1, tokens]`, filled up to a length that recurs; `places` `[rows,
        width]`, where each token of a row stands, any place behind the row's end; `row_of` `[tokens]`, the row of each
        token; `found_at` `[tokens]`, where of `rows * width` it came from.
    """
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    tokens = int(lengths.sum())
    filled = padded_width(tokens) - tokens
    starts = lengths.cumsum(0) - lengths
    within = torch.arange(mask.shape[1], device=mask.device)
    rows, positions = mask.nonzero(as_tuple=True)
    fill = nn.functional.pad
    return {
        "input_ids": fill(batch["input_ids"][mask], (0, filled))[None],
        "labels": fill(batch["labels"][mask], (0, filled), value=IGNORED)[None],
        "position_ids": fill(positions, (0, filled))[None],
        "places": torch.where(mask, starts[:, None] + within, 0),
        "found_at": fill(rows * mask.shape[1] + positions, (0, filled)),
        "row_of": fill(rows, (0, filled)),
    }


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    places: torch.Tensor | None = None,
    found_at: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row to itself.

    Args:
        module: The layer.
        query: `[1, heads, tokens, size]`.
        key: Likewise, maybe of fewer heads.
        value: Likewise.
        attention_mask: None.
        places: See `packed`.
        found_at: See `packed`.
        sliding_window: How far back a token looks, where that is not all the way.
        options: Of `sdpa_attention_forward`.

    Returns:
        `[1, tokens, heads, size]`.

    Raises:
        NotImplementedError: The layer asks for what is not causal attention of rows, or does not say where they are.
    """
    if places is None or found_at is None or len(query) != 1 or attention_mask is not None:
        raise NotImplementedError(f"{type(module).__name__} does not hand on where rows are")
    if any(options.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} changes attention in a way of its own")
    if sliding_window is not None and sliding_window < places.shape[1]:
        width = torch.arange(places.shape[1], device=places.device)
        back = width[:, None] - width[None, :]
        attention_mask = ((back >= 0) & (back < sliding_window))[None, None]
    apart = [_rows_apart(states, places) for states in (query, key, value)]
    found, _ = sdpa_attention_forward(module, *apart, attention_mask, **{**options, "is_causal": True})
    # [rows, width, heads, size]
    return found.flatten(0, 1)[found_at][None], None


def _rows_apart(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`[rows, heads, width, size]` of `[1, heads, tokens, size]`."""
    heads, _, size = states.shape[1:]
    gathered = states[0].transpose(0, 1)[places.flatten()]
    return gathered.view(*places.shape, heads, size).transpose(1, 2)


def no_mask(*_: Any, **__: Any) -> None:
    """Rows say themselves where they are."""


def packs(model: nn.Module, batch: Batch) -> str | None:
    """Why this model cannot be taught packed rows; none where it says of this batch what it says of its rows apart.

    Args:
        model: In evaluation mode, its attention any but `ATTENTION`.
        batch: See `packed`; rows of several lengths.
    """
    inner: Any = bare(model)
    if inner.config.is_encoder_decoder:
        return "it has an encoder"
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return "it cannot be told positions"
    before, asked = inner.config._attn_implementation, set[nn.Module]()

    def noting(module: nn.Module, *states: Any, **options: Any) -> Any:
        asked.add(module)
        return attend(module, *states, **options)

    together = packed(batch)
    with torch.inference_mode():
        apart = _states(inner, {"attention_mask": batch["attention_mask"], "input_ids": batch["input_ids"]})
        AttentionInterface.register(ATTENTION, noting)
        try:
            inner.set_attn_implementation(ATTENTION)
            named = ("input_ids", "position_ids", "places", "found_at")
            found = _states(inner, {name: together[name] for name in named})
        except (NotImplementedError, TypeError, ValueError, KeyError) as error:
            return str(error)
        finally:
            inner.set_attn_implementation(before)
            AttentionInterface.register(ATTENTION, attend)
    if not asked:
        return "its attention is its own"
    tokens = int(batch["attention_mask"].sum())
    expected = apart.flatten(0, 1)[together["found_at"][:tokens]]
    far = float((found[0, :tokens] - expected).abs().max() / expected.abs().max())
    return None if far < SAME else f"rows that are packed get other outputs, by {far:.2g} of the largest"


def _states(model: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    states: torch.Tensor = model.base_model(**given, use_cache=False).last_hidden_state
    return states


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, no_mask)
