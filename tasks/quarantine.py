"""Quarantine: what the last run of a recipe set aside, by reason; as a file to correct it with; and a replay.

A replay runs collect, clean and split as the recipe now says, in a scratch home on top of the real store, and looks
what became of the rows that were set aside. It reads the source again, and leaves nothing behind but remembered digests
of files. Does not cover texts that tokenizing drops.
"""

from __future__ import annotations

import csv
import difflib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.data import Expectations
from schemas.errors import DataError, Problem
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context, last_key
from tasks.fallen import Fallen, read_fallen
from tasks.families import family_of
from tasks.home import Home
from tasks.rows import batches, count, files
from tasks.signatures import digests
from tasks.split import SIDES, split
from tasks.store import Manifest, Store

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

GONE = "gone from the source"
KEPT = "kept"
COLLECTING = ("watermarks", "forgotten.jsonl")
"""What of the journal decides which rows are collected."""
NUMBERED = r"^([0-9a-f]{16})-\d+$"
"""Id of a row whose text was there before; corrections know it by the digest alone."""
UNSURE = "contradicting_label"
"""Reason whose rows have targets that nobody should take over unread."""


@dataclass(frozen=True)
class SetAside:
    """What the last run of a recipe set aside.

    Attributes:
        recipe: The recipe.
        files: Stage → its file.
        clean: Folder of the clean artifact.
        split: Folder of the split artifact that was made from it; none when it was not split.
        collected: Rows that were collected.
        kept: Rows on a side; none when it was not split.
        stale: Newer rows were collected since, and not cleaned to the end.
    """

    recipe: Recipe
    files: dict[str, Path]
    clean: Path
    split: Path | None
    collected: int
    kept: int | None
    stale: bool


@dataclass(frozen=True)
class Group:
    """Rows that were set aside for one reason.

    Attributes:
        stage: The stage that did.
        share: Share of the collected rows.
        sources: Source → rows.
        examples: The first few; see `tasks.fallen.Fallen`, and `twin_text` where the row resembles another.
    """

    stage: str
    reason: str
    rows: int
    share: float
    sources: dict[str, int]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: `rows` that can be corrected by their id, and how many have none."""

    rows: int
    without_id: int


@dataclass(frozen=True)
class Replay:
    """What would become of rows that were set aside.

    Attributes:
        fates: Reason they had → `kept`, the reason they would have now, or gone from the source → rows.
        kept: Rows kept now: on a side, or, where the rows cannot be split, by cleaning.
        stops: Why a run would stop all the same.
    """

    fates: dict[str, dict[str, int]]
    kept: int
    stops: list[str]


def last_set_aside(recipe: Recipe, home: Home) -> SetAside:
    """What the last run or dry run of this recipe left.

    Raises:
        DataError: There was none, or the store no longer has it.
    """
    store = Store(home.store, home.materialised)
    cleaned = _last(store, home, recipe, "clean")
    if cleaned is None:
        remedy = (
            "hone run RECIPE or hone check RECIPE first; when that stops because too many rows fall out, "
            "hone check RECIPE --set clean.max_quarantined=1"
        )
        raise DataError(Problem("RECIPE", recipe.name, "the store has no cleaned rows of it", remedy))
    sides = _last(store, home, recipe, "split")
    if sides is not None and cleaned.key not in sides.ingredients["inputs"].values():
        sides = None
    clean_folder = store.open("clean", cleaned.key)
    split_folder = store.open("split", sides.key) if sides else None
    return SetAside(
        recipe=recipe,
        files={"clean": clean_folder / "quarantine.parquet"}
        | ({"split": split_folder / "leaked.parquet"} if split_folder else {}),
        clean=clean_folder,
        split=split_folder,
        collected=cleaned.summary["collected"],
        kept=sum(sides.summary[side] for side in SIDES) if sides else None,
        stale=last_key(home, recipe.name, "collect") not in cleaned.ingredients["inputs"].values(),
    )


def _last(store: Store, home: Home, recipe: Recipe, stage: str) -> Manifest | None:
    key = last_key(home, recipe.name, stage)
    return store.find(stage, key) if key else None


def groups(found: SetAside, *, reason: str | None = None, examples: int = 0) -> list[Group]:
    """The rows by reason, the most frequent of each stage first.

    Raises:
        DataError: No row was set aside for `reason`.
    """
    family = family_of(found.recipe.task)
    text = family.text_columns[0]
    targets = [column for column in family.target_columns if column != text]
    fallen = {stage: read_fallen(file, text, examples, targets) for stage, file in found.files.items()}
    _require_known(reason, fallen)
    told = [
        Group(
            stage=stage,
            reason=why,
            rows=rows,
            share=rows / max(1, found.collected),
            sources=dict(sorted(some.counts[why].items(), key=lambda item: (-item[1], item[0]))),
            examples=some.examples[why],
        )
        for stage, some in fallen.items()
        for why, rows in sorted(some.reasons.items(), key=lambda item: (-item[1], item[0]))
        if reason in {None, why}
    ]
    _add_twins(found, text, told)
    return told


def _require_known(reason: str | None, fallen: dict[str, Fallen]) -> None:
    known = sorted({why for some in fallen.values() for why in some.counts})
    if reason is None or reason in known:
        return
    near = difflib.get_close_matches(reason, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"name one of {', '.join(known)}" if known else "leave it out"
    raise DataError(Problem("--reason", reason, "no row was set aside for it", remedy))


def _add_twins(found: SetAside, text: str, told: Sequence[Group]) -> None:
    """Give each example that resembles another row that row's text."""
    import polars as pl

    waiting = {str(example["twin"]) for group in told for example in group.examples if example.get("twin")}
    if not waiting:
        return
    texts: dict[str, str] = {}
    for frame in batches(files(found.clean / "rows"), ["id", text]):
        texts |= dict(frame.filter(pl.col("id").is_in(list(waiting))).iter_rows())
    for group in told:
        for example in group.examples:
            if example.get("twin"):
                example["twin_text"] = texts[example["twin"]]


