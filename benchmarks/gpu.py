"""Training steps of Llama-like models on one GPU: hone's step beside transformers' Trainer and TRL's SFTTrainer.

    python -m benchmarks.gpu --rounds 1 --within 500               # on one GPU, without a network: under ten minutes
    python -m benchmarks.gpu --shapes 0.1B --sequence 1024
    python -m benchmarks.gpu --smoke                               # a tiny shape on the CPU: that it runs

Models are made from their configuration alone, with random weights, on the device; rows are random tokens, all of the
same length and all learnt, so that nobody computes padding. Weights are float32 under bfloat16 autocast, as hone has
them; under LoRA the base model's are bfloat16, or float32 with `--base fp32`. What does not fit into memory is tried
with fewer rows in a pass, then with activations made anew, and then said not to fit.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import (
    Benchmark,
    Case,
    Line,
    by_contestant,
    main,
    matmul_flops,
    middle,
    parameters_multiplied,
    peak_memory,
    ratio,
    times,
)
from tasks.markdown import table

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "0.1B": {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1_536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "1B": {
        "vocab_size": 128_256, "hidden_size": 2_048, "intermediate_size": 8_192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Those of SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B."""
ROWS = {"tiny": 2, "0.1B": 8, "1B": 4, "8B": 2}
"""Of one pass, and of one step; half as many are tried where they do not fit."""
METHODS = ("full", "lora")
CONTESTANTS = {
    "hone": "`tasks.learner.step_losses` and the optimiser that it makes, in deterministic algorithms as it trains",
    "Trainer": "`transformers.Trainer`, bf16 autocast, fused AdamW",
    "TRL": "`trl.SFTTrainer`, bf16 autocast, activations made anew only where they must",
}
PEAKS = {"H100": 989e12, "H200": 989e12}
"""Dense bfloat16 FLOP/s of the SXM boards, by their datasheets."""
TRAINED_BYTES = 16
"""Of a parameter that learns: weight, gradient and two moments of AdamW in float32."""
FLOPS = {"full": 6, "lora": 4}
"""For each parameter but the embeddings that are looked up, and each token; attention's own products not counted."""
WARM_UP = 3
STEPS = 200
"""Most steps that are timed."""
RANK = 16


@dataclass(frozen=True)
class Setting:
    """One shape taught by one method.

    Attributes:
        rows: In one pass, which is one step.
        remade: Activations are made anew for the backward pass.
    """

    shape: str
    method: str
    sequence: int
    base: str
    seconds: float
    device: str
    rows: int
    remade: bool


def measure(case: Case, folder: Path) -> Line:
    """The first way that fits, timed; what did not fit, and why not."""
    import torch

    del folder
    name, tried = case["contestant"], list[str]()
    if name == "TRL" and find_spec("trl") is None:
        return {"failed": "TRL is not installed", "device": _device_name()}
    for setting in ways(case, "cuda" if torch.cuda.is_available() else "cpu"):
        try:
            _refuse_too_large(setting)
            found = STEPPERS[name](setting)
        except (torch.OutOfMemoryError, MemoryError) as error:
            tried.append(f"{_way(setting)}: {str(error).splitlines()[0][:120]}")
        else:
            return found | {"rows_a_pass": setting.rows, "remade": setting.remade, "device": _device_name()}
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"failed": f"does not fit into memory: {tried[-1]}", "device": _device_name()}


def ways(case: Case, device: str) -> Iterator[Setting]:
    """As many rows as are asked for, fewer, and then with activations made anew."""
    rows = case["rows"] or ROWS[case["shape"]]
    asked = {name: case[name] for name in ("shape", "method", "sequence", "base", "seconds")}
    for remade in (False, True):
        for halved in range(int(math.log2(rows)) + 1):
            yield Setting(**asked, device=device, rows=max(1, rows >> halved), remade=remade)


def _way(setting: Setting) -> str:
    return f"{setting.rows} rows{', activations made anew' if setting.remade else ''}"


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _refuse_too_large(setting: Setting) -> None:
    """Weights that cannot fit are not made: that would take the time of what can.

    Raises:
        MemoryError: They do not.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.memory import gib, memory

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config_of(setting)).num_parameters()
    needed = parameters * (TRAINED_BYTES if setting.method == "full" else 2 if setting.base == "bf16" else 4)
    if needed > memory(setting.device):
        learning = ", gradients and moments" if setting.method == "full" else ""
        raise MemoryError(f"weights{learning} alone take {gib(needed)} of {gib(memory(setting.device))}")


def config_of(setting: Setting) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[setting.shape], max_position_embeddings=setting.sequence, rope_theta=500_000.0)


def model_of(setting: Setting) -> Any:
    """Random weights on the device; the base model of LoRA in the precision that is asked for."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    half = setting.method == "lora" and setting.base == "bf16"
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(
            config_of(setting), dtype=torch.bfloat16 if half else torch.float32, attn_implementation="sdpa"
        )
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # else hone takes them for new, and lets all of them learn
    return model


