"""The gate: gathers what was measured and decides whether a model may serve.

Deciding is `tasks.checks`. Against the champion a model is measured on test rows that neither was trained on
(`tasks.held_out`), from predictions that the registered champion itself makes of the raw rows (`tasks.served`). Does
not cover promotion (`tasks.registry`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.errors import DataError, Fault, Mistake
from schemas.recipe import Gate, Recipe
from schemas.records import Artifact, Check, Decision, Interval, Paired, Verdict
from tasks.candidates import Candidate, trained_candidate
from tasks.checks import MIN_COMMON_ROWS, Comparison, Evidence, decide, judge
from tasks.context import Context
from tasks.evaluate import bootstrap_options, meta_of, read_predictions
from tasks.families import Family, Meta
from tasks.held_out import common_rows, test_hashes
from tasks.keys import stage_key
from tasks.markdown import plain
from tasks.register import training_hashes_of
from tasks.registry import Registered, champion
from tasks.served import known_labels, served_predictions
from tasks.slices import Slice, below_champion, below_floor, named
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

    from tasks.held_out import Hashes


def assess(
    context: Context, gate: Gate, candidate: Candidate, serving: Registered | None, rows: Rows
) -> tuple[tuple[Check, ...], Comparison | None]:
    """Every check of a gate for a candidate, and how it compares with who serves.

    Args:
        context: The run's.
        gate: What is asked.
        candidate: Who wants to serve.
        serving: Who serves; none where nobody does.
        rows: Today's rows.
    """
    comparison = None
    if serving is not None and (gate.beat_champion != "ignore" or gate.slice_margin is not None):
        comparison = common_ground(context, gate, candidate, serving, rows)
    found = gather(
        context.recipe, context.family, meta_of(context.recipe.task, context.path(rows.sides)), gate, candidate
    )
    evidence = Evidence(**found, shares=rows.shares(), champion=comparison)
    return judge(gate, evidence), comparison


@dataclass(frozen=True)
class Rows:
    """Today's rows, from the source to the tokens."""

    raw: Artifact
    cleaned: Artifact
    sides: Artifact
    tokens: Artifact

    def shares(self) -> dict[str, float]:
        """What of the data the gate bounds, as shares; see `tasks.checks.Evidence`."""
        collected = self.raw.summary["rows"]
        lost = sum(self.cleaned.summary["quarantined"].values()) + sum(self.sides.summary["leaked_by_reason"].values())
        lost += sum(self.tokens.summary["dropped"].values())
        labels = self.sides.summary["labels"]
        return {
            "quarantined": lost / collected if collected else 0.0,
            "truncated": float(self.tokens.summary["truncated"]["test"]),
            "label_shift": largest_shift(labels["train"], labels["test"]),
        }


def largest_shift(train: Mapping[str, int], test: Mapping[str, int]) -> float:
    """Largest difference of a label's share between two sides; 0 where rows have no labels."""
    trained, tested = sum(train.values()), sum(test.values())
    if not trained or not tested:
        return 0.0
    return max(abs(train.get(label, 0) / trained - test.get(label, 0) / tested) for label in {*train, *test})


def gather(recipe: Recipe, family: Family, meta: Meta, gate: Gate, candidate: Candidate) -> dict[str, Any]:
    """What the checks ask of the candidate alone, as arguments of `Evidence`."""
    summary = candidate.summary
    scores = family.row_scores(candidate.predictions, meta).to_numpy()
    below = [] if gate.slice_floor is None else below_floor(scores, candidate.parts, gate.slice_floor, **_sure(recipe))
    return {
        "metric": recipe.metric,
        "evaluate": recipe.evaluate,
        "metrics": summary["metrics"],
        "baselines": summary["baselines"],
        "gains": {name: Paired.model_validate(gain) for name, gain in summary["gains"].items()},
        "rows": summary["rows"],
        "on_slices": _on_slices(recipe, family, meta, gate, candidate),
        "slices": len(summary["slices"]),
        "below_floor": below,
        "speed": summary["speed"],
    }