def export(found: SetAside, target: Path, *, reason: str | None = None) -> Exported:
    """Write rows that were set aside as a file of corrections: id, the task's columns, and an empty `drop`.

    Targets of contradicting rows are left empty, so that a file nobody edited changes no label.

    Raises:
        DataError: The file is there, or is no .csv by its name; or no row was set aside for `reason`.
    """
    if target.suffix.lower() != ".csv":
        raise DataError(Problem("--export", str(target), "is no CSV by its name", "name a .csv file"))
    if target.exists():
        raise DataError(Problem("--export", str(target), "is there already", "name another file, or remove it"))
    if reason is not None:
        groups(found, reason=reason)
    columns = found.recipe.task.columns()
    rows = without_id = 0
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *dict.fromkeys(columns.values()), "drop"])
            for frame, unnamed in _exported(found, reason):
                without_id += unnamed
                rows += frame.height
                writer.writerows(frame.iter_rows())
        draft.replace(target)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(Problem("--export", str(target), why, "name a file in a folder that can be written")) from error
    finally:
        draft.unlink(missing_ok=True)
    return Exported(rows, without_id)


def _exported(found: SetAside, reason: str | None) -> Iterator[tuple[pl.DataFrame, int]]:
    """Rows to write, each id once, and how many beside them have no id."""
    import numpy as np
    import polars as pl

    columns, family = found.recipe.task.columns(), family_of(found.recipe.task)
    roles = {column: role for role, column in columns.items()}
    seen = np.empty(0, np.uint64)
    for file in found.files.values():
        for frame in batches([file]):
            chosen = frame if reason is None else frame.filter(pl.col("reason") == reason)
            named = chosen.filter(pl.col("id").is_not_null())
            if found.recipe.collect.id_column is None:
                named = named.with_columns(pl.col("id").str.replace(NUMBERED, "$1"))
            named = named.unique("id", keep="first", maintain_order=True)
            hashes = digests(named["id"])
            new = named.filter(pl.Series(~np.isin(hashes, seen)))
            seen = np.union1d(seen, hashes)
            sure = pl.col("reason") != UNSURE
            values = [
                pl.when(sure if role in family.target_columns else True).then(role).alias(column)
                for column, role in roles.items()
            ]
            yield new.select("id", *values, pl.lit("").alias("drop")), chosen["id"].null_count()


class _OnTop(Store):
    """A store whose artifacts lie on top of those of another, which is only read."""

    def __init__(self, below: Store, root: Path) -> None:
        super().__init__(str(root), root.with_name("materialised"))
        self._below = below

    def find(self, stage: str, key: str) -> Manifest | None:
        return super().find(stage, key) or self._below.find(stage, key)

    def open(self, stage: str, key: str) -> Path:
        return super().open(stage, key) if super().find(stage, key) else self._below.open(stage, key)


def replay(found: SetAside, home: Home, *, reason: str | None = None) -> Replay:
    """What the recipe's present rules would make of the rows that were set aside; nothing is changed.

    Raises:
        DataError: The source, a file of corrections or the split cannot be used; or no row was set aside for `reason`.
    """
    import numpy as np

    if reason is not None:
        groups(found, reason=reason)
    names, reasons, codes = _identities(found, reason)
    with _scratch(home) as scratch:
        context, cleaned, sides, stops = _run_again(found.recipe, home, scratch)
        left = _files(context, cleaned, sides)
        fate = _fates(left, names)
        kept = count([file for file, is_kept in left.items() if is_kept])
    fates: dict[str, dict[str, int]] = {}
    for code, why in enumerate(reasons):
        counts = zip(fate.names, np.bincount(fate.places[codes == code], minlength=len(fate.names)), strict=True)
        ranked = sorted(counts, key=lambda item: (item[0] != KEPT, -item[1], item[0]))
        fates[why] = {name: int(rows) for name, rows in ranked if rows}
    return Replay(fates, kept, stops)


