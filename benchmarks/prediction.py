"""Predicting the demo's tweets with a trained encoder: hone in a batch and as it serves, beside transformers' pipeline.

    python -m benchmarks.prediction                                # some minutes on two cores
    python -m benchmarks.prediction --rows 64 --steps 2 --rounds 1
    python -m benchmarks.prediction --report

Everyone starts with the same model in memory and the same texts, in float32, tokenises, and says a label for each. The
pipeline is tried at several batch sizes, of which the best counts. Labels are compared with those of a plain loop that
predicts one text at a time; the page is not written where more than 0.5 % of them differ. Needs the demo extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import (
    ROOT,
    Benchmark,
    Case,
    Line,
    by_contestant,
    context_of,
    main,
    middle,
    peak_memory,
    ratio,
    spread,
    times,
)
from tasks.clean import clean
from tasks.collect import collect
from tasks.markdown import table
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.train import train

RECIPE = ROOT / "deployments" / "sentiment.yaml"
FAMILY = "text-classification"
ROWS = "rows.parquet"
SIZES = (1, 8, 32, 64, 128)
"""Texts in one batch of the pipeline."""
MAY_DIFFER = 0.005
"""Share of the labels that rounding may decide otherwise."""

CONTESTANTS = {
    "hone, batch": "`tasks.predict`, as evaluation uses it: texts made tokens in memory-mapped files, predictions "
    "written as Parquet, probabilities and all; loading the model is not counted",
    "hone, served": "the pyfunc as it is registered, `predict` of the whole DataFrame: texts put right, labels and "
    "probabilities",
} | {f"pipeline, {size}": f'`pipeline("text-classification")` in batches of {size}, as texts come' for size in SIZES}


def prepare(settings: Case, folder: Path) -> None:
    """A model trained by the recipe, so many of its clean texts, and what a plain loop says of them."""
    import polars as pl

    changes = [f"train.max_steps={settings['steps']}", f"train.eval_steps={settings['steps']}"]
    context = context_of(RECIPE, changes, folder)
    cleaned = clean(context, collect(context))
    tokens = tokenize(context, cleaned, split(context, cleaned))
    model = context.path(train(context, tokens)) / "model"
    files = sorted((context.path(cleaned) / "rows").glob("*.parquet"))
    rows = pl.concat(pl.read_parquet(file, glob=False) for file in files)
    chosen = rows[np.random.default_rng(0).permutation(rows.height)[: settings["rows"]]]
    chosen.select("id", "text", "label").write_parquet(folder / ROWS)
    (folder / "model.txt").write_text(str(model))
    labels = one_by_one(model, chosen["text"].to_list())
    (folder / "labels.json").write_text(json.dumps(labels))


def one_by_one(model: Path, texts: Sequence[str]) -> list[str]:
    """Labels by a plain loop over single texts, which is nobody's code under test."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for text in texts:
            given = tokenizer(text, truncation=True, max_length=longest(model), return_tensors="pt")
            found.append(loaded.config.id2label[int(loaded(**given).logits.argmax())])
    return found


def longest(model: Path) -> int:
    """Tokens to which texts are cut."""
    found: int = json.loads((model / "hone.json").read_text())["max_seq_length"]
    return found


def measure(case: Case, folder: Path) -> Line:
    """Seconds from texts to labels, the model loaded before."""
    import polars as pl
    import torch

    from tasks.machine import cores

    torch.set_num_threads(cores())
    name, model = case["contestant"], Path((folder / "model.txt").read_text())
    file = folder / ROWS
    texts = pl.read_parquet(file, columns=["text"], glob=False)["text"].to_list()
    with tempfile.TemporaryDirectory() as work:
        if name == "hone, batch":
            seconds, labels = in_a_batch(file, model, Path(work))
        elif name == "hone, served":
            seconds, labels = timed(served(model, Path(work)), texts)
        else:
            seconds, labels = timed(piped(model, int(name.split(", ")[1])), texts)
    wanted = json.loads((folder / "labels.json").read_text())
    return {
        "seconds": seconds,
        "rows_per_second": len(texts) / seconds,
        "differ": sum(label != other for label, other in zip(labels, wanted, strict=True)),
        "peak_memory_bytes": peak_memory(),
    }


