"""Linear layers in float32 on AMD processors, where the library that PyTorch takes for them uses half of each vector.

PyTorch hands float32 products to MKL, which runs AVX2 code on processors other than Intel's; oneDNN, which PyTorch
brings, too, uses AVX-512 wherever there is any: 2.2 times the rate on a Zen 5 core. This module travels with every
model; it imports nothing of ours.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
VENDOR = "AuthenticAMD"


class Linear(torch.nn.Linear):
    """A layer that oneDNN computes where no gradient is wanted; else PyTorch's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # as torch calls it
        """`[…, in_features]` to `[…, out_features]`."""
        known = torch.float32 == input.dtype == self.weight.dtype and input.device.type == "cpu"
        if not known or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return super().forward(input)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return found


def quickened(model: torch.nn.Module) -> torch.nn.Module:
    """The model, for predicting: its linear layers by oneDNN where that is faster, elsewhere as they are."""
    if half_used():
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Linear
    return model


def half_used() -> bool:
    """Whether this processor multiplies float32 faster than MKL knows."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and VENDOR in _vendor() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _vendor() -> str:
    """What the processor says of its maker."""
    return CPU_INFO.read_text(encoding="ascii", errors="replace") if CPU_INFO.exists() else platform.processor()
