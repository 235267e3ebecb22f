"""Base models and methods side by side: what each is worth on validation, what it costs, and which one to have.

The test rows play no part: only what is chosen here goes before the gate. Trivial models stand beside the others; their
settings are chosen on the very rows they are measured on, which flatters them a little.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.comparison import Candidate
from schemas.records import Artifact
from tasks.context import Context
from tasks.curve import PREDICTIONS, shown
from tasks.evaluate import MEASURED_WITH, SEED, baseline_predictions, meta_of, model_speed, read_predictions
from tasks.families import MEASURING, family_of
from tasks.lessons import training_batches
from tasks.machine import fingerprint
from tasks.markdown import table
from tasks.measure import Measure, mean_of, settings_of, widened
from tasks.predict_job import RunJob, run_in_child
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

AS_FAST = 1.1
"""Times the latency of the fastest up to which another one is as fast: single requests scatter by as much."""


@dataclass(frozen=True)
class Entry:
    """A candidate and what is known of it before its predictions are measured.

    Attributes:
        about: All but value, gap and front.
        predictions: Of the validation rows, one artifact for each seed; none where it failed.
    """

    about: Candidate
    predictions: tuple[Artifact, ...]


@contextmanager
def without_test(split: Path) -> Iterator[Path]:
    """A split's folder in which the validation rows stand where the test rows are, for what reads those."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in split.iterdir():
            if file.name not in {"test.parquet", "manifest.json"}:
                (folder / file.name).symlink_to(file)
        (folder / "test.parquet").symlink_to(split / "validation.parquet")
        yield folder


def validation_baselines(*, task: TaskSection, metric: str, split: Path, lessons: Path, out: Path) -> dict[str, Any]:
    """The trivial models' predictions of the validation rows; see `tasks.evaluate.baseline_predictions`.

    They learn from the rows that the candidates learn from, however few these are.

    Args:
        task: The recipe's task.
        metric: What their settings are chosen by.
        split: Folder of the split artifact.
        lessons: Folder with the tokens that candidates learn from.
        out: Where to write.
    """
    import polars as pl

    learnt = pl.DataFrame({"id": [name for batch in training_batches(lessons) for name in batch["id"].to_pylist()]})
    with without_test(split) as folder:
        train = folder / "train.parquet"
        train.unlink()
        rows = pl.scan_parquet(split / "train.parquet", glob=False)
        rows.join(learnt.lazy(), on="id", how="semi", maintain_order="left").sink_parquet(train)
        return baseline_predictions(task=task, metric=metric, split=folder, out=out)


def validation_speed(
    *, task: TaskSection, machine: Mapping[str, Any], split: Path, model: Path, run_job: RunJob, out: Path
) -> dict[str, Any]:  # fmt: skip
    """How fast a model answers the validation rows; see `tasks.evaluate.model_speed`."""
    asked: dict[str, Any] = {"task": task, "machine": machine, "identity": "", "run_job": run_job, "out": out}
    asked |= {"notes": task.notes()}
    with without_test(split) as folder:
        return model_speed(split=folder, model=lambda: model / "model", **asked)


