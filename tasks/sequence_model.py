"""Models that say something of a whole sequence: an encoder or a decoder under a head, as transformers makes them.

Encoders pool as they were trained to; a decoder is read at its last token, which alone has seen all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tasks.families import Meta


def load(base: str, meta: Meta, names: Sequence[str] | None, problem_type: str, **options: Any) -> torch.nn.Module:
    """The pretrained model under a head, weights in float32.

    Args:
        base: Folder or name of the model.
        meta: The task's; `pad_token_id` is what batches are padded with.
        names: Of what the head gives; none for one number without a name.
        problem_type: As transformers calls it.
        options: Of `from_pretrained`.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    named = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1 if names is None else len(names),
        problem_type=problem_type,
        dtype=torch.float32,
        use_safetensors=True,
        **named,
        **options,
    )
    config: Any = model.config
    # By this token a decoder's head finds the last one of the text, whatever its config said of padding.
    config.pad_token_id = meta["pad_token_id"]
    config.use_cache = False  # of keys and values, for tokens that are never generated
    return model


def logits(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the head gives, `[batch, outputs]` float32."""
    found: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found.float()
