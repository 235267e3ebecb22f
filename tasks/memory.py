"""What training will need of memory, counted before the first step on a few short rows.

What the backward pass keeps is counted tensor by tensor, not measured, so that two machines of one kind decide alike.
Does not know of what other programs take.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas.recipe import Train
from tasks.machine import main_memory

SHARE = 0.9
"""Of the machine's memory that training may need."""
RUNTIME_BYTES = 700 << 20
"""Of the process, libraries and all, before there is a model."""
OPTIMISER_BYTES = {"adamw": 8.0, "adafactor": 0.1, "muon": 4.5, "adamw-8bit": 2.0}
"""State of an optimiser for each parameter that learns, beside the gradient's 4 bytes."""
HOLES = {"cpu": 1.5}
"""What the backward pass keeps takes so many times its bytes: a heap that holds tensors of many sizes has holes between
them. Of a language model on two cores, measured: docs/llm.md."""
FLOAT32_BYTES = 4
GIB = 2.0**30


@dataclass(frozen=True)
class Footprint:
    """What training needs, in bytes.

    Attributes:
        weights: Every parameter and buffer.
        learning: Gradients and the optimiser's state.
        fixed: Kept for a backward pass whatever its rows: weights in other precisions.
        per_token, per_pair: Kept for it of a row of w tokens: w times the one and w squared times the other.
        layers, hidden: Of the model, for what is kept where a layer's activations are made anew.
        holes: See `HOLES`.
    """

    weights: int
    learning: int
    fixed: int
    per_token: float
    per_pair: float
    layers: int
    hidden: int
    holes: float = 1.0

    def of_row(self, width: int, *, remade: bool = False) -> float:
        """What a row of so many tokens keeps.

        Args:
            width: Tokens.
            remade: Activations of each layer are made anew, so that only what goes into it is kept.
        """
        kept = self.per_token * width + self.per_pair * width**2
        if not remade:
            return kept
        return kept / max(1, self.layers) + width * self.layers * self.hidden * FLOAT32_BYTES

    def needed(self, rows: float, width: int, *, remade: bool = False) -> float:
        """All of it, at the worst moment: a micro-batch, or when the saved model is loaded beside the learnt one."""
        passing = self.passing(rows, width, remade=remade)
        return RUNTIME_BYTES + self.weights + self.learning + max(passing, self.weights)

    def passing(self, rows: float, width: int, *, remade: bool = False) -> float:
        """What a micro-batch keeps for its backward pass."""
        return self.holes * (self.fixed + rows * self.of_row(width, remade=remade))


def footprint(
    model: nn.Module, train: Train, forward: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    batches: Sequence[tuple[int, Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]],
) -> Footprint:  # fmt: skip
    """Count what some rows keep for the backward pass.

    Args:
        model: Ready to learn by its method.
        train: The recipe's section.
        forward: Gives the loss of a batch.
        batches: One or two of: width, a batch of one row, a batch of the same row twice.
    """
    config: Any = model.config
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in [*model.parameters(), *model.buffers()]}
    points, fixed = [], 0
    for width, once, twice in batches:
        single, double = _kept(forward, once, weights), _kept(forward, twice, weights)
        points.append((width, double - single))
        fixed = max(fixed, 2 * single - double)
    per_token, per_pair = _fitted(points)
    text = config.get_text_config()
    return Footprint(
        weights=sum(weights.values()),
        learning=int(learning * (FLOAT32_BYTES + OPTIMISER_BYTES[train.optimizer])),
        fixed=fixed,
        per_token=per_token,
        per_pair=per_pair,
        layers=int(getattr(text, "num_hidden_layers", 1)),
        hidden=int(getattr(text, "hidden_size", 0)),
        holes=HOLES.get(next(model.parameters()).device.type, 1.0),
    )


def memory(device: str) -> int:
    """Bytes that a device has."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return main_memory()


def stored_parameters(base: str) -> int | None:
    """Parameters in the safetensors of a folder, read from their headers; none where there are no such files."""
    files = sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else []
    if not files:
        return None
    found = 0
    for path in files:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        found += sum(int(torch.Size(shape).numel()) for shape in shapes)
    return found


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / GIB:.1f} GiB"


def _kept(
    forward: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    weights: Mapping[tuple[int, str], int],
) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights apart."""
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # A tensor kept as it is holds the graph that holds it, which nobody would ever free.
        kept = tensor.detach()
        if kept.layout == torch.strided and _place(kept) not in weights:
            seen[_place(kept)] = kept
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def _place(tensor: torch.Tensor) -> tuple[int, str]:
    return tensor.untyped_storage().data_ptr(), str(tensor.device)


def _fitted(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """A and b of a·w + b·w² through one or two points; b is 0 where it would be negative."""
    if len(points) == 2:
        (w1, y1), (w2, y2) = points
        per_pair = (y2 / w2 - y1 / w1) / (w2 - w1)
        if per_pair > 0:
            return y1 / w1 - per_pair * w1, per_pair
    width, kept = points[-1]
    return kept / width, 0.0
