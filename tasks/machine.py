"""What this machine can do, read without loading torch: the plan depends on it, so it is part of the plan's key."""

from __future__ import annotations

import ctypes
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


def main_memory() -> int:
    """Bytes of main memory this process may use: the machine's, cut to its control group's limit."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (allowed := limit.read_text().strip()) != "max":
            found = min(found, int(allowed))
    return found


def accelerators() -> list[str]:
    """Names of the NVIDIA GPUs this process may see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model:")]
    return [line.partition(":")[2].strip() for line in models]


@cache
def _c_library() -> ctypes.CDLL | None:
    """glibc, where this system has it."""
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None


def release_free_memory() -> None:
    """Give the pages of freed memory back: batches of many sizes leave the heap full of holes (2 GiB on the demo)."""
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


def allocated_memory() -> int | None:
    """Bytes this process has allocated and not freed; none where the system does not say."""
    library = _c_library()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _MallocInfo
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def fingerprint() -> dict[str, object]:
    """What the plan depends on."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": cores(),
        "bf16": bool(cpu_flags() & BF16_FLAGS),
        "accelerators": accelerators(),
        "memory_gib": main_memory() >> 30,
    }