def _on_slices(
    recipe: Recipe, family: Family, meta: Meta, gate: Gate, candidate: Candidate
) -> dict[tuple[str, str], Interval]:
    """The metrics that thresholds bound on single slices."""
    found: dict[tuple[str, str], Interval] = {}
    for name in {threshold.slice for threshold in gate.thresholds if threshold.slice is not None}:
        part = named(candidate.parts, name)
        if part is None:
            continue
        measured = family.intervals(candidate.predictions.filter(part.mask), meta, **bootstrap_options(recipe.evaluate))
        found |= {(metric, name): interval for metric, interval in measured.items()}
    return found


def common_ground(
    context: Context, gate: Gate, candidate: Candidate, serving: Registered, rows: Rows
) -> Comparison:  # fmt: skip
    """The candidate against the serving model; what stands in the way of that is reported, never skipped."""
    if serving.identity is not None and serving.identity == candidate.identity:
        return Comparison(version=serving.version, same_model=True)
    split = context.path(rows.sides)
    try:
        known_by = training_hashes_of(context.home, serving)
        labels = known_labels(context.home, serving)
        # Last, because only then is it sure that the version answers as hone asks.
        predicted = context.path(served_predictions(context, rows.raw, rows.sides, serving))
    except (Fault, Mistake, FileNotFoundError) as error:
        return Comparison(version=serving.version, problem=str(error).splitlines()[0])
    return compare(
        context.recipe,
        context.family,
        meta_of(context.recipe.task, split),
        candidate,
        read_predictions(predicted / "test.parquet"),
        version=serving.version,
        labels=labels,
        hashes=test_hashes(split),
        trained_on_champion=known_by,
        slice_margin=gate.slice_margin,
    )


def compare(
    recipe: Recipe,
    family: Family,
    meta: Meta,
    candidate: Candidate,
    old: pl.DataFrame,
    *,
    version: str,
    labels: tuple[str, ...] | None,
    hashes: pl.DataFrame,
    trained_on_champion: Hashes | None,
    slice_margin: float | None,
) -> Comparison:
    """Measure a candidate against the champion on the test rows that neither was trained on.

    Where the set of labels has changed, rows with a label that the champion does not know are left out: it could not
    be right on them, and would hide what the candidate got worse at.

    Args:
        recipe: Its metric, confidence and resamples.
        family: The task's.
        meta: Of the test rows.
        candidate: With its predictions of the test rows.
        old: The champion's.
        version: The champion's.
        labels: That the champion knows; none where the task has none.
        hashes: Of the test rows, see `tasks.held_out.test_hashes`.
        trained_on_champion: Of the champion's training rows; none when nobody knows them.
        slice_margin: Loss of right answers on a slice that still counts as not worse; none: slices are not compared.
    """
    if trained_on_champion is None or candidate.trained_on is None:
        whose = "it" if trained_on_champion is None else "the candidate"
        return Comparison(version=version, problem=f"nobody knows which rows {whose} was trained on")
    kept, excluded = common_rows(hashes, trained_on_champion, candidate.trained_on)
    meta, old, unknown, note = _with_labels_of_both(meta, old.filter(old["id"].is_in(kept.implode())), labels)
    common = candidate.predictions.filter(candidate.predictions["id"].is_in(old["id"].implode()))
    counted = Comparison(
        version=version, rows=common.height, excluded=excluded, unknown_labels=unknown, note=note
    )  # fmt: skip
    if common.height < MIN_COMMON_ROWS:
        return counted
    try:
        paired = family.paired(common, old, meta, recipe.metric, **bootstrap_options(recipe.evaluate))
    except DataError as error:
        return counted.model_copy(update={"problem": str(error)})
    if slice_margin is None:
        return counted.model_copy(update={"paired": paired})
    here = candidate.predictions["id"].is_in(common["id"].implode()).to_numpy()
    parts = [Slice(part.name, part.kind, part.mask[here]) for part in candidate.parts]
    pairs = common.select("id").join(old, on="id", how="left", maintain_order="left")
    ours, theirs = (family.row_scores(predictions, meta).to_numpy() for predictions in (common, pairs))
    weaker = below_champion(ours, theirs, parts, slice_margin, **_sure(recipe))
    return counted.model_copy(update={"paired": paired, "weaker_on": tuple(weaker), "slices": len(parts)})


