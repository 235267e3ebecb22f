"""Data report: what the rows of a run look like, where the others went, and how far they drifted since the last run.

Does not cover what a model makes of the rows (`tasks.evaluate`). Texts are shown only as examples, cut short; the
profile that is kept for the next comparison holds none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import DamagedArtifact
from schemas.records import Artifact
from tasks import data_plots
from tasks.context import Context
from tasks.data_profile import Measured, Profile, measure, quantiles
from tasks.digests import write_atomically
from tasks.drift import BOUNDS_TOLD, Finding, Turnover, compare, label_shift, turnover, words_that_gained
from tasks.fallen import Fallen, read_fallen
from tasks.home import Home
from tasks.labels import Labelled
from tasks.markdown import plain, shortened, table
from tasks.stage import stage_task

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

EXAMPLES = 2
"""Rows shown for each reason."""
EXAMPLE_CHARS = 90
MOST_LINES = 15
"""Sources and labels that a table names."""
MOST_WORDS = 8
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
KEPT_SNAPSHOTS = 100
"""Lines of the journal of a recipe's snapshots; older ones are dropped."""
REPEATS = ("duplicate", "contradicting_label")
"""Parts of the names of reasons that tell of another row."""
MARKS = "marks.npy"


def write_report(
    *,
    recipe: str,
    text_column: str,
    examples: int,
    before: str | None,
    clean: Path,
    split: Path,
    snapshot: Mapping[str, Any] | None,
    marks_before: Callable[[], Path | None],
    summaries: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> dict[str, Any]:
    """Write `report.md`, pictures, `profile.json` and `marks.npy`, the hashed ids that the next report compares with.

    Args:
        recipe: Name of the recipe.
        text_column: The column that lengths, words and examples are of.
        examples: Rows shown for each reason.
        before: Key of the split that drift is measured against.
        clean: Folder of the clean artifact.
        split: Folder of the split artifact.
        snapshot: The journal's line of `before`.
        marks_before: Finds the hashed ids of `before`, where they are still kept.
        summaries: Stage → its summary.
        out: Where to write.

    Returns:
        Counts of `rows` by outcome, `drift` (what → verdict), `measures` (name → value), `turnover`.
    """
    import numpy as np

    meta = json.loads((split / "meta.json").read_text(encoding="utf-8"))
    measured = measure(split, text_column, Labelled.by(meta))
    quarantined = read_fallen(clean / "quarantine.parquet", text_column, examples)
    leaked = read_fallen(split / "leaked.parquet", text_column, examples)
    earlier = Profile.from_dict(dict(snapshot["profile"])) if snapshot and before else None
    findings = compare(earlier, measured.profile) if earlier else []
    rows = _turnover(marks_before() if earlier else None, measured.marks)

    np.save(out / MARKS, measured.marks)
    (out / "profile.json").write_text(json.dumps(measured.profile.as_dict(), ensure_ascii=False), encoding="utf-8")
    sources = by_source(measured, quarantined, leaked)
    pictures = _draw(measured.profile, earlier, sources, out)
    parts = [
        f"# Data of {recipe}",
        _headline(measured.profile, quarantined, leaked, findings, snapshot if earlier else None),
        *_sources_section(sources),
        *_fallen_section(quarantined, leaked, sum(map(_total, sources.values()))),
        *_sides_section(measured.profile, summaries.get("split", {})),
        *_lengths_section(measured.profile),
        *_cleaning_section(summaries),
        *_drift_section(findings, rows, earlier, measured.profile, str((snapshot or {}).get("at"))),
        f"Pictures beside this page: {', '.join(path.name for path in pictures)}.",
    ]
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return {
        "rows": {
            "kept": len(measured.marks),
            "quarantined": quarantined.reasons.total(),
            "leaked": leaked.reasons.total(),
        },
        "before": snapshot["at"] if snapshot and earlier else None,
        "drift": worst(findings),
        "measures": {f"{finding.what}/{finding.measure}": finding.value for finding in findings},
        "turnover": asdict(rows) if rows else None,
    }


def by_source(measured: Measured, quarantined: Fallen, leaked: Fallen) -> dict[str, dict[str, int]]:
    """Source → outcome → rows."""
    outcomes = {"kept": measured.sources, "quarantined": quarantined.sources, "leaked": leaked.sources}
    names = sorted({name for counts in outcomes.values() for name in counts})
    return {name: {outcome: counts.get(name, 0) for outcome, counts in outcomes.items()} for name in names}


def worst(findings: Iterable[Finding]) -> dict[str, str]:
    """What → the verdict of its first measure, which is the one that decides."""
    verdicts: dict[str, str] = {}
    for finding in findings:
        verdicts.setdefault(finding.what, finding.verdict)
    return verdicts


def last_snapshot(home: Home, recipe: str, key: str) -> dict[str, Any] | None:
    """The journal's last line of another split than `key`; none before the second one."""
    others = [line for line in snapshots(home, recipe) if line["key"] != key]
    return others[-1] if others else None


def remember(home: Home, recipe: str, line: Mapping[str, Any]) -> None:
    """Add a snapshot to the journal, unless one of its key is there."""
    from filelock import FileLock

    with FileLock(home.locks / f"snapshots-{recipe}.lock"):
        lines = snapshots(home, recipe)
        if any(known["key"] == line["key"] for known in lines):
            return
        kept = [*lines, dict(line)][-KEPT_SNAPSHOTS:]
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
        write_atomically(_journal_file(home, recipe), text)


def snapshots(home: Home, recipe: str) -> list[dict[str, Any]]:
    """The journal's lines, oldest first: `at`, `key` of the split, `report` and `profile`."""
    file = _journal_file(home, recipe)
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _journal_file(home: Home, recipe: str) -> Path:
    return home.journal / "snapshots" / f"{recipe}.jsonl"


def _turnover(file: Path | None, marks: np.ndarray[Any, Any]) -> Turnover | None:
    import numpy as np

    return turnover(np.load(file, mmap_mode="r"), marks) if file else None


def _draw(after: Profile, before: Profile | None, sources: Mapping[str, Mapping[str, int]], out: Path) -> list[Path]:
    pictures = [data_plots.outcomes(sources, out / "sources.png")]
    if after.labels:
        pictures.append(data_plots.labels(_label_shares(after), out / "labels.png"))
    pictures.append(data_plots.lengths(after.lengths, before.lengths if before else None, out / "lengths.png"))
    return pictures


def _headline(
    profile: Profile, quarantined: Fallen, leaked: Fallen, findings: list[Finding], snapshot: Mapping[str, Any] | None
) -> str:
    kept = sum(profile.rows.values())
    collected = kept + quarantined.reasons.total() + leaked.reasons.total()
    fates = [f"{kept:,} kept", f"{quarantined.reasons.total():,} quarantined", f"{leaked.reasons.total():,} leaked"]
    line = f"**{collected:,} rows collected: {', '.join(fates)}.**"
    if snapshot is None:
        return f"{line} There is no earlier snapshot to compare with."
    verdicts = ", ".join(f"{what} {verdict}" for what, verdict in worst(findings).items())
    return f"{line} Drift since {snapshot['at']}: {verdicts}."


def _sources_section(sources: Mapping[str, Mapping[str, int]]) -> list[str]:
    largest = sorted(sources.items(), key=lambda item: (-_total(item[1]), item[0]))
    rows = [
        (plain(shortened(name, 60)), f"{_total(counts):,}", *(f"{rows:,}" for rows in counts.values()))
        for name, counts in largest[:MOST_LINES]
    ]
    head = ("source", "collected", "kept", "quarantined", "leaked")
    return ["## Sources", table(head, rows), *_more(len(largest), "sources")]


def _fallen_section(quarantined: Fallen, leaked: Fallen, collected: int) -> list[str]:
    if not quarantined.reasons and not leaked.reasons:
        return ["## Rows set aside", "None."]
    rows, shown = [], []
    for stage, fallen in (("clean", quarantined), ("split", leaked)):
        for reason, count in sorted(fallen.reasons.items(), key=lambda item: (-item[1], item[0])):
            rows.append((f"`{reason}`", stage, f"{count:,}", _percent(count, collected)))
            for example in fallen.examples.get(reason, []):
                where = plain(f"{example['source']}:{example['row']}")
                shown.append(f"- `{reason}` {where}: {plain(shortened(example['text'], EXAMPLE_CHARS))}")
    reasons = quarantined.reasons + leaked.reasons
    again = sum(count for reason, count in reasons.items() if any(part in reason for part in REPEATS))
    duplicates = f"Repeating or contradicting another row: {again:,} rows, {_percent(again, collected)} of all."
    parts = ["## Rows set aside", table(("reason", "stage", "rows", "share"), rows), duplicates]
    return [*parts, "\n".join(shown)] if shown else parts


def _sides_section(profile: Profile, summary: Mapping[str, Any]) -> list[str]:
    total = sum(profile.rows.values())
    rows = [(side, f"{count:,}", _percent(count, total)) for side, count in profile.rows.items()]
    parts = ["## Sides", table(("side", "rows", "share"), rows)]
    visible = summary.get("smallest_visible_difference")
    if visible is not None:
        parts.append(f"The test shows differences from {100 * visible:.1f} points of a row's mean score on.")
    if not profile.labels:
        return parts
    shares = _label_shares(profile)
    names = sorted(profile.label_totals, key=lambda name: (-profile.label_totals[name], name))
    lines = [
        (
            plain(shortened(name, 60)),
            f"{profile.label_totals[name]:,}",
            *(f"{found[name]:.1%}" for found in shares.values()),
        )
        for name in names[:MOST_LINES]
    ]
    shifts = [label_shift(side, profile.labels["train"], profile.labels[side]) for side in ("validation", "test")]
    told = [f"{shift.what} {shift.verdict} ({shift.value:.3f}, p {shift.p:.2g})" for shift in shifts]
    parts += ["## Labels", table(("label", "rows", *shares), lines), *_more(len(names), "labels")]
    return [*parts, f"Shift of the shares from those of train, by total variation: {', '.join(told)}."]


def _lengths_section(profile: Profile) -> list[str]:
    head = ("characters", "shortest", *(f"{share:.0%}" for share in SHARES), "longest")
    found = [
        profile.shortest,
        *(min(chars, profile.longest) for chars in quantiles(profile.lengths, SHARES)),
        profile.longest,
    ]
    told = "Shares of the rows that are no longer; exact below 64 characters, within a tenth above."
    return ["## Lengths", table(head, [("of kept rows", *(f"{chars:,}" for chars in found))]), told]


def _cleaning_section(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What cleaning changed, as far as the stages counted it."""
    cleaning = summaries.get("clean", {})
    changed = cleaning.get("changed") or {"any repair": cleaning.get("repaired", 0)}
    rows = [(plain(str(rule)), f"{count:,}") for rule, count in changed.items() if count]
    return ["## Cleaning", table(("rule", "rows changed"), rows) if rows else "No row was changed."]


def _drift_section(
    findings: Sequence[Finding], rows: Turnover | None, before: Profile | None, after: Profile, at: str
) -> list[str]:
    if before is None:
        return []
    lines = [(f.what, f.measure, f"{f.value:.3f}", f"{f.p:.2g}", f"**{f.verdict}**") for f in findings]
    parts = [f"## Drift since {at}", _rows_told(rows, before, after)]
    parts.append(table(("what", "measure", "value", "p", "verdict"), lines))
    gained = words_that_gained(before, after, MOST_WORDS)
    lost = words_that_gained(after, before, MOST_WORDS)
    for title, words in (("gained", gained), ("lost", [(word, old, new) for word, new, old in lost])):
        if words:
            told = ", ".join(f"{plain(word)} ({old:.2%} → {new:.2%})" for word, old, new in words)
            parts.append(f"Words that {title} most, by share of the rows: {told}.")
    return [*parts, BOUNDS_TOLD]


def _rows_told(rows: Turnover | None, before: Profile, after: Profile) -> str:
    if rows is None:
        counts = f"{sum(before.rows.values()):,} rows then, {sum(after.rows.values()):,} now"
        return f"{counts}; which are new is not known: the earlier report is gone from the store."
    moved = f" {rows.moved:,} changed sides." if rows.moved else " None of them changed sides."
    return f"{rows.new:,} new rows, {rows.vanished:,} vanished, {rows.kept:,} in both.{moved}"


def _label_shares(profile: Profile) -> dict[str, dict[str, float]]:
    return {
        side: {name: counts.get(name, 0) / max(1, sum(counts.values())) for name in profile.label_totals}
        for side, counts in profile.labels.items()
    }


def _more(count: int, what: str) -> list[str]:
    return [f"And {count - MOST_LINES:,} more {what}."] if count > MOST_LINES else []


def _percent(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.2%}"


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


@stage_task
def data_report(
    context: Context, raw: Artifact, cleaned: Artifact, sides: Artifact, *, examples: int = EXAMPLES
) -> Artifact:
    """Describe the rows, and compare them with the snapshot before."""
    name = context.recipe.name
    snapshot = last_snapshot(context.home, name, sides.key)

    def marks_before() -> Path | None:
        try:
            return context.store.open("data-report", snapshot["report"]) / MARKS if snapshot else None
        except DamagedArtifact as damage:
            log.warning("which rows are new is not known: the earlier data report %s", damage)
            return None

    made = context.artifact(
        "data-report",
        write_report,
        settings={
            "recipe": name,
            "text_column": context.family.text_columns[0],
            "examples": examples,
            "before": snapshot["key"] if snapshot else None,
        },
        inputs={"clean": cleaned, "split": sides},
        unkeyed={
            "snapshot": snapshot,
            "marks_before": marks_before,
            "summaries": {artifact.stage: artifact.summary for artifact in (raw, cleaned, sides)},
        },
        libraries=("matplotlib", "numpy", "polars", "scipy"),
        part_of="split",
    )
    if all(line["key"] != sides.key for line in snapshots(context.home, name)):
        profile = json.loads((context.path(made) / "profile.json").read_text(encoding="utf-8"))
        at = datetime.now(UTC).isoformat(timespec="seconds")
        remember(context.home, name, {"at": at, "key": sides.key, "report": made.key, "profile": profile})
    return made
