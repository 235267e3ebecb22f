"""Fine-tuning methods: which parameters learn, what is learnt beside them, at which share of the learning rate.

The head learns under every method, and whatever else of the model the base model's files lack. Only what learns is kept
in checkpoints. What a method cannot do for a model is a mistake of the recipe, told before anything is learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from schemas.errors import EnvironmentMistake, Mistake, Problem
from schemas.recipe import BitFit, Dora, Freeze, FullFineTuning, Ia3, LowRank, Method, Qlora, RankStabilizedLora
from tasks.layers import (
    feed_forward_outputs,
    keys_and_values,
    layers_above,
    linear_modules,
    looked_up,
    newly_made,
    size,
    stacks,
    with_parameters,
    within,
)

BITS_4 = {"quant_type": "nf4", "compress_statistics": True}
"""How QLoRA stores a weight: normal floats of 4 bits, their scales quantised as well."""
NOT_DECAYED = ("ia3_l", "lora_magnitude_vector")
"""Parts of names of parameters that are no weights to be kept small: scales are 1 and lengths are as they were."""
ORIGINAL = "original_module"
"""Name of the frozen copy that peft keeps beside a module which learns whole."""


def apply(method: Method, model: PreTrainedModel, heads: Sequence[str]) -> PreTrainedModel:
    """The model, ready to learn by the method.

    Args:
        method: The recipe's.
        model: As its family loaded it, on the CPU.
        heads: Names of the modules that are the task's.

    Raises:
        Mistake: The method cannot be used for this model, or not on this machine.
    """
    learning = with_parameters(model, [*heads, *newly_made(model, heads)])
    if isinstance(method, FullFineTuning):
        return model
    if isinstance(method, Freeze):
        return _learning_only(model, _top(method, model, learning))
    if isinstance(method, BitFit):
        return _learning_only(model, _biases(model, learning))
    if isinstance(method, Ia3):
        return _with_scales(model, learning)
    return _with_adapters(method, model, learning)


def rate_shares(model: nn.Module, heads: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Parameter → share of the learning rate: `layer_decay` to the power of the layers above it.

    References:
        Clark et al. 2020, ELECTRA, appendix B; Bao et al. 2022, BEiT, appendix.

    Raises:
        Mistake: The model has no layers to tell apart.
    """
    above = layers_above(model, heads)
    if not above:
        raise Mistake(Problem("train.layer_decay", layer_decay, "the model has no list of layers", "set it to 1"))
    return {name: layer_decay**layers for name, layers in above.items()}


def learnt(model: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """What learning changes, by name: parameters with a gradient, and buffers that are saved.

    Args:
        model: Whose it is.
        state: The model's state, where it has been gathered already.
    """
    state = model.state_dict() if state is None else state
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names |= {name for name, _ in model.named_buffers()}
    return {name: state[name].contiguous() for name in sorted(names & state.keys())}


def census(model: nn.Module) -> dict[str, int]:
    """Parameters in all, and those that learn; a head's frozen original beside the learning one is not counted."""
    own = _parameters(model)
    return {
        "parameters": sum(size(p) for p in own),
        "trainable_parameters": sum(size(p) for p in own if p.requires_grad),
    }


def training_flops_per_token(model: nn.Module) -> float:
    """6 for each parameter that learns, 4 where it only passes gradients on, 2 below all that learns.

    Embeddings look up, for free. Parameters are taken in the order the model registers them, from the bottom up.

    References:
        Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1.
    """
    free, flops, gradients = looked_up(model), 0, False
    for parameter in _parameters(model):
        gradients |= parameter.requires_grad
        if id(parameter) not in free:
            flops += (6 if parameter.requires_grad else 4 if gradients else 2) * size(parameter)
    return float(flops)


def decays(name: str) -> bool:
    """Whether weight decay may reach this parameter: not the scales and lengths that adapters learn."""
    return not any(part in name for part in NOT_DECAYED)


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ORIGINAL not in name.split(".")]


