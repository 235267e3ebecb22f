"""The weights that serve: what adapters learnt, merged into the model, and shown to predict what they predicted.

Does not cover a model that serves with its adapters beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from schemas.errors import Fault
from tasks.batches import ALL, Ints, TokenTable, micro_batches
from tasks.families import Family, Loss, Meta
from tasks.layers import bare
from tasks.methods import learnt
from tasks.predict import PREDICT_TOKENS, Floats

SAMPLE_ROWS = 512
"""Validation rows that are predicted before and after merging."""
SAMPLE_TOKENS = 32_768
"""Tokens up to which there are so many: fewer rows where they are long."""
SAMPLE_TEXTS = 8
"""Validation rows that are answered before and after merging, where models write."""
SAMPLE_NEW_TOKENS = 32
"""Most tokens of such an answer."""
TOLERANCE = 1e-3
"""Largest difference of a probability, or of a larger number's share: sums in another order differ by 1e-6."""


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapters merged into weights of 32 bits, and the head that learnt in its place."""
    if any(_packed(module) for module in model.modules()):
        model = _unpacked(model)
    whole: PreTrainedModel = model.merge_and_unload()
    return whole


def sample_outputs(model: nn.Module, family: Family, table: TokenTable) -> Floats:
    """The family's outputs in float32 for rows spread evenly over a table, one after the other.

    Args:
        model: On its device; it is put into evaluation mode.
        family: Knows what an output is.
        table: The rows.
    """
    model.eval()
    compute_in_float32(model)
    device = next(model.parameters()).device
    found: list[Floats] = []
    with torch.inference_mode():
        for rows in micro_batches(_sample(table.lengths), table.lengths, PREDICT_TOKENS[device.type]):
            batch = {name: tensor.to(device) for name, tensor in table.batch(rows).items()}
            outputs, _ = family.outputs(model, batch, Loss())
            found += [np.ravel(output) for output in outputs]
    return np.concatenate(found)


def sample_texts(model: nn.Module, family: Family, table: TokenTable, folder: Path, meta: Meta) -> dict[str, list[Any]]:
    """What the model writes to a few rows spread evenly over a table, the likeliest token each time.

    Args:
        model: As `sample_outputs` left it.
        family: One that writes.
        table: The rows.
        folder: Where the tokenizer is.
        meta: The task's.
    """
    rows = np.linspace(0, len(table) - 1, min(SAMPLE_TEXTS, len(table))).astype(np.int64)
    columns = {name: [values[row] for row in rows] for name, values in table.columns_of(ALL).items()}
    plain = {**meta, "generation": {"max_new_tokens": SAMPLE_NEW_TOKENS, "num_beams": 1}}
    return dict(family.written(bare(model), folder, columns, plain))


def same_texts(before: Mapping[str, list[Any]], after: Mapping[str, list[Any]], family: Family, meta: Meta) -> int:
    """How many texts are alike; one may differ where two tokens were all but equally likely.

    Raises:
        Fault: One differs for no such reason.
    """
    recorded = pl.DataFrame({"id": [str(place) for place in range(len(before["prediction"]))], **before})
    told = family.disagreements([{"text": text} for text in after["prediction"]], recorded, meta)
    if told:
        raise Fault(f"merging the adapters changed a text: {told[0][1]}")
    return sum(was == now for was, now in zip(before["prediction"], after["prediction"], strict=True))


def compute_in_float32(model: nn.Module) -> None:
    """Have 4-bit weights multiplied as the merged ones will be."""
    for module in model.modules():
        if _packed(module):
            module.compute_dtype = torch.float32  # type: ignore[assignment]


def difference(before: Floats, after: Floats) -> float:
    """Largest difference of an output, relative where the output is larger than 1.

    Raises:
        Fault: It is beyond the tolerance, or no number.
    """
    moved = after != before  # what is impossible, minus infinity, is so before and after
    if not moved.any():
        return 0.0
    was, now = before[moved], after[moved]
    with np.errstate(invalid="ignore"):  # from impossible to possible is no number, and refused as such
        largest = float(np.max(np.abs(now - was) / np.maximum(1.0, np.abs(was))))
    if not largest <= TOLERANCE:
        raise Fault(f"merging the adapters changed a prediction by {largest:.2g}, more than {TOLERANCE:g}")
    return largest


def _sample(lengths: Ints) -> Ints:
    rows = min(SAMPLE_ROWS, len(lengths), max(1, int(SAMPLE_TOKENS / lengths.mean())))
    return np.linspace(0, len(lengths) - 1, rows).astype(np.int64)


def _packed(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit" and not hasattr(module, "base_layer")


def _unpacked(model: PeftModel) -> PeftModel:
    """The same model with its 4-bit weights written out: merged in 4 bits, what was learnt would be rounded away."""
    from bitsandbytes.functional import dequantize_4bit

    config, state = model.peft_config["default"], learnt(model)
    base = model.unload()
    for name in [name for name, module in base.named_modules() if _packed(module)]:
        packed = base.get_submodule(name)
        weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state).float()
        full = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
        full.weight, full.bias = nn.Parameter(weight, requires_grad=False), packed.bias
        base.set_submodule(name, full)
    base.is_loaded_in_4bit = False
    again = get_peft_model(base, config)
    again.load_state_dict(state, strict=False)
    return again
