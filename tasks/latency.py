"""How fast a model answers, in the child process, through the very file that serves it: from raw texts to answers.

Single requests and batches of 32, as many as fit into a few seconds. Does not cover what a web server adds.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

BATCH = 32
WARM_UP = 5
"""Requests before the clock counts: the first ones compile kernels."""
SINGLES = 200
"""Most single requests timed."""
BATCHES = 24
"""Most batches timed."""
SECONDS = 2.0
"""For each of the two."""


def latency(*, emit: Callable[..., None], serving: str, model: str, rows: str, columns: list[str]) -> dict[str, Any]:
    """Time the serving file on rows of the test.

    Args:
        emit: Sends an event to the parent.
        serving: The family's serving file.
        model: Folder that `tasks.learner.save_model` wrote.
        rows: Parquet file with rows as they come in service.
        columns: What the model reads of them.

    Returns:
        `latency_ms_p50` and `latency_ms_p95` of single requests, `rows_per_second` in batches of 32 (median), and how
        many of each were timed.
    """
    del emit
    frame = pd.DataFrame(pl.read_parquet(rows, columns=columns, glob=False).to_dict(as_series=False))
    served = served_model(Path(serving), Path(model))
    places = np.linspace(0, len(frame) - 1, num=min(len(frame), SINGLES)).astype(int)
    singles = [frame.iloc[[place]] for place in places]
    # A last batch that is not full would be slower for each of its rows; it counts where there is no other.
    starts = range(0, max(len(frame) - BATCH, 0) + 1, BATCH)[:BATCHES]
    batches = [frame.iloc[start : start + BATCH] for start in starts]
    each = _timed(served, singles)
    each_batch = _timed(served, batches)
    rates = [len(batch) / seconds for batch, seconds in zip(batches, each_batch, strict=False)]
    return {
        "latency_ms_p50": round(1000 * float(np.median(each)), 3),
        "latency_ms_p95": round(1000 * float(np.percentile(each, 95)), 3),
        "rows_per_second": round(float(np.median(rates)), 1),
        "single_requests": len(each),
        "batches": len(each_batch),
    }


def served_model(serving: Path, model: Path) -> Any:
    """The model of a serving file, loaded from a model folder as it serves; without what was fitted to it."""
    spec = importlib.util.spec_from_file_location(f"serving_{serving.stem}", serving)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODEL.load_context(SimpleNamespace(artifacts={"model": str(model)}))
    return module.MODEL


def _timed(served: Any, requests: list[pd.DataFrame]) -> list[float]:
    """Seconds of each request, until the time is up; warming up takes as long at most, and one of each is made."""
    _until(served, requests[:WARM_UP])
    return _until(served, requests)


def _until(served: Any, requests: list[pd.DataFrame]) -> list[float]:
    seconds: list[float] = []
    ends = time.monotonic() + SECONDS
    for request in requests:
        began = time.perf_counter()
        served.predict(None, request)
        seconds.append(time.perf_counter() - began)
        if time.monotonic() > ends:
            break
    return seconds
