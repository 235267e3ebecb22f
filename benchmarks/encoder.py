"""Fine-tuning an encoder on the demo's tweets: hone beside transformers' Trainer, as it comes and well tuned.

    python -m benchmarks.encoder                                   # about an hour on two cores
    python -m benchmarks.encoder --rows 64 --validation 32 --rounds 1 --eval-steps 1
    python -m benchmarks.encoder --report

Everyone learns the same rows from the same token ids, in as many steps of as many rows, at the same learning rate, and
is evaluated at the same steps. Needs the demo extra.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
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
from tasks.markdown import table

if TYPE_CHECKING:
    import polars as pl

RECIPE = ROOT / "deployments" / "sentiment.yaml"
METRIC = "macro_f1"
WIDTH = 128
"""Tokens that everything is padded to in `run_classification`'s settings."""
FLOPS = 6
"""For each parameter outside the embeddings and each token: two forward, four backward."""
EVAL_BATCHES = (16, 32, 64)
"""Rows of one batch without gradients that the tuned Trainer tries."""
RESAMPLES, CONFIDENCE = 5_000, 0.95

CONTESTANTS = {
    "hone": "the plan and the learner, as `hone run` uses them, with the recipe's dropout of 0",
    "hone, dropout": "the same with the model's own dropout, 0.1",
    "run_classification": "`transformers.Trainer` in the settings of its example of that name: padded to 128, fp32",
    "Trainer, tuned": "`transformers.Trainer`, padded to the longest row of a batch, rows grouped by length, bf16 "
    "autocast, validation rows in order of length, in the fastest of batches of "
    f"{', '.join(map(str, EVAL_BATCHES))} rows",
    "Trainer, tuned, no dropout": "the same without dropout, attention `eager`, which is the faster one then",
}


def prepare(settings: Case, folder: Path) -> None:
    """The rows of both sides as tokens; nobody stops early, so that all take the same steps."""
    changes = {
        "train.epochs": settings["epochs"],
        "train.eval_steps": settings["eval_steps"],
        "train.early_stopping_patience": "null",
        "train.seed": settings["seed"],
    }
    rows = {"train": settings["rows"], "validation": settings["validation"]}
    prepare_tokens(RECIPE, [f"{name}={value}" for name, value in changes.items()], rows, folder)


def measure(case: Case, folder: Path) -> Line:
    """Train, and say what it took and what came of it."""
    name, spec = case["contestant"], spec_of(folder)
    lengths = read_arrow(folder / "tokens" / "train.arrow").column("length").to_numpy()
    with tempfile.TemporaryDirectory() as work:
        train = of_hone if name.startswith("hone") else of_trainer
        found, predictions = train(name, spec, Path(work))
    labels = json.loads((folder / "tokens" / "meta.json").read_text())["labels"]
    learning = found["seconds"] - found["evaluating_seconds"]
    tokens = int(lengths.sum() * case["epochs"])
    return found | {
        "learning_seconds": learning,
        "tokens": tokens,
        "tokens_per_second": tokens / learning,
        "model_flops": FLOPS * found["parameters"] * tokens / learning,
        "final": interval(predictions, labels),
        "peak_memory_bytes": peak_memory(),
        "matmul_flops": matmul_flops(),
    }