@dataclass(frozen=True)
class _Fates:
    """`names[places[i]]` is what became of row i."""

    names: list[str]
    places: np.ndarray[Any, Any]


def _identities(found: SetAside, reason: str | None) -> tuple[np.ndarray[Any, Any], list[str], np.ndarray[Any, Any]]:
    """Of each row set aside what it is found again by, ascending; all reasons; and which of them it had."""
    import numpy as np
    import polars as pl

    names, codes, known = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], dict[str, int]()
    for file in found.files.values():
        for frame in batches([file], ["source", "row", "reason"]):
            chosen = frame if reason is None else frame.filter(pl.col("reason") == reason)
            for why in sorted(chosen["reason"].unique()):
                known.setdefault(why, len(known))
            names.append(_identity(chosen))
            codes.append(chosen["reason"].replace_strict(known, return_dtype=pl.UInt32).to_numpy())
    every = np.concatenate(names)
    order = np.argsort(every, kind="stable")
    return every[order], list(known), np.concatenate(codes)[order]


def _identity(rows: pl.DataFrame) -> np.ndarray[Any, Any]:
    """A number for each row's place in the source. Ids change with a text, and lines that are no rows have none."""
    import polars as pl

    return digests(rows.select(pl.format("{}:{}", "row", "source")).to_series())


def _files(context: Context, cleaned: Artifact, sides: Artifact | None) -> dict[Path, bool]:
    """Files that have all rows between them → whether those rows are kept."""
    folder = context.path(cleaned)
    fallen = {folder / "quarantine.parquet": False}
    if sides is None:
        return fallen | dict.fromkeys(files(folder / "rows"), True)
    split_folder = context.path(sides)
    return fallen | {split_folder / "leaked.parquet": False} | {split_folder / f"{s}.parquet": True for s in SIDES}


def _fates(files: Mapping[Path, bool], names: np.ndarray[Any, Any]) -> _Fates:
    import numpy as np
    import polars as pl

    known = {GONE: 0, KEPT: 1}
    places = np.zeros(len(names), np.uint32)
    for file, is_kept in files.items() if len(names) else ():
        for frame in batches([file], ["source", "row", *([] if is_kept else ["reason"])]):
            here = _identity(frame)
            at = np.searchsorted(names, here).clip(max=len(names) - 1)
            met = names[at] == here
            reasons = pl.repeat(KEPT, frame.height, eager=True) if is_kept else frame["reason"]
            for why in sorted(reasons.unique()):
                known.setdefault(why, len(known))
            codes = reasons.replace_strict(known, return_dtype=pl.UInt32).to_numpy()
            places[at[met]] = codes[met]
    return _Fates(list(known), places)


def _run_again(recipe: Recipe, home: Home, scratch: Home) -> tuple[Context, Artifact, Artifact | None, list[str]]:
    """Collect, clean and split in the scratch home, and why a run would stop; bounds that stop it are lifted."""
    below = Store(home.store, home.materialised)
    stops: list[Problem] = []

    def context_of(recipe: Recipe) -> Context:
        context = Context(recipe, scratch, "")
        context.store = _OnTop(below, scratch.root / "store")
        return context

    context = context_of(recipe)
    raw = collect(context)
    try:
        cleaned = clean(context, raw)
    except DataError as error:
        stops += error.problems
        context = context_of(_without_bounds(recipe))
        cleaned = clean(context, raw)
    try:
        return context, cleaned, split(context, cleaned), [str(problem) for problem in stops]
    except DataError as error:
        stops += error.problems
    context = context_of(_without_bounds(recipe))
    cleaned = clean(context, raw)
    try:
        sides = split(context, cleaned)
    except DataError:  # known already: a side without rows, or train without a label
        sides = None
    return context, cleaned, sides, [str(problem) for problem in stops]


def _without_bounds(recipe: Recipe) -> Recipe:
    none = {"min_rows": 0, "min_rows_per_label": 0}
    rules = recipe.clean.model_copy(update={"max_quarantined": 1.0, "expect": Expectations().model_copy(update=none)})
    sides = recipe.split.model_copy(update=none)
    return recipe.model_copy(update={"clean": rules, "split": sides})


@contextmanager
def _scratch(home: Home) -> Iterator[Home]:
    """A home that is gone afterwards. It shares the caches of the real one, and what its journal says on collecting."""
    scratch = Home(home.work / f"replay-{uuid.uuid4().hex[:8]}")
    try:
        for folder in (scratch.locks, scratch.work, scratch.journal):
            folder.mkdir(parents=True)
        (home.root / "cache").mkdir(exist_ok=True)
        (scratch.root / "cache").symlink_to(home.root / "cache", target_is_directory=True)
        for name in COLLECTING:
            if (home.journal / name).is_dir():
                shutil.copytree(home.journal / name, scratch.journal / name)
            elif (home.journal / name).exists():
                shutil.copyfile(home.journal / name, scratch.journal / name)
        yield scratch
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