def _learning_only(model: PreTrainedModel, names: set[str]) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


def _top(method: Freeze, model: PreTrainedModel, learning: Sequence[str]) -> set[str]:
    """Names of the parameters of the top layers and above."""
    depths = [len(layers) for layers in stacks(model, learning).values()]
    if not depths:
        raise Mistake(Problem("train.method", method.kind, "the model has no list of layers", "use lora or full"))
    if method.layers > min(depths):
        has = " and ".join(map(str, depths))
        raise Mistake(
            Problem("train.method.layers", method.layers, f"the model has {has} layers", f"set at most {min(depths)}")
        )
    return {name for name, above in layers_above(model, learning).items() if above < method.layers}


def _biases(model: PreTrainedModel, learning: Sequence[str]) -> set[str]:
    """Names of the biases, and of the head's parameters."""
    head = {name for name, _ in model.named_parameters() if within(name, learning)}
    biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    if not biases - head:
        raise Mistake(Problem("train.method", "bitfit", "the model has no biases", "use ia3 or lora"))
    return biases | head


def _with_scales(model: PreTrainedModel, learning: Sequence[str]) -> PreTrainedModel:
    from peft import IA3Config, get_peft_model

    feed_forward = feed_forward_outputs(model, learning)
    targets = [*keys_and_values(model, learning), *feed_forward]
    if not targets:
        rule = "the model has no keys, values or feed-forward outputs of a known name"
        raise Mistake(Problem("train.method", "ia3", rule, "use lora"))
    config = IA3Config(target_modules=targets, feedforward_modules=feed_forward, modules_to_save=list(learning) or None)
    adapted: PreTrainedModel = get_peft_model(model, config)
    return adapted


def _with_adapters(method: LowRank, model: PreTrainedModel, learning: Sequence[str]) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    targets = _targets(method, linear_modules(model, learning))
    if isinstance(method, Qlora):
        _refuse_without_4_bits()
        quantize(model, targets)
    config = LoraConfig(
        r=method.r, lora_alpha=method.alpha, lora_dropout=method.dropout, target_modules=targets,
        modules_to_save=list(learning) or None, use_rslora=isinstance(method, RankStabilizedLora),
        use_dora=isinstance(method, Dora),
    )  # fmt: skip
    adapted: PreTrainedModel = get_peft_model(model, config)
    return adapted


def _targets(method: LowRank, linear: Sequence[str]) -> list[str]:
    """The linear modules that get adapters."""
    if method.target_modules is None:
        if not linear:
            raise Mistake(Problem("train.method", method.kind, "the model has no linear layers", "use full"))
        return list(linear)
    names = {name.rpartition(".")[2] for name in linear}
    unknown = [name for name in method.target_modules if name not in names]
    if unknown:
        rule = f"the model has no linear layer named {', '.join(unknown)}"
        offered = ", ".join(sorted(names))
        raise Mistake(Problem("train.method.target_modules", method.target_modules, rule, f"choose among {offered}"))
    return [name for name in linear if name.rpartition(".")[2] in method.target_modules]


def _refuse_without_4_bits() -> None:
    missing = [] if torch.cuda.is_available() else ["a CUDA GPU"]
    if find_spec("bitsandbytes") is None:
        missing.append("bitsandbytes (pip install 'hone[bitsandbytes]')")
    if missing:
        rule = f"4-bit weights need {' and '.join(missing)}, which this machine has not"
        raise EnvironmentMistake(Problem("train.method", "qlora", rule, "use lora"))


def quantize(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Put weights of 4 bits in the place of these modules' own, where bitsandbytes knows such.

    They are packed on the way to the device.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        full = model.get_submodule(name)
        if not isinstance(full, nn.Linear):
            continue
        packed = Linear4bit(
            full.in_features, full.out_features, full.bias is not None, compute_dtype=torch.bfloat16, **BITS_4
        )
        packed.weight = Params4bit(full.weight.data, requires_grad=False, module=packed, **BITS_4)
        packed.bias = full.bias
        model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # peft asks for it