def draw_comparison(
    *, task: TaskSection, metric: str, confidence: float, resamples: int, entries: Sequence[Candidate],
    seeds: Sequence[int], tokens: Path, predictions: Sequence[Path], baselines: Path, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Measure the candidates, find the front, recommend one, and write `comparison.png` and `report.md`.

    Args:
        task: The recipe's task.
        metric: The one that decides.
        confidence: Of every interval.
        resamples: Of the validation rows.
        entries: What is known of each candidate.
        seeds: How many predictions each has, in the order of `predictions`.
        tokens: Folder of the tokenize artifact.
        predictions: Folders that `tasks.curve.validation_predictions` wrote.
        baselines: Folder that `validation_baselines` wrote.
        out: Where to write.

    Returns:
        `candidates`, `chosen`, `told`: see `schemas.comparison.Comparison`.
    """
    from tasks.comparison_plot import metric_by_latency

    measure = Measure(family_of(task), meta_of(task, tokens), metric, confidence, resamples, SEED)
    frames = iter(predictions)
    known: list[tuple[Candidate, tuple[pl.DataFrame, ...]]] = [
        (entry, tuple(read_predictions(next(frames) / PREDICTIONS) for _ in range(many)))
        for entry, many in zip(entries, seeds, strict=True)
    ]
    known += [
        (Candidate(name=file.stem, base=None, method=None), (read_predictions(file),))
        for file in sorted(baselines.glob("*.parquet"))
    ]
    candidates = measured(known, measure)
    chosen, told = recommended(candidates, metric)
    if any(one.latency_ms for one in candidates):
        metric_by_latency(candidates, chosen, metric=metric, confidence=confidence, path=out / "comparison.png")
    found = {"candidates": [one.model_dump(mode="json") for one in candidates], "chosen": chosen, "told": told}
    (out / "comparison.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (out / "report.md").write_text(_report(candidates, told, metric, known[0][1][0].height), encoding="utf-8")
    return found


def measured(known: Sequence[tuple[Candidate, tuple[pl.DataFrame, ...]]], measure: Measure) -> list[Candidate]:
    """The candidates with their values, the best first, and those that failed last.

    Args:
        known: Each with its predictions of the same rows, one for each seed.
        measure: The metric that decides.
    """
    import numpy as np
    from scipy.stats import t

    known = list(zip(of_one_pace([one for one, _ in known]), (frames for _, frames in known), strict=True))
    worth = [[measure.of(frame) for frame in frames] for _, frames in known]
    several = [np.array([one.value for one in each]) for each in worth if len(each) > 1]
    freedom = sum(len(values) - 1 for values in several)
    noise = float(np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in several) / freedom)) if freedom else 0.0
    quantile = float(t.ppf((1 + measure.confidence) / 2, freedom)) if freedom else 0.0

    def apart(*several: Candidate) -> float:
        """Half the width that the luck of trainings adds; trivial models have none."""
        return float(quantile * noise * sum(1 / one.seeds for one in several if not one.trivial) ** 0.5)

    found = [
        (one.model_copy(update={"value": widened(mean_of(each), apart(one))}), frames)
        for (one, frames), each in zip(known, worth, strict=True)
        if each
    ]
    found.sort(key=lambda pair: -_value(pair[0]))
    best, best_frames = found[0]
    placed = [best]
    for one, frames in found[1:]:
        pairs = zip(_as_many(best_frames, len(frames)), _as_many(frames, len(best_frames)), strict=True)
        behind = mean_of([measure.gain(first, second) for first, second in pairs])
        placed.append(one.model_copy(update={"behind": widened(behind, apart(one, best))}))
    front = front_of(placed)
    placed = [one.model_copy(update={"front": one.name in front}) for one in placed]
    return [*placed, *(one for one, frames in known if not frames)]


def of_one_pace(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the best pace of their shape.

    Models of one base and size answer equally fast, whatever taught them: what they differ by is what else the machine
    did meanwhile.
    """
    found = []
    for one in candidates:
        alike = [other for other in candidates if other is one or _is_of_one_shape(one, other)]
        latencies = [other.latency_ms for other in alike if other.latency_ms is not None]
        rates = [other.rows_per_second for other in alike if other.rows_per_second is not None]
        pace = {"latency_ms": min(latencies, default=None), "rows_per_second": max(rates, default=None)}
        found.append(one.model_copy(update=pace))
    return found


def _is_of_one_shape(one: Candidate, other: Candidate) -> bool:
    if one.size_mb is None or other.size_mb is None:
        return False
    return one.base == other.base and round(one.size_mb) == round(other.size_mb)


def _as_many(frames: tuple[pl.DataFrame, ...], many: int) -> tuple[pl.DataFrame, ...]:
    """Predictions of a model that has no seeds, once for each seed of the other one."""
    return frames * many if len(frames) == 1 else frames


def _value(one: Candidate) -> float:
    assert one.value is not None, "measured before it is compared"
    return one.value.value


def front_of(candidates: Sequence[Candidate]) -> set[str]:
    """Names of the candidates that no other one is both better and faster than."""
    timed = [(one.name, one.latency_ms, _value(one)) for one in candidates if one.latency_ms is not None]
    return {
        name
        for name, latency, value in timed
        if not any(
            other_latency <= latency and other >= value and (other_latency, other) != (latency, value)
            for _, other_latency, other in timed
        )
    }


def recommended(candidates: Sequence[Candidate], metric: str) -> tuple[str, str]:
    """The candidate to have, and why: the fastest of those that the best is not surely better than.

    Of those that are as fast, the best.

    Args:
        candidates: The best first; those that failed last.
        metric: Its name.
    """
    tuned = [one for one in candidates if not one.trivial and one.value is not None]
    best = candidates[0]
    alike = [one for one in tuned if one.behind is None or one.behind.low <= 0] or tuned[:1]
    fastest = min(one.latency_ms or 0.0 for one in alike)
    chosen = max((one for one in alike if (one.latency_ms or 0.0) <= AS_FAST * fastest), key=_value)
    if best.trivial:
        assert chosen.behind is not None
        told = f"{chosen.name} is {shown(chosen.behind)} {metric} behind it"
        if chosen.behind.low > 0:
            return chosen.name, f"{best.name} is the best: {told}; fine-tuning is not worth it on these rows"
        return chosen.name, f"{best.name} is no worse than any fine-tuned model, and costs next to nothing: {told}"
    if chosen.behind is None:
        others = "no other one is as good" if len(alike) == 1 else "no other one as good is faster"
        return chosen.name, f"{chosen.name} is the best, and {others}"
    pace = f"at {chosen.latency_ms:.1f} ms against {best.latency_ms:.1f} ms" if best.latency_ms else ""
    told = f"{chosen.name} is the fastest within the interval of the best, {best.name}"
    return chosen.name, f"{told}: {shown(chosen.behind)} {metric} behind it {pace}".rstrip()


def _report(candidates: Sequence[Candidate], told: str, metric: str, rows: int) -> str:
    """The page for MLflow and Prefect."""
    parts = [
        f"# Base models and methods by {metric}",
        f"**{told}.**",
        "![The metric by latency](comparison.png)",
        candidates_table(candidates, metric),
        f"On {rows:,} validation rows; the test rows played no part. ◆: no other one is both better and faster.",
    ]
    return "\n\n".join(parts) + "\n"


def candidates_table(candidates: Sequence[Candidate], metric: str) -> str:
    """All that was found, as Markdown."""
    heads = ("", metric, "behind the best", "ms", "rows/s", "MB", "learnt parameters", "training s", "tokens/s", "GiB")
    return table(heads, [row_of(one) for one in candidates])


def row_of(one: Candidate) -> tuple[str, ...]:
    """A candidate in the columns of `candidates_table`."""
    learnt = ""
    if one.learnt_parameters is not None and one.parameters:
        learnt = f"{one.learnt_parameters:,} ({one.learnt_parameters / one.parameters:.2%})"
    memory = None if one.memory_bytes is None else one.memory_bytes / 2**30
    return (
        f"{one.name}{' ◆' if one.front else ''}",
        f"failed: {one.told}" if one.value is None else shown(one.value, ".4f"),
        "" if one.behind is None else shown(one.behind, ".4f"),
        _number(one.latency_ms, ".1f"),
        _number(one.rows_per_second, ",.0f"),
        _number(one.size_mb, ",.1f"),
        learnt,
        _number(one.train_seconds, ",.0f"),
        _number(one.tokens_per_second, ",.0f"),
        _number(memory, ".2f"),
    )


def _number(value: float | None, how: str) -> str:
    return "" if value is None else f"{value:{how}}"


def about_training(models: Sequence[Artifact], speed: Artifact) -> dict[str, Any]:
    """What a candidate's trainings and its speed say, as `Candidate` has it."""
    first, many = models[0].summary, len(models)
    return {
        "seeds": many,
        "latency_ms": speed.summary["latency_ms_p50"],
        "rows_per_second": speed.summary["rows_per_second"],
        "size_mb": speed.summary["size_mb"],
        "parameters": first["parameters"],
        "learnt_parameters": first["trainable_parameters"],
        "train_seconds": sum(model.summary["seconds"] for model in models) / many,
        "tokens_per_second": sum(model.summary["tokens_per_second"] for model in models) / many,
        "memory_bytes": max(model.summary["peak_memory_bytes"] for model in models),
    }


@stage_task
def trivial(context: Context, sides: Artifact, lessons: Artifact) -> Artifact:
    """Fit the trivial models to what the candidates learn from, and predict the validation rows."""
    recipe = context.recipe
    return context.artifact(
        "trivial",
        validation_baselines,
        settings={"task": recipe.task, "metric": recipe.metric},
        inputs={"split": sides, "lessons": lessons},
        modules=(type(context.family).__module__,),
        libraries=("numpy", "polars", "scikit-learn"),
        part_of="evaluate",
    )


@stage_task
def speed(context: Context, sides: Artifact, model: Artifact) -> Artifact:
    """Time a candidate on the validation rows."""
    return context.artifact(
        "pace",
        validation_speed,
        settings={"task": context.recipe.task, "machine": fingerprint()},
        inputs={"split": sides, "model": model},
        unkeyed={"run_job": run_in_child(context)},
        modules=("tasks.latency", type(context.family).__module__),
        libraries=("mlflow", "torch", "transformers"),
        apart_from=MEASURING,
        part_of="evaluate",
    )


@stage_task
def comparison(context: Context, tokens: Artifact, baselines: Artifact, entries: Sequence[Entry]) -> Artifact:
    """Say which candidate to have."""
    recipe = context.recipe
    return context.artifact(
        "compare",
        draw_comparison,
        settings={
            **settings_of(recipe),
            "entries": [entry.about for entry in entries],
            "seeds": [len(entry.predictions) for entry in entries],
        },
        inputs={
            "tokens": tokens,
            "baselines": baselines,
            "predictions": [one for entry in entries for one in entry.predictions],
        },
        modules=(type(context.family).__module__,),
        libraries=MEASURED_WITH,
    )