def timed(predict: Callable[[list[str]], list[str]], texts: list[str]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    labels = predict(texts)
    return time.perf_counter() - began, labels


def in_a_batch(rows: Path, model: Path, work: Path) -> tuple[float, list[str]]:
    """The texts as tokens in a file, as the tokenize stage makes them, then the job that evaluation has done."""
    import polars as pl

    from schemas.base import load_family
    from tasks.predict import predict
    from tasks.tokenizer import Base
    from tasks.tokens_part import encode_file

    family, meta = load_family(FAMILY), json.loads((model / "hone.json").read_text())
    tokenizer, tokens, out = Base(model).tokenizer, work / "test.arrow", work / "predictions.parquet"
    began = time.perf_counter()
    encode_file(family, meta, tokenizer, vocab_size=None, rows=rows, out=tokens)
    encoding = time.perf_counter() - began
    done = predict(emit=lambda *_, **__: None, family=FAMILY, model=str(model), tokens={str(tokens): str(out)})
    return encoding + done["seconds"], pl.read_parquet(out, glob=False)["prediction"].to_list()


def served(model: Path, work: Path) -> Callable[[list[str]], list[str]]:
    """The model as it is registered, loaded as MLflow loads it; without what is fitted on validation."""
    import mlflow
    import pandas as pd

    from tasks.families import serve_text_classification as serving
    from tasks.rules import shipping

    mlflow.pyfunc.save_model(
        path=str(work / "pyfunc"),
        python_model=str(serving.__file__),
        code_paths=[str(shipping.write_package(work))],
        artifacts={"model": str(model)},
        pip_requirements=[],
        signature=serving.SIGNATURE,
    )
    loaded = mlflow.pyfunc.load_model(str(work / "pyfunc"), suppress_warnings=True)
    return lambda texts: loaded.predict(pd.DataFrame({"text": texts}))["label"].to_list()


def piped(model: Path, size: int) -> Callable[[list[str]], list[str]]:
    """transformers' pipeline over a list of texts."""
    import torch
    from transformers import pipeline

    device = 0 if torch.cuda.is_available() else -1
    pipe = pipeline(FAMILY, model=str(model), device=device, dtype=torch.float32)
    cut = {"truncation": True, "max_length": longest(model)}
    return lambda texts: [found["label"] for found in pipe(texts, batch_size=size, **cut)]


def page(lines: Sequence[Line]) -> str:
    """Rows a second, and how many labels differ.

    Raises:
        ValueError: Too many do.
    """
    groups = by_contestant(lines, CONTESTANTS)
    rows = lines[0]["case"]["rows"]
    for line in lines:
        if line["differ"] > MAY_DIFFER * rows:
            raise ValueError(f"{line['case']['contestant']}: {line['differ']} of {rows} labels differ")
    best = best_pipeline(groups)
    head = ("contestant", "rows/s", *([f"by {best}"] if best else []), "seconds", "labels that differ", "memory, MiB")
    body = [
        (
            name,
            spread(measured, "rows_per_second"),
            *([times(ratio(measured, groups[best], "rows_per_second"))] if best else []),
            spread(measured, "seconds", ",.2f"),
            f"{max(line['differ'] for line in measured)} of {rows:,}",
            f"{middle(measured, 'peak_memory_bytes') / 2**20:,.0f}",
        )
        for name, measured in groups.items()
    ]
    notes = "Medians over the rounds, in brackets the least and the most; labels beside those of single texts."
    return "\n\n".join([table(head, body), notes])


def best_pipeline(groups: dict[str, list[Line]]) -> str | None:
    """The batch size that was fastest, by its median."""
    tried = [name for name in groups if name.startswith("pipeline")]
    return max(tried, key=lambda name: middle(groups[name], "rows_per_second")) if tried else None


BENCHMARK = Benchmark(
    name="prediction",
    contestants=CONTESTANTS,
    settings=("rows", "steps"),
    prepare=prepare,
    measure=measure,
    page=page,
    title="Predicting, side by side",
    introduction="MiniLM-L6, trained by `deployments/sentiment.yaml` for so many steps, says the sentiment of so many "
    "tweets in float32, from text to label.",
    in_child=("hone, batch",),
)


def run(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000, help="tweets")
    parser.add_argument("--steps", type=int, default=63, help="training steps of the model")
    return main(BENCHMARK, parser, arguments)


if __name__ == "__main__":
    sys.exit(run())
