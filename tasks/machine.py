"""What this machine can do, read without loading torch: the plan depends on it, so it is part of the plan's key."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Processor flags, x86 and Arm, that mean bfloat16 matrix products in hardware."""


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the processor; empty where the system does not list them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def cores() -> int:
    """Processor cores this process may use: its affinity, cut to the control group's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            available = min(available, max(1, int(allowed) // int(period)))
    return available


def accelerators() -> list[str]:
    """Names of the NVIDIA GPUs this process may see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model:")]
    return [line.partition(":")[2].strip() for line in models]


def fingerprint() -> dict[str, object]:
    """What the plan depends on."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": cores(),
        "bf16": bool(cpu_flags() & BF16_FLAGS),
        "accelerators": accelerators(),
    }
