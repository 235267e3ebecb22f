"""The gate: named checks that decide whether a model may serve.

Deciding is a pure function of what was measured. Against the champion a model is measured on test rows that neither
was trained on (`tasks.held_out`). Does not cover predicting with the champion (`tasks.champion`), nor promotion
(`tasks.registry`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schemas.base import TaskSection
from schemas.errors import ChildDied, DataError, Mistake
from schemas.recipe import Evaluate, Gate, Threshold
from schemas.records import Artifact, Check, Interval, Record, Verdict
from tasks.champion import champion_artifact
from tasks.context import Context
from tasks.families import Meta, family_of
from tasks.held_out import common_rows, test_hashes, training_hashes
from tasks.keys import stage_key
from tasks.register import identity_of, training_hashes_of
from tasks.registry import Registered, champion
from tasks.stage import stage_task

if TYPE_CHECKING:
    import polars as pl

MIN_COMMON_ROWS = 30
"""Fewer rows than this decide nothing between two models."""
SEED = 0
"""Of the bootstrap, so that the same predictions always get the same verdict."""


class Comparison(Record):
    """A challenger measured against the champion on common ground.

    Attributes:
        version: The champion's, in the registry.
        rows: Test rows compared.
        excluded: Test rows left out, because one of the two was trained on them.
        gain: Of the challenger over the champion; none when it could not be measured.
        problem: Why the champion could not be measured, in words.
        same_model: The champion is this very model.
    """

    version: str
    rows: int = 0
    excluded: int = 0
    gain: Interval | None = None
    problem: str | None = None
    same_model: bool = False


def judge(
    gate: Gate, evaluate: Evaluate, metric: str, summary: Mapping[str, Any], champion: Comparison | None
) -> tuple[Check, ...]:
    """All checks of the gate, in the recipe's order; a model may serve when every one has passed.

    Args:
        gate: What is asked.
        evaluate: The confidence of the intervals.
        metric: The metric that decides.
        summary: Of the evaluation; see `tasks.evaluate.evaluate_model`.
        champion: The comparison with the serving model; none when nothing serves.
    """
    checks = [_threshold(threshold, summary["metrics"], evaluate) for threshold in gate.thresholds]
    if gate.beat_baseline:
        checks.append(_baseline(metric, summary, evaluate))
    if gate.beat_champion != "ignore":
        checks.append(_champion(gate, metric, champion, evaluate))
    return tuple(checks)


def compare(
    task: TaskSection,
    meta: Meta,
    new: pl.DataFrame,
    old: pl.DataFrame,
    *,
    evaluate: Evaluate,
    metric: str,
    version: str,
    hashes: Mapping[str, str],
    trained_on_champion: Collection[str] | None,
    trained_on_new: Collection[str],
) -> Comparison:
    """Measure a challenger against the champion on the test rows that neither was trained on.

    Args:
        task: The recipe's task.
        meta: Of the test rows.
        new: The challenger's predictions of the test rows.
        old: The champion's.
        evaluate: Confidence and resamples.
        metric: The metric that decides.
        version: The champion's.
        hashes: Of the test rows, see `tasks.held_out.test_hashes`.
        trained_on_champion: Of the champion's training rows; none when nobody knows them.
        trained_on_new: Of the challenger's.
    """
    import polars as pl

    if trained_on_champion is None:
        return Comparison(version=version, problem="nobody knows which rows it was trained on")
    kept, excluded = common_rows(hashes, trained_on_champion, trained_on_new)
    common = pl.DataFrame({"id": kept}, schema={"id": pl.String})
    new, old = new.join(common, on="id", how="semi"), old.join(common, on="id", how="semi")
    rows = new.join(old, on="id", how="semi").height
    counted = Comparison(version=version, rows=rows, excluded=excluded)
    if rows < MIN_COMMON_ROWS:
        return counted
    try:
        gain = family_of(task).gain(
            new,
            old,
            meta,
            metric,
            resamples=evaluate.bootstrap_resamples,
            confidence=evaluate.confidence,
            seed=SEED,
        )
    except DataError as error:
        return counted.model_copy(update={"problem": str(error)})
    return counted.model_copy(update={"gain": gain})


def verdict_markdown(checks: Sequence[Check]) -> str:
    """The verdict as Markdown: in one word, then check by check."""
    failed = sum(not check.passed for check in checks)
    head = f"**The gate is closed: {failed} of {len(checks)} checks failed.**" if failed else "**The gate is open.**"
    rows = [
        f"| {'✅' if check.passed else '❌'} | `{check.name}` | {_cell(check.rule)} | {_cell(check.found)} |"
        for check in checks
    ]
    table = ["| | check | rule | found |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([head, "", *table] if checks else [head, "", "The recipe asks for no checks."]) + "\n"


def _threshold(threshold: Threshold, metrics: Mapping[str, float], evaluate: Evaluate) -> Check:
    name = threshold.metric
    value = metrics[name]
    found = Interval(value=value, low=metrics[f"{name}_low"], high=metrics[f"{name}_high"])
    return Check(
        name=f"threshold:{name}",
        passed=value >= threshold.at_least,
        rule=f"at least {threshold.at_least:g}",
        found=_shown(found, evaluate),
    )


def _baseline(metric: str, summary: Mapping[str, Any], evaluate: Evaluate) -> Check:
    name, rule = f"baseline:{metric}", "better than the best baseline: the interval of the gain lies above 0"
    baselines = summary["baselines"]
    if not baselines:
        return Check(name=name, passed=False, rule=rule, found="no baseline was measured")
    best = max(baselines, key=lambda baseline: baselines[baseline][metric])
    gain = Interval(**{bound: summary["gains"][best][bound] for bound in ("value", "low", "high")})
    found = f"{_shown(gain, evaluate, signed=True)} over {best} ({baselines[best][metric]:.4f})"
    return Check(name=name, passed=gain.low > 0, rule=rule, found=found)


def _champion(gate: Gate, metric: str, champion: Comparison | None, evaluate: Evaluate) -> Check:
    name, least = f"champion:{metric}", 0.0
    rule = "better than the champion: the interval of the gain lies above 0"
    if gate.beat_champion == "not-worse":
        least = -gate.champion_margin
        rule = f"not worse than the champion: the interval of the gain lies above {least:g}"
    passed, found = _compared(champion, least, evaluate)
    return Check(name=name, passed=passed, rule=rule, found=found)


def _compared(champion: Comparison | None, least: float, evaluate: Evaluate) -> tuple[bool, str]:
    """Whether the gain is surely above `least`, and what was found in words."""
    if champion is None:
        return True, "no champion yet"
    if champion.same_model:
        return True, f"version {champion.version} is this very model"
    if champion.problem is not None:
        return False, f"version {champion.version} could not be measured: {champion.problem}"
    left_out = f"{champion.excluded or 'none'} left out because one of the two was trained on them"
    if champion.gain is None or champion.rows < MIN_COMMON_ROWS:
        few = f"{champion.rows:,} test rows are common ground with version {champion.version}, {left_out}"
        return False, f"undecidable: only {few}; {MIN_COMMON_ROWS} are needed"
    gain = _shown(champion.gain, evaluate, signed=True)
    return champion.gain.low > least, f"{gain} over version {champion.version} on {champion.rows:,} rows, {left_out}"


def _shown(found: Interval, evaluate: Evaluate, *, signed: bool = False) -> str:
    form = "+.4f" if signed else ".4f"
    return f"{found.value:{form}} ({evaluate.confidence:.0%} interval {found.low:{form}} to {found.high:{form}})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


@stage_task
def gate(context: Context, sides: Artifact, model: Artifact, scores: Artifact) -> Verdict:
    """Decide whether the model may serve. Never cached: the champion may be another one by now."""
    began = time.monotonic()
    recipe = context.recipe
    serving = champion(context.home, recipe.model_name)
    comparison = None if serving is None else common_ground(context, sides, model, scores, serving)
    checks = judge(recipe.gate, recipe.evaluate, recipe.metric, scores.summary, comparison)
    asked = {"gate": recipe.gate, "champion": serving.identity if serving else None}
    key, _ = stage_key("gate", asked, {"evaluate": scores.key}, modules=("tasks.gate",), libraries=())
    return Verdict(
        stage="gate",
        key=key,
        cached=False,
        why="",
        seconds=time.monotonic() - began,
        run_id=context.run_id,
        passed=all(check.passed for check in checks),
        checks=checks,
        champion=serving.version if serving else None,
        same_model=comparison is not None and comparison.same_model,
    )


def common_ground(
    context: Context, sides: Artifact, model: Artifact, scores: Artifact, serving: Registered
) -> Comparison:
    """The new model measured against the serving one; what stands in the way of that is reported, never skipped."""
    import polars as pl

    if serving.identity == identity_of(context.home, context.path(model), context.family):
        return Comparison(version=serving.version, same_model=True)
    recipe, split = context.recipe, context.path(sides)
    try:
        old = context.path(champion_artifact(context, sides, serving))
        known_by = training_hashes_of(context.home, serving)
    except (ChildDied, Mistake, FileNotFoundError) as error:
        return Comparison(version=serving.version, problem=str(error).splitlines()[0])
    return compare(
        recipe.task,
        json.loads((split / "meta.json").read_text()),
        pl.read_parquet(context.path(scores) / "predictions.parquet", glob=False),
        pl.read_parquet(old / "predictions.parquet", glob=False),
        evaluate=recipe.evaluate,
        metric=recipe.metric,
        version=serving.version,
        hashes=test_hashes(split),
        trained_on_champion=known_by,
        trained_on_new=training_hashes(split),
    )
