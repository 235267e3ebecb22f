"""The model card: what people must know before they use a model, and where it comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from schemas.recipe import Recipe
from schemas.records import CheckOutcome, Interval, SliceScore, Verdict
from tasks.markdown import plain
from tasks.outbox import without_password

WEAKEST_SHOWN = 5
CHECKOUT = Path(__file__).resolve().parents[1]
"""Where hone's rooms are."""
ROOMS = ("flows", "tasks", "schemas")
"""What of the checkout shapes a model."""


def model_card(
    recipe: Recipe,
    *,
    rows: Mapping[str, Any],
    train: Mapping[str, Any],
    metrics: Mapping[str, Interval],
    baselines: Mapping[str, Mapping[str, float]],
    slices: Sequence[SliceScore],
    row_score: str,
    calibration: Sequence[str],
    speed: Mapping[str, Any],
    verdict: Verdict,
    lineage: Mapping[str, str],
) -> str:
    """Markdown for people who are about to use the model.

    Args:
        recipe: What was run.
        rows: Counts by name, in order; a mapping (quarantined rows by reason, labels) becomes a list on its line.
        train: What to say of the training, in order.
        metrics: On the test rows, with intervals.
        baselines: Name → metrics.
        slices: Parts of the test rows; the weakest are shown.
        row_score: What a slice's value is.
        calibration: Sentences on what was fitted on validation.
        speed: See `tasks.evaluate.model_speed`.
        verdict: Of the gate.
        lineage: Where it comes from.
    """
    decides = recipe.metric
    base, method = _shown_base(recipe), recipe.train.method.kind
    lines = [
        f"# {recipe.model_name}",
        recipe.description,
        f"**Task:** {recipe.task.family}. **Base model:** `{base}`. **Method:** {method}.",
        f"**Intended use:** {recipe.registry.intended_use or 'not stated in the recipe.'}",
        "## Data",
        *_bullets({"source": _shown_location(recipe.collect.source.shown()), **rows}),
        "## Training",
        *_bullets({"epochs": recipe.train.epochs or "", **train}),
        "## Test metrics",
        f"| metric | value | {recipe.evaluate.confidence:.0%} interval |",
        "|---|---|---|",
        *(f"| {_bold(n, n == decides)} | {m.value:.4f} | {m.low:.4f} to {m.high:.4f} |" for n, m in metrics.items()),
        *(f"- Baseline {name}: {decides} {b[decides]:.4f}" for name, b in baselines.items() if decides in b),
        *_slices(slices, row_score),
        *_use(calibration, speed),
        f"## Gate: {verdict.decision}",
        *(f"- {_word(c.outcome)}: {c.name} ({c.rule}; found {c.found})" for c in verdict.checks),
        f"- measured against champion: {verdict.champion or 'none served'}",
        "## Limits",
        "- Measured on test rows of the same source; other texts may fare otherwise.",
        f"- {_overlong(recipe)}; blank or missing ones get no prediction.",
        "## Lineage",
        *_bullets(lineage),
    ]
    return "\n".join(_spaced(lines)) + "\n"


def _slices(slices: Sequence[SliceScore], row_score: str) -> list[str]:
    """The weakest parts of the test rows."""
    weakest = sorted(slices, key=lambda part: part.value)[:WEAKEST_SHOWN]
    if not weakest:
        return []
    rows = [
        f"| {plain(part.name)} | {part.rows:,} | {part.value:.4f} | {part.low:.4f} to {part.high:.4f} |"
        for part in weakest
    ]
    return ["## Weakest slices", f"| slice | rows | {row_score} | interval |", "|---|---|---|---|", *rows]


def _use(calibration: Sequence[str], speed: Mapping[str, Any]) -> list[str]:
    """What to expect of its probabilities, its speed and its size."""
    return [
        "## In use",
        f"- {speed['latency_ms_p50']:.1f} ms a request (95 of 100 within {speed['latency_ms_p95']:.1f} ms), "
        f"{speed['rows_per_second']:,.0f} rows a second in batches of 32, on {speed['machine']['cores']} cores",
        f"- {speed['size_mb']:,.1f} MB of files",
        *(f"- {sentence}" for sentence in calibration),
    ]


def _word(outcome: CheckOutcome) -> str:
    return outcome.upper() if outcome == "failed" else outcome


def _overlong(recipe: Recipe) -> str:
    longest = recipe.tokenize.max_seq_length
    if recipe.tokenize.overlong == "window":
        return f"Texts over {longest} tokens are read in overlapping windows"
    return f"Texts over {longest} tokens are cut"


def lineage_of(folder: Path, **known: str) -> dict[str, str]:
    """Where a model comes from.

    Args:
        folder: The recipe's folder; its git commit is noted, where there is one, and that of hone's own checkout.
        known: `train_key`, `data_digest`, `flow_run_id` and the like, passed through.
    """
    versions = {library: _installed(library) for library in ("hone", "torch", "transformers", "mlflow")}
    ours = {f"code_{name.removeprefix('git_')}": value for name, value in git_state(CHECKOUT, *ROOMS).items()}
    own = {"python": platform.python_version(), **{k: v for k, v in versions.items() if v}}
    return {**known, **git_state(folder), **ours, **own}


def git_state(folder: Path, *parts: str) -> dict[str, str]:
    """Commit of the folder's repository, and whether something is not committed: in it, or in these parts of it."""

    def ask(*words: str) -> str:
        asked = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=10, check=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
        return asked.stdout.strip()

    try:
        changed = bool(ask("status", "--porcelain", "--", *parts))
        return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": str(changed).lower()}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit
        return {}


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _shown_base(recipe: Recipe) -> str:
    base = _shown_location(recipe.model.base)
    return f"{base}@{recipe.model.revision}" if recipe.model.revision else base


def _shown_location(location: str) -> str:
    """A location for readers elsewhere: a local path tells them its last part only."""
    if "://" in location:
        return without_password(location)
    return Path(location).name if Path(location).is_absolute() else location


def _bold(text: str, really: bool) -> str:
    return f"**{text}**" if really else text


def _bullets(values: Mapping[str, Any]) -> list[str]:
    shown = {
        name: ", ".join(f"{n} {_number(v)}" for n, v in value.items()) if isinstance(value, Mapping) else _number(value)
        for name, value in values.items()
    }
    return [f"- {name.replace('_', ' ')}: {text}" for name, text in shown.items() if text]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _spaced(lines: Iterable[str]) -> Iterable[str]:
    """An empty line around headings and before and after tables, none between bullets."""
    before = ""
    for line in lines:
        if not line:
            continue
        if before and not (before[0] in "-|" and line[0] == before[0]):
            yield ""
        yield line
        before = line
