"""What makes predicting faster on a CPU, where the answers stay the same but for rounding.

- Linear layers in float32 on AMD processors: PyTorch hands their products to MKL, which runs AVX2 code on processors
  other than Intel's; oneDNN, which PyTorch brings, too, uses AVX-512 wherever there is any: 2.2 times the rate on a Zen
  5 core. GELU, where it follows, is computed on the way.
- Attention of short rows by plain products: fused attention cuts its work into a part for each row and head, and such a
  part is too small to pay for itself. 1.1 times as many short texts a second.

This module travels with every model; it imports nothing of ours.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CPU_INFO = Path("/proc/cpuinfo")
VENDOR = "AuthenticAMD"
SHORT = 96
"""Tokens of a row up to which plain attention is the faster one; at 256 it takes twice as long."""
BY_WIDTH = "hone_by_width"
"""Name of `attention` in transformers."""


class Linear(torch.nn.Linear):
    """A layer that oneDNN computes where no gradient is wanted; else PyTorch's own."""

    activation = "none"
    """What is computed of each output on the way: "none", or "gelu"."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # as torch calls it
        """`[…, in_features]` to `[…, out_features]`."""
        known = torch.float32 == input.dtype == self.weight.dtype and input.device.type == "cpu"
        if known and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
            how = "none" if self.activation == "gelu" else ""  # GELU as it is defined, not approximated by tanh
            found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                input, self.weight, self.bias, self.activation, [], how
            )
            return found
        plain = super().forward(input)
        return torch.nn.functional.gelu(plain) if self.activation == "gelu" else plain


def quickened(model: torch.nn.Module) -> torch.nn.Module:
    """The model, for predicting, on its device: computed otherwise where that is faster, elsewhere as it is."""
    if half_used():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Linear
        for module in model.modules():
            _join_gelu(module)
    _attend_by_width(model)
    return model


def half_used() -> bool:
    """Whether this processor multiplies float32 faster than MKL knows."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and VENDOR in _vendor() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _join_gelu(module: torch.nn.Module) -> None:
    """Have the layer compute the GELU that follows it, in a feed-forward block as BERT and its kin have it."""
    layer, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
    if isinstance(layer, Linear) and getattr(activation, "act", None) is torch.nn.functional.gelu:
        layer.activation = "gelu"
        module.intermediate_act_fn = torch.nn.Identity()


def _attend_by_width(model: torch.nn.Module) -> None:
    """Have an encoder of transformers, on a CPU, choose its attention for every batch; others stay as they are.

    A choice is made inside each call, on the mask of fused attention, so that threads may share a model.
    """
    fused = getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa"
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if not fused or not on_cpu or model.can_generate():  # type: ignore[operator]  # transformers', which is not typed
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BY_WIDTH, attention)
    AttentionMaskInterface.register(BY_WIDTH, sdpa_mask)
    model.set_attn_implementation(BY_WIDTH)  # type: ignore[operator]


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, scaling: float | None = None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers asks for it: plain for short rows, else fused.

    Args:
        module: The layer.
        query: `[batch, heads, tokens, head]`.
        key: Of the same shape, or with fewer heads.
        value: As `key`.
        attention_mask: `[batch, 1, tokens, tokens]`, true where a token is attended to; none where all are.
        scaling: Of the products; default: by the root of the size of a head.
        more: What fused attention is given.

    Returns:
        `[batch, tokens, heads, head]`, and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Whether it is an export comes first: such has rows of any width, and asking for one would fix it.
    fused = torch.compiler.is_exporting() or torch.is_grad_enabled()
    if fused or not _plain(module, query, key, attention_mask, more):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return found
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2).contiguous(), None


def _plain(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, more: Mapping[str, Any]
) -> bool:
    """Whether plain products are the faster way to this attention, and a way that is known."""
    causal = getattr(module, "is_causal", True) if more.get("is_causal") is None else more["is_causal"]
    known = mask is None or mask.dtype == torch.bool
    short = query.shape[2] <= SHORT and query.shape == key.shape
    return short and known and not causal and more.get("position_bias") is None


def _vendor() -> str:
    """What the processor says of its maker."""
    return CPU_INFO.read_text(encoding="ascii", errors="replace") if CPU_INFO.exists() else platform.processor()