def interval(predictions: pl.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Macro F1 of the last evaluation, with its bootstrap interval."""
    from tasks import classification

    found = classification.intervals(predictions, labels, resamples=RESAMPLES, confidence=CONFIDENCE, seed=0)[METRIC]
    return found.model_dump()


def of_hone(name: str, spec: Line, work: Path) -> tuple[Line, pl.DataFrame]:
    """hone's own training; what it predicts at every evaluation is kept."""
    learner: Any = import_module("tasks.learner")
    if name == "hone, dropout":
        spec["model"]["dropout"] = None
    seen: list[pl.DataFrame] = []
    predict = learner.predictions_of

    def kept(*args: Any, **named: Any) -> Any:
        found = predict(*args, **named)
        seen.append(found[0])
        return found

    learner.predictions_of = kept
    found = hone_learns(spec, work, {METRIC: f"validation/{METRIC}"})
    return found, seen[-1]


def of_trainer(name: str, spec: Line, work: Path) -> tuple[Line, pl.DataFrame]:
    """transformers' Trainer, with nothing of hone but the rows and the measure."""
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from tasks.machine import cores

    torch.set_num_threads(cores())
    tuned, train = name != "run_classification", spec["train"]
    tokens = Path(spec["tokens"])
    labels = json.loads((tokens / "meta.json").read_text())["labels"]
    width = None if tuned else WIDTH
    rows, held_out = (dataset(tokens / f"{side}.arrow", width) for side in ("train", "validation"))
    transformers.set_seed(train["seed"])
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}
    model = AutoModelForSequenceClassification.from_pretrained(
        spec["base"], num_labels=len(labels), **(dropout if name.endswith("no dropout") else {})
    )
    tokenizer = AutoTokenizer.from_pretrained(spec["base"])
    seen: list[pl.DataFrame] = []

    def score(found: Any) -> dict[str, float]:
        seen.append(frame(found, labels))
        return measured(seen[-1], labels)

    steps = math.ceil(math.ceil(len(rows) / train["global_batch_size"]) * train["epochs"])
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=train["global_batch_size"],
        per_device_eval_batch_size=8,
        learning_rate=train["learning_rate"],
        lr_scheduler_type=train["schedule"],
        warmup_steps=math.ceil(steps * train["warmup_ratio"]),
        weight_decay=train["weight_decay"],
        max_grad_norm=train["max_grad_norm"],
        seed=train["seed"],
        use_cpu=not torch.cuda.is_available(),
        bf16=tuned,
        train_sampling_strategy="group_by_length" if tuned else "random",
        eval_strategy="steps",
        eval_steps=train["eval_steps"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    class Timed(Trainer):  # type: ignore[misc]  # transformers is not typed
        """Watched apart from any other."""

    watch = Watch(Timed, {METRIC: f"eval_{METRIC}"})
    trainer = Timed(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=transformers.DataCollatorWithPadding(tokenizer) if tuned else transformers.default_data_collator,
        compute_metrics=score,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    fastest = {"eval_batch": quickest(trainer) if tuned else 8}
    watch.curve.clear()
    watch.evaluating = 0.0
    trainer.train()
    if watch.curve[-1]["step"] != steps:
        trainer.evaluate()
    found = {
        **fastest,
        "precision": "bf16" if tuned else "fp32",
        "attention": model.config._attn_implementation,
        "planning_seconds": 0.0,
        "steps": trainer.state.global_step,
        "seconds": watch.seconds,
        "evaluating_seconds": watch.evaluating,
        "curve": watch.curve,
        "parameters": parameters_multiplied(model),
    }
    return found, seen[-1]


def quickest(trainer: Any) -> int:
    """Rows of a batch at which evaluation is fastest; the choice is not timed."""
    taken = {}
    for size in EVAL_BATCHES:
        trainer.args.per_device_eval_batch_size = size
        began = time.perf_counter()
        trainer.evaluate()
        taken[size] = time.perf_counter() - began
    best = min(taken, key=lambda size: taken[size])
    trainer.args.per_device_eval_batch_size = best
    return best


def dataset(file: Path, width: int | None) -> Any:
    """The rows as Trainer takes them: all padded to a width, or not yet, in order of length."""
    from datasets import Dataset

    rows = read_arrow(file).select(["input_ids", "length", "labels"]).to_pylist()
    if width is None:
        rows.sort(key=lambda row: row["length"])
    for row in rows:
        ids = row["input_ids"]
        row["attention_mask"] = [1] * len(ids)
        if width is not None:
            fill = [0] * (width - len(ids))
            row |= {"input_ids": ids + fill, "attention_mask": row["attention_mask"] + fill}
    return Dataset.from_list(rows)


def frame(found: Any, labels: Sequence[str]) -> pl.DataFrame:
    """What Trainer predicted as hone keeps it."""
    import polars as pl

    names = np.array(labels)
    return pl.DataFrame({"truth": names[found.label_ids], "prediction": names[found.predictions.argmax(-1)]})


def measured(predictions: pl.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    from tasks import classification

    return {METRIC: classification.score(predictions, labels)[METRIC]}


def reached(lines: Sequence[Line]) -> float:
    """The macro F1 that every run reached at one evaluation or another."""
    return float(min(max(point[METRIC] for point in line["curve"]) for line in lines))


def until(line: Line, goal: float) -> float:
    """Seconds from the start of training to the first evaluation that found as much, evaluations included."""
    return float(next(point["seconds"] for point in line["curve"] if point[METRIC] >= goal))


def page(lines: Sequence[Line]) -> str:
    """What each needed and reached."""
    goal, groups = reached(lines), by_contestant(lines, CONTESTANTS)
    for line in lines:
        line["until"] = until(line, goal)
    peak = float(np.median([line["matmul_flops"] for line in lines]))
    head = (
        "contestant", "real tokens/s", "hone by it", "learning, s", "with evaluations, s", f"until F1 {goal:.3f}, s",
        "macro F1 at the end", "peak memory, MiB", "utilisation", "plan, s",
    )  # fmt: skip
    rows = []
    for name, measured in groups.items():
        final = sorted((line["final"] for line in measured), key=lambda found: found["value"])[len(measured) // 2]
        rows.append(
            (
                name,
                spread(measured, "tokens_per_second"),
                times(ratio(groups.get("hone", []), measured, "tokens_per_second")),
                spread(measured, "learning_seconds", ",.1f"),
                spread(measured, "seconds", ",.1f"),
                spread(measured, "until", ",.1f"),
                f"{final['value']:.3f} ({final['low']:.3f} to {final['high']:.3f})",
                f"{middle(measured, 'peak_memory_bytes') / 2**20:,.0f}",
                f"{middle(measured, 'model_flops') / peak:.1%}",
                f"{middle(measured, 'planning_seconds'):.1f}",
            )
        )
    first = lines[0]
    notes = (
        f"Medians over the rounds, in brackets the least and the most; {first['steps']} steps. Utilisation: {FLOPS} "
        f"times the {first['parameters']:,} parameters outside the embeddings, for each real token, by the "
        f"{peak / 1e9:,.0f} GFLOP/s that a bfloat16 product of two matrices of 2,048 by 2,048 reached on the same "
        f"machine right after each training. Chosen: {chosen(groups)}."
    )
    return "\n\n".join([table(head, rows), notes])


def chosen(groups: dict[str, list[Line]]) -> str:
    """Precision and attention of everyone."""
    return "; ".join(f"{name} {found[0]['precision']}, {found[0]['attention']}" for name, found in groups.items())


BENCHMARK = Benchmark(
    name="encoder",
    contestants=CONTESTANTS,
    settings=("rows", "validation", "epochs", "eval_steps", "seed"),
    prepare=prepare,
    measure=measure,
    page=page,
    title="Fine-tuning an encoder, side by side",
    introduction="MiniLM-L6 (22.7M parameters) learns the demo's tweets by `deployments/sentiment.yaml`: full "
    "fine-tuning, 64 rows a step, the same token ids for all.",
    in_child=("hone", "hone, dropout"),
)


def run(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000, help="training rows")
    parser.add_argument("--validation", type=int, default=1_000, help="validation rows")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the training rows")
    parser.add_argument("--eval-steps", type=int, default=18, help="steps between two evaluations")
    parser.add_argument("--seed", type=int, default=0)
    return main(BENCHMARK, parser, arguments)


if __name__ == "__main__":
    sys.exit(run())
