"""What this machine can do, read without loading torch: the plan depends on it, so it is part of the plan's key."""

from __future__ import annotations

import ctypes
import os
import platform
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Processor flags, x86 and Arm, that mean bfloat16 matrix products in hardware."""


@dataclass(frozen=True)
class Slot:
    """A part of the machine, for work that is done beside other work.

    Attributes:
        number: From 0.
        cores: Processor cores, by their numbers.
        gpu: The GPU, by its number; none where there is none.
        parts: How many parts there are: each has as much of the main memory.
    """

    number: int
    cores: tuple[int, ...]
    gpu: int | None
    parts: int

    @property
    def environment(self) -> dict[str, str]:
        """What a process that works in it has in its environment."""
        return {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": str(self.gpu)}

    def confine(self, pid: int) -> None:
        """Keep a process that has just been started to the cores."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(pid, self.cores)


slot: ContextVar[Slot | None] = ContextVar("slot", default=None)
"""The part of the machine that this thread's work is for; none: all of it."""


def slots(count: int) -> list[Slot]:
    """The machine in so many parts: cores in turn, and a GPU each as far as there are some."""
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cards = len(accelerators())
    return [
        Slot(
            number,
            tuple(known[number::count]) or (known[number % len(known)],),
            number % cards if cards else None,
            count,
        )
        for number in range(count)
    ]


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
    """Processor cores this process, or this part of the machine, may use: affinity, cut to the group's quota."""
    place = slot.get()
    if place is not None:
        return len(place.cores)
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
    place = slot.get()
    return found if place is None else found // place.parts


def accelerators() -> list[str]:
    """Names of the NVIDIA GPUs this process, or this part of the machine, may see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    place = slot.get()
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model:")]
    found = [line.partition(":")[2].strip() for line in models]
    return found if place is None else found[place.gpu : place.gpu + 1] if place.gpu is not None else []


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