def tokens_of(setting: Setting, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`[rows, sequence]`."""
    return np.random.default_rng(0).integers(3, SHAPES[setting.shape]["vocab_size"], (rows, setting.sequence))


def of_hone(setting: Setting) -> Line:
    """The step that its learner takes, with its optimiser, on a table of tokens as its tokenize stage writes it."""
    import torch

    from tasks import methods
    from tasks.learner import Job, prepare, step_losses
    from tasks.plan import make_plan

    with tempfile.TemporaryDirectory() as work:
        _write_table(Path(work), tokens_of(setting, setting.rows))
        train = {
            "method": {"kind": "full"} if setting.method == "full" else {"kind": "lora", "r": RANK},
            "max_steps": STEPS + WARM_UP,
            "global_batch_size": setting.rows,
            "micro_batch_tokens": max(64, setting.rows * setting.sequence),
        }
        job = Job(
            task={"family": "causal-lm"}, model={"base": "from its configuration"}, train=train, base="", tokens=work,
            metric="likelihood",
        )  # fmt: skip
        plan = make_plan(
            job.train, dropout=None, rows=setting.rows, longest=setting.sequence, class_weights=None,
            class_weights_reason="",
        ).model_copy(update={"activation_checkpointing": setting.remade})  # fmt: skip
        prepare(plan)
        model = job.ready(methods.apply(job.train.method, model_of(setting), []), plan).train()
        optimizer = job.optimizer(model, plan)
        rows = np.arange(setting.rows)

        def step() -> None:
            step_losses(model, job, plan, rows)
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.train.max_grad_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()

        clock = Clock(setting)
        while clock.going:
            step()
            clock.tick()
        return clock.found(model)


def _write_table(folder: Path, tokens: np.ndarray[Any, Any]) -> None:
    """Rows as the tokenize stage of models that write leaves them; every token but the first is learnt."""
    import pyarrow as pa

    from tasks.families import IGNORED

    labels = tokens.copy()
    labels[:, 0] = IGNORED
    columns = {
        "id": pa.array([str(number) for number in range(len(tokens))]),
        "input_ids": pa.array(tokens.tolist(), pa.list_(pa.int32())),
        "length": pa.array([tokens.shape[1]] * len(tokens), pa.int32()),
        "labels": pa.array(labels.tolist(), pa.list_(pa.int32())),
    }
    found = pa.table(columns)
    for side in ("train", "validation"):
        with pa.ipc.new_stream(str(folder / f"{side}.arrow"), found.schema) as writer:
            writer.write_table(found)
    (folder / "meta.json").write_text(json.dumps({"pad_token_id": 0, "max_seq_length": tokens.shape[1]}))


def of_trainer(setting: Setting, *, trl: bool = False) -> Line:
    """Trainer, or TRL's, on the same rows with the same adapters."""
    import torch
    import transformers
    from datasets import Dataset
    from transformers import TrainerCallback

    clock, model = Clock(setting), model_of(setting)
    if setting.method == "lora":
        model = _adapted(model)
    tokens = tokens_of(setting, setting.rows)
    columns = {name: tokens.tolist() for name in ("input_ids", "labels")}
    if not trl:
        columns["attention_mask"] = np.ones_like(tokens).tolist()
    rows = Dataset.from_dict(columns)
    kind, more = transformers.Trainer, dict[str, Any]()
    arguments: Any = transformers.TrainingArguments
    if trl:
        module: Any = import_module("trl")
        kind, arguments = module.SFTTrainer, partial(module.SFTConfig, max_length=None)
        more = {"processing_class": _nothing_to_read()}

    class Ticking(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """Stops when the clock says so."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state
            clock.tick()
            control.should_training_stop = not clock.going

    with tempfile.TemporaryDirectory() as work:
        trainer = kind(
            model=model,
            args=arguments(
                output_dir=work, max_steps=STEPS + WARM_UP, per_device_train_batch_size=setting.rows, bf16=True,
                gradient_checkpointing=setting.remade, use_cpu=not torch.cuda.is_available(), save_strategy="no",
                logging_strategy="no", report_to="none", disable_tqdm=True,
            ),
            train_dataset=rows,
            callbacks=[Ticking()],
            **more,
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.found(model)


def _adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def _nothing_to_read() -> Any:
    """A tokenizer, which TRL asks for though the rows are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


class Clock:
    """Times steps, the first few apart.

    Args:
        setting: What is timed, for how many seconds at least.

    Attributes:
        going: Whether another step is wanted.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.going = True
        self._ends: list[float] = []

    def tick(self) -> None:
        """A step has ended; waits until the device has done it."""
        import torch

        if self.setting.device == "cuda":
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())
        timed = self._ends[WARM_UP - 1 :]
        over = len(timed) > 1 and timed[-1] - timed[0] >= self.setting.seconds
        self.going = not over and len(self._ends) < STEPS + WARM_UP

    def found(self, model: Any) -> Line:
        """Rate, work and memory of the steps that were timed."""
        import torch

        seconds = self._ends[-1] - self._ends[WARM_UP - 1]
        steps, cuda = len(self._ends) - WARM_UP, self.setting.device == "cuda"
        tokens = steps * self.setting.rows * self.setting.sequence
        parameters = parameters_multiplied(model)
        return {
            "timed_steps": steps,
            "timed_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "parameters": parameters,
            "model_flops": FLOPS[self.setting.method] * parameters * tokens / seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else peak_memory(),
            "matmul_flops": matmul_flops(self.setting.device, 8_192 if cuda else 1_024),
        }


STEPPERS: dict[str, Callable[[Setting], Line]] = {
    "hone": of_hone,
    "Trainer": of_trainer,
    "TRL": partial(of_trainer, trl=True),
}


def peak_of(device: str) -> float | None:
    """By the datasheet; none where it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def page(lines: Sequence[Line]) -> str:
    """Tokens and work a second of everyone, and what did not fit."""
    groups = by_contestant(lines, CONTESTANTS)
    told = {name: [line for line in measured if "failed" not in line] for name, measured in groups.items()}
    head = (
        "contestant", "tokens/s", "hone by it", "TFLOP/s", "of the datasheet", "of a matrix product",
        "peak memory, GiB", "rows a pass", "activations",
    )  # fmt: skip
    rows = []
    for name, measured in groups.items():
        fitting = told[name]
        if not fitting:
            rows.append((name, measured[0]["failed"], *[""] * (len(head) - 2)))
            continue
        work, peak = middle(fitting, "model_flops"), peak_of(fitting[0]["device"])
        rows.append(
            (
                name,
                f"{middle(fitting, 'tokens_per_second'):,.0f}",
                times(ratio(told.get("hone", []), fitting, "tokens_per_second")),
                f"{work / 1e12:,.1f}",
                f"{work / peak:.1%}" if peak else "",
                f"{work / middle(fitting, 'matmul_flops'):.1%}",
                f"{middle(fitting, 'peak_memory_bytes') / 2**30:,.1f}",
                str(fitting[0]["rows_a_pass"]),
                "made anew" if fitting[0]["remade"] else "kept",
            )
        )
    return table(head, rows)


BENCHMARK = Benchmark(
    name="gpu",
    contestants=CONTESTANTS,
    settings=("shape", "method", "sequence", "rows", "base", "seconds"),
    prepare=None,
    measure=measure,
    page=page,
    title="Training steps on a GPU, side by side",
    introduction="whole optimiser steps of Llama-like models of random weights on random tokens, all of them learnt. "
    f"TFLOP/s: {FLOPS['full']} times, under LoRA {FLOPS['lora']} times the parameters that a token is multiplied by, "
    "for each token; attention's products of queries, keys and values are not counted, nor are activations made anew.",
)


def run(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["8B", "1B", "0.1B"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora", "full"])
    parser.add_argument("--sequence", type=int, default=4_096, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=0, help="rows in a pass; 0: by the shape")
    parser.add_argument("--base", choices=("bf16", "fp32"), default="bf16", help="weights of the base model under LoRA")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long steps are timed")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny shape, to see that it runs; the page goes to the folder of --work"
    )
    return main(BENCHMARK, parser, arguments, expand=each)


def each(asked: argparse.Namespace) -> Iterator[Case]:
    """The settings that are asked for; a smoke test is no result to keep."""
    if asked.smoke:
        asked.shapes, asked.sequence, asked.seconds = ["tiny"], min(asked.sequence, 64), 0.2
        asked.results = asked.work / "smoke.jsonl"
    for shape in asked.shapes:
        for method in asked.methods:
            yield {
                "shape": shape, "method": method, "sequence": asked.sequence, "rows": asked.rows, "base": asked.base,
                "seconds": asked.seconds,
            }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run())
