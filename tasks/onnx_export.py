"""The ONNX file of a model, in the child process: exported from the model that serves, and held against it.

What goes in and what comes out is taken from the serving file at work on real rows: the tensors that it hands to its
network are the inputs of the ONNX file, the tensors that come back its outputs. So one export does for every family of
encoders. Does not cover networks that write text token by token, nor what the serving file does before and after.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import torch

from schemas.errors import Fault, Mistake, Problem
from tasks.latency import served_model
from tasks.machine import cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from transformers import PreTrainedTokenizerFast

BATCH_SIZES = (2, 7, 32)
"""Rows of the batches, short and long ones mixed, on which the two are compared, besides the first and last row."""
TOLERANCE = 1e-3
"""Largest difference of an output. Float32 sums in another order differ by 1e-5, a mask that is left out by 0.1."""
AXES = ("batch", "sequence")
"""Names of the axes of an input; both are of any length."""
MASK = "attention_mask"
"""Input that is zero where a sequence is padded; what a model says there means nothing."""

Batch = dict[str, torch.Tensor]


def export_onnx(
    *, emit: Callable[..., None], serving: str, model: str, rows: str, columns: list[str], out: str
) -> dict[str, Any]:
    """Write `model.onnx`, its tokenizer, and what one must know to use them.

    Args:
        emit: Sends an event to the parent.
        serving: The family's serving file.
        model: Folder that `tasks.learner.save_model` wrote.
        rows: Parquet file with rows to compare on, the shortest first.
        columns: What the model reads of them.
        out: Folder to write into.

    Returns:
        What `about.json` says: inputs, outputs, labels, and how far the file was from the model on how many rows.

    Raises:
        Mistake: The network cannot be exported.
        Fault: The file does not compute what the network computes.
    """
    del emit
    torch.set_num_threads(cores())
    served = served_model(Path(serving), Path(model))
    frame = pd.DataFrame(pl.read_parquet(rows, columns=columns, glob=False).to_dict(as_series=False))
    network = _network_of(served)
    batches = _handed_over(served, network, _mixed(frame))
    network = network.cpu()
    with torch.inference_mode():
        outputs = [name for name, found in network(**batches[-1]).items() if isinstance(found, torch.Tensor)]
    file = Path(out) / "model.onnx"
    _export(network, batches[-1], outputs, file)
    session = _session(file)
    difference = _compared(network, session, batches)
    longest = _write_tokenizer(Path(model), Path(out), pairs=len(columns) > 1)
    return {
        "inputs": [_described(each) for each in session.get_inputs()],
        "outputs": [_described(each) for each in session.get_outputs()],
        **longest,
        "checked": {
            "largest_difference": difference,
            "tolerance": TOLERANCE,
            "rows": len(frame),
            "shapes": [list(batch[next(iter(batch))].shape) for batch in batches],
        },
        "made_by": {name: version(name) for name in ("torch", "transformers", "onnxscript", "onnxruntime")},
    }


def _network_of(served: Any) -> torch.nn.Module:
    """The one network that a served model holds, itself or in what it has loaded."""
    held = list(vars(served).values())
    held += [part for each in held if hasattr(each, "__dict__") for part in vars(each).values()]
    found = [part for part in held if isinstance(part, torch.nn.Module)]
    if len(found) != 1:
        raise _impossible(type(served).__name__, f"it has {len(found)} networks")
    return found[0]


def _mixed(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Batches of several sizes, each evenly spread over the rows; before them the first and the last row alone."""
    last = len(frame) - 1
    places = [np.linspace(0, last, num=min(len(frame), size)).astype(int) for size in BATCH_SIZES]
    return [frame.iloc[[0]], frame.iloc[[last]], *(frame.iloc[here] for here in places)]


def _handed_over(served: Any, network: torch.nn.Module, requests: Sequence[pd.DataFrame]) -> list[Batch]:
    """What the network is given while these requests are answered, by the names of its parameters."""
    batches: list[Batch] = []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        other = [name for name, value in given.items() if not isinstance(value, torch.Tensor)]
        if other:
            raise _impossible(type(module).__name__, f"{', '.join(other)} is handed to it, which is no tensor")
        batches.append({name: value.cpu() for name, value in given.items()})

    with network.register_forward_pre_hook(keep, with_kwargs=True):
        for request in requests:
            served.predict(None, request, {"batch_size": len(request)})
    return batches


def _export(network: torch.nn.Module, batch: Batch, outputs: Sequence[str], file: Path) -> None:
    """Write the ONNX file, with the axes of every input free."""
    # A batch of one would be taken for a network of one.
    example = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    free = {name: dict(enumerate(AXES[: tensor.ndim])) for name, tensor in example.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside torch, a page of them
        try:
            program = torch.onnx.export(
                network.eval(),
                kwargs=example,
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=free,
                dynamo=True,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, NotImplementedError, RuntimeError) as error:
            raise _impossible(type(network).__name__, str(error).strip().partition("\n")[0]) from error
    assert program is not None
    program.save(file)


def _session(file: Path) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _compared(network: torch.nn.Module, session: InferenceSession, batches: Sequence[Batch]) -> float:
    """The largest difference between an output of the network and of the file, padded places left out.

    Raises:
        Fault: It is larger than rounding.
    """
    differences = []
    for batch in batches:
        fed = {each.name: batch[each.name].numpy() for each in session.get_inputs()}
        found = session.run(None, fed)
        with torch.inference_mode():
            expected = network(**batch)
        for output, value in zip(session.get_outputs(), found, strict=True):
            difference = np.abs(value - expected[output.name].float().numpy())
            if MASK in fed and list(output.shape[:2]) == list(AXES):
                difference = difference[fed[MASK] == 1]
            differences.append(float(difference.max()))
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:  # not a number is as wrong
        raise Fault(f"the ONNX file differs from the model by {largest:.2g}, which is more than {TOLERANCE:g}")
    return largest


def _write_tokenizer(model: Path, out: Path, *, pairs: bool = False) -> dict[str, Any]:
    """Write `tokenizer.json`, set to cut and pad as the model was trained; returns what is to be said of it.

    Of a pair of texts, a question and what may answer it, only the second is cut.
    """
    from transformers import AutoTokenizer

    about: Mapping[str, Any] = json.loads((model / "hone.json").read_text(encoding="utf-8"))
    fast: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer = fast.backend_tokenizer
    longest = about["max_seq_length"]
    windows = {"stride": about["stride"]} if about.get("overlong") == "window" else {}
    strategy = "only_second" if pairs else "longest_first"
    tokenizer.enable_truncation(longest, strategy=strategy, direction=fast.truncation_side, **windows)
    tokenizer.enable_padding(direction=fast.padding_side, pad_id=fast.pad_token_id, pad_token=fast.pad_token)
    tokenizer.save(str(out / "tokenizer.json"))
    labels = {name: about[name] for name in ("labels", "tags") if name in about}
    return {**labels, "max_seq_length": longest, **windows}


def _described(value: Any) -> dict[str, Any]:
    """Name, element type and axes of an input or output."""
    return {"name": value.name, "type": value.type, "axes": value.shape}


def _impossible(network: str, why: str) -> Mistake:
    return Mistake(
        Problem("registry.onnx", True, f"{network} cannot be exported to ONNX: {why}", "leave registry.onnx out")
    )