def _sure(recipe: Recipe) -> dict[str, Any]:
    """How sure a shortfall must be, and on how many rows."""
    return {"confidence": recipe.evaluate.confidence, "min_rows": recipe.evaluate.slices.min_rows}


def _with_labels_of_both(
    meta: Meta, old: pl.DataFrame, labels: tuple[str, ...] | None
) -> tuple[Meta, pl.DataFrame, int, str]:
    """Meta and the champion's rows cut to the labels that both know, how many rows that costs, and what to say."""
    today = tuple(meta.get("labels", ()))
    if labels is None or set(labels) == set(today):
        return meta, old, 0, ""
    both = [label for label in today if label in labels]
    kept = old.filter(_all_among(old["truth"], both))
    new = sorted(set(today) - set(labels))
    gone = sorted(set(labels) - set(today))
    told = [f"labels {what}: {', '.join(names)}" for what, names in (("new", new), ("gone", gone)) if names]
    return {**meta, "labels": both}, kept, old.height - kept.height, "; ".join(told)


def _all_among(truth: pl.Series, labels: Sequence[str]) -> pl.Series:
    """Whether the label of each row, or every one of them, is among these."""
    if not truth.dtype.is_nested():
        return truth.is_in(list(labels))
    return truth.list.eval(pl.element().is_in(list(labels))).list.all()


DECISIONS: dict[Decision, str] = {
    "promote": "The gate is open: the model may serve.",
    "challenger": "The model waits as challenger: it is not worse than the champion, and not shown to be better.",
    "undecidable": "Undecidable: nothing failed, but the test rows cannot decide.",
    "reject": "The gate is closed.",
}
"""Verdicts, for people."""
MARKS = {"passed": "passed", "failed": "**FAILED**", "undecidable": "undecidable", "not better": "not better"}
"""Words, not pictures: not every browser has a font for them."""


def verdict_markdown(verdict: Verdict) -> str:
    """The verdict as Markdown: in one sentence, then check by check."""
    head = f"**{DECISIONS[verdict.decision]}**"
    failed = sum(check.outcome == "failed" for check in verdict.checks)
    if failed:
        head += f" {failed} of {len(verdict.checks)} checks failed."
    if verdict.rows_needed:
        head += f" About {verdict.rows_needed:,} test rows would."
    if not verdict.checks:
        return f"{head}\n\nThe recipe asks for no checks.\n"
    rows = [
        f"| {MARKS[check.outcome]} | `{check.name}` | {plain(check.rule)} | {plain(check.found)} |"
        for check in verdict.checks
    ]
    return "\n".join([head, "", "| | check | rule | found |", "| --- | --- | --- | --- |", *rows]) + "\n"


@stage_task
def gate(
    context: Context, *, raw: Artifact, cleaned: Artifact, sides: Artifact, tokens: Artifact, model: Artifact,
    scores: Artifact,
) -> Verdict:  # fmt: skip
    """Decide whether the model may serve. Never cached: the champion may be another one by now."""
    began = time.monotonic()
    recipe, rows = context.recipe, Rows(raw, cleaned, sides, tokens)
    serving = champion(context.home, recipe.model_name)
    candidate = trained_candidate(context, sides, model, scores)
    checks, comparison = assess(context, recipe.gate, candidate, serving, rows)
    decision, rows_needed = decide(checks)
    asked = {"gate": recipe.gate, "champion": serving.identity if serving else None}
    key, _ = stage_key("gate", asked, {"evaluate": scores.key}, modules=("tasks.gate",), libraries=())
    return Verdict(
        stage="gate",
        key=key,
        cached=False,
        why="",
        seconds=time.monotonic() - began,
        run_id=context.run_id,
        decision=decision,
        checks=checks,
        champion=serving.version if serving else None,
        same_model=comparison is not None and comparison.same_model,
        rows_needed=rows_needed,
    )
