"""Where things are in a model, whatever its architecture: layers, linear modules, feed-forward outputs, what is new.

A transformers model holds its layers in a `ModuleList`, an encoder-decoder in two. Names of modules and parameters are
those of the model as it was loaded, before any adapter. Does not cover models that share one layer's weights among all
(ALBERT): those have one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

KEYS_AND_VALUES = frozenset(
    {"key", "k", "k_proj", "k_lin", "key_proj", "value", "v", "v_proj", "v_lin", "value_proj"}
    | {"query_key_value", "qkv", "qkv_proj", "Wqkv", "c_attn"}  # one matrix for queries, keys and values
)
"""What architectures call the projections to keys and values."""
ATTENTION = "att"
"""Is in the name of every attention module, in lower case."""
ATTENTION_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate")
"""What configurations call the share of attention that is dropped while a model learns."""


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of these modules, or a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def stacks(model: nn.Module, heads: Iterable[str]) -> dict[str, nn.ModuleList]:
    """Name → layers, from the bottom up: every outermost list of modules with linear parts, outside the heads."""
    known, found = tuple(heads), dict[str, nn.ModuleList]()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not within(name, (*found, *known)) and _has_linear(module):
            found[name] = module
    return found


def layers_above(model: nn.Module, heads: Iterable[str]) -> dict[str, int]:
    """Parameter → how many layers lie between its layer and the head; empty where the model has no layers.

    The top layer, the head and what comes behind the layers (a pooler, a final norm) have 0, embeddings as many as
    there are layers. Each stack of an encoder-decoder is counted on its own.
    """
    known = tuple(heads)
    lists = stacks(model, known)
    behind = {name for stack in lists for name in _behind(model, stack)} | {*known}
    owners = [stack.rpartition(".")[0] for stack in lists]
    bottom = max((len(layers) for layers in lists.values()), default=0)
    above, layers_seen = dict[str, int](), False
    for name, _ in model.named_parameters():
        stack = next((stack for stack in lists if within(name, [stack])), None)
        if stack is not None:
            layers_seen = True
            above[name] = len(lists[stack]) - 1 - int(name.removeprefix(f"{stack}.").partition(".")[0])
            continue
        follows = layers_seen and not within(name, owners) and not _embeds(model, name.rpartition(".")[0])
        above[name] = 0 if follows or within(name, behind) else bottom
    return above if lists else {}


def linear_modules(model: PreTrainedModel, heads: Iterable[str]) -> list[str]:
    """Every linear module outside the heads, but for the one that gives the vocabulary's logits."""
    known, output = tuple(heads), model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and module is not output and not within(name, known)
    ]


def keys_and_values(model: nn.Module, heads: Iterable[str]) -> list[str]:
    """The projections to keys and values in every layer."""
    return [name for _, layer in _layers(model, heads) for name in layer if name.rpartition(".")[2] in KEYS_AND_VALUES]


def feed_forward_outputs(model: PreTrainedModel, heads: Iterable[str]) -> list[str]:
    """The last linear module of every layer's feed-forward part, which leads back to the hidden size."""
    hidden, found = model.config.get_text_config().hidden_size, []
    for layer, parts in _layers(model, heads):
        outside = [name for name in parts if ATTENTION not in name.removeprefix(layer).lower()]
        if outside and _out_features(model.get_submodule(outside[-1])) == hidden:
            found.append(outside[-1])
    return found


def newly_made(model: nn.Module, heads: Iterable[str]) -> list[str]:
    """Modules outside the heads whose weights the base model's files lack, such as a pooler: they are random.

    transformers marks the parameters that it read from a file.
    """
    known = tuple(heads)
    made = {
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if not getattr(parameter, "_is_hf_initialized", False) and not within(name, known)
    }
    return sorted(made)


def with_parameters(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """The innermost modules within these that hold parameters of their own."""
    known = tuple(modules)
    return [
        name
        for name, module in model.named_modules()
        if within(name, known) and any(True for _ in module.parameters(recurse=False))
    ]


def bare(model: nn.Module) -> nn.Module:
    """The model that peft has wrapped, adapters and all; the model itself where it has not."""
    inner: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner


def attention_dropout(model: nn.Module) -> float | None:
    """Share of attention that a model drops while it learns; none where its configuration does not say."""
    inner: Any = bare(model)
    config = inner.config.get_text_config()
    said = [value for name in ATTENTION_DROPOUTS if isinstance(value := getattr(config, name, None), int | float)]
    return max(said, default=None)


def looked_up(model: nn.Module) -> set[int]:
    """Ids of the weights of embeddings, but for those that the output layer multiplies by as well."""
    inner = bare(model)
    output = inner.get_output_embeddings() if isinstance(inner, PreTrainedModel) else None
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return embeddings - {id(getattr(output, "weight", None))}


def size(parameter: torch.Tensor) -> int:
    """Numbers in a parameter; one of 4 bits packs two into an element."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(packed.shape.numel())


def _layers(model: nn.Module, heads: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Name of each layer, and of its linear modules."""
    for stack, layers in stacks(model, heads).items():
        for number, layer in enumerate(layers):
            name = f"{stack}.{number}"
            yield name, [f"{name}.{part}" for part, module in layer.named_modules() if _is_linear(module)]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _has_linear(module: nn.Module) -> bool:
    return any(_is_linear(part) for part in module.modules())


def _out_features(module: nn.Module) -> object:
    return module.nf if isinstance(module, Conv1D) else module.out_features


def _behind(model: nn.Module, stack: str) -> list[str]:
    """What the stack's owner holds behind its layers, such as a final norm; nothing where embeddings are among it.

    DeBERTa holds the embeddings of relative positions there, and their norm: every layer reads them.
    """
    owner, _, own_name = stack.rpartition(".")
    children = [name for name, _ in model.get_submodule(owner).named_children()]
    after = [f"{owner}.{name}".removeprefix(".") for name in children[children.index(own_name) + 1 :]]
    return [] if any(_embeds(model, name) for name in after) else after


def _embeds(model: nn.Module, module: str) -> bool:
    return "embed" in module.lower() or isinstance(model.get_submodule(module), nn.Embedding)
