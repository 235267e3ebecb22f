"""Erasure: a person's rows leave the store and every copy that hone made; what hone must not touch is named.

A row is looked for by id and by normalised text in every artifact, draft, snapshot, download and log of the home.
Artifacts that hold it go, with those made from them: they are computed again without the row, because its hash keeps it
out of every later collection. Named, not changed: the source itself, registered versions that were trained on the row,
and reports in MLflow and Prefect that quote it. Does not cover backups, nor the databases of servers elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import family_names, load_family
from schemas.errors import Fault, Mistake
from schemas.recipe import Recipe
from tasks.collect import text_ids
from tasks.families import family_of
from tasks.forgotten import likenesses, remember
from tasks.held_out import among, known_by
from tasks.home import Home
from tasks.outbox import patiently
from tasks.register import training_hashes_of
from tasks.registry import Registered, version_of
from tasks.row_search import Hits, Terms, mentions, search_file, search_rows
from tasks.sources import pieces
from tasks.sources.conversations import composed
from tasks.store import MANIFEST, Store
from tasks.tracking import client

if TYPE_CHECKING:
    import polars as pl
    from mlflow import MlflowClient

    from tasks.held_out import Hashes

COPIES = {"cache/sources": 3, "cache/snapshots": 3, "cache/store": 4, "work": 2, "logs": 2, "journal/unsent": 3}
"""Folder of the home → how many parts of a path in it name what is removed as a whole."""
PREFECT_TEXTS = {"artifact": "data", "log": "message"}
"""Table of Prefect's database → column that may quote rows."""
ADDRESS = re.compile(r"[0-9a-f]{12,}")
"""A key or a digest, as the ingredients of an artifact name it."""


@dataclass(frozen=True)
class ArtifactHit:
    """An artifact that goes.

    Attributes:
        rows: Rows in it that were looked for; none where it is only made from such an artifact.
    """

    stage: str
    key: str
    rows: int


@dataclass(frozen=True)
class Found:
    """All places that hold the rows.

    Attributes:
        terms: What was looked for.
        ids: Ids of the rows found by text, and those given.
        artifacts: Of the store.
        copies: Downloads, snapshots, drafts, work in progress and logs, to be removed as a whole.
        sources: Piece of the recipe's source, or file of corrections → rows that it still has.
        unread: Piece of the source that could not be read → why.
        versions: Registered versions that were trained on one of the rows.
        quotes: MLflow's run or logged model, or Prefect's table → files or rows that quote one of them.
        unsearched: Places that cannot be searched from here.
    """

    terms: Terms
    raws: frozenset[str]
    artifacts: tuple[ArtifactHit, ...]
    copies: tuple[Path, ...]
    sources: Mapping[str, int]
    unread: Mapping[str, str]
    versions: tuple[Registered, ...]
    quotes: Mapping[str, Sequence[str]]
    unsearched: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether no place holds one of the rows."""
        return not (self.artifacts or self.copies or self.sources or self.versions or self.quotes)

    def as_dict(self) -> dict[str, Any]:
        """Everything but ids and texts, as JSON values."""
        by_stage = Counter(hit.stage for hit in self.artifacts)
        rows = Counter({hit.stage: 0 for hit in self.artifacts})
        for hit in self.artifacts:
            rows[hit.stage] += hit.rows
        return {
            "stages": {stage: {"artifacts": n, "rows": rows[stage]} for stage, n in sorted(by_stage.items())},
            "copies": [str(path) for path in self.copies],
            "sources": dict(self.sources),
            "unread": dict(self.unread),
            "versions": [
                {"name": one.name, "version": one.version, "aliases": list(one.aliases)} for one in self.versions
            ],
            "quotes": {place: list(files) for place, files in self.quotes.items()},
            "unsearched": list(self.unsearched),
        }


def find(home: Home, recipe: Recipe, ids: Iterable[str], texts: Iterable[str]) -> Found:
    """Look for rows everywhere.

    Args:
        home: Where.
        recipe: Its source is searched too, and its experiment.
        ids: Of rows.
        texts: Of rows, however they are written.
    """
    import polars as pl

    asked = Terms(frozenset(ids), frozenset(likenesses(pl.Series(list(texts), dtype=pl.String)).to_list()))
    store = _Shelves(home, {column for name in family_names() for column in load_family(name).text_columns})
    by_artifact, hits = store.search(asked)
    while hits.ids - asked.ids:  # a text that cleaning repaired is another one before: its id is not
        asked = Terms(asked.ids | hits.ids, asked.texts)
        by_artifact, hits = store.search(asked)
    wide = Terms(asked.ids, asked.texts | frozenset(hits.texts))
    artifacts = store.with_descendants(by_artifact)
    sources, unread = _sources(home, recipe, asked, family_of(recipe.task).text_columns)
    runs, unsearched = _runs(home, recipe, wide)
    return Found(
        terms=asked,
        raws=frozenset(hits.raws),
        artifacts=artifacts,
        copies=tuple(_copies(home, store, wide, [hit.key for hit in artifacts])),
        sources=sources,
        unread=unread,
        versions=tuple(_versions(home, wide)),
        quotes=runs | _in_prefect(home, wide),
        unsearched=unsearched,
    )


def erase(home: Home, found: Found) -> None:
    """Keep the rows out for good, then remove what holds them; done again after a crash, it ends what it began."""
    remember(home, found.terms.ids, found.terms.texts | found.raws)
    store = Store(home.store, home.materialised)
    for hit in found.artifacts:
        store.discard(hit.stage, hit.key)
    for path in found.copies:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@dataclass
class _Shelved:
    """An artifact, or a draft of one, as the store has it.

    Attributes:
        files: Path of each file.
        hits: What each search of its files found.
        holding: Files that hold a row.
    """

    stage: str
    key: str
    files: list[str]
    holding: dict[str, int] = field(default_factory=dict)


class _Shelves:
    """The store, read file by file, local or not."""

    def __init__(self, home: Home, text_columns: Collection[str]) -> None:
        import fsspec

        self._fs, self._root = fsspec.core.url_to_fs(home.store)
        self._text_columns = text_columns
        self.all: dict[tuple[str, str], _Shelved] = {}
        for path in self._fs.find(self._root) if self._fs.exists(self._root) else []:
            stage, key, *below = path.removeprefix(self._root).strip("/").split("/")
            if below:
                self.all.setdefault((stage, key), _Shelved(stage, key, [])).files.append(path)

    def search(self, terms: Terms) -> tuple[list[_Shelved], Hits]:
        """Artifacts and drafts that hold one of the rows, and all that was found in them."""
        found = Hits()
        for shelved in self.all.values():
            shelved.holding.clear()
            for path in shelved.files:
                with self._fs.open(path, "rb") as file:
                    hits = search_file(file, path, terms, self._text_columns)
                if hits.rows:
                    shelved.holding[path] = hits.rows
                    found += hits
        return [shelved for shelved in self.all.values() if shelved.holding], found

    def with_descendants(self, holding: Sequence[_Shelved]) -> tuple[ArtifactHit, ...]:
        """These artifacts, and all that were made from them or from their files."""
        manifests = {
            (one.stage, one.key): json.loads(self._fs.cat_file(path))
            for one in self.all.values()
            for path in one.files
            if path.endswith(f"/{one.key}/{MANIFEST}") and not one.key.startswith(".")
        }
        made_of = {where: set(ADDRESS.findall(json.dumps(m["ingredients"]))) for where, m in manifests.items()}
        gone = {(one.stage, one.key) for one in holding if not one.key.startswith(".")}
        addresses = {key for _, key in gone}
        for one in holding:
            files = manifests.get((one.stage, one.key), {"files": {}})["files"]
            addresses |= {
                note["sha256"] for name, note in files.items() if f"{self._folder(one)}/{name}" in one.holding
            }
        while new := {where for where, parts in made_of.items() if where not in gone and parts & addresses}:
            gone |= new
            addresses |= {key for _, key in new}
        return tuple(ArtifactHit(*where, sum(self.all[where].holding.values())) for where in sorted(gone))

    def drafts(self) -> list[Path]:
        """Folders of unfinished artifacts that hold one of the rows: what a crash left."""
        return [
            Path(self._folder(one)) for one in self.all.values() if one.key.startswith(".") and one.holding
        ]  # drafts are always local

    def _folder(self, one: _Shelved) -> str:
        return f"{self._root}/{one.stage}/{one.key}"


def _copies(home: Home, store: _Shelves, terms: Terms, keys: Sequence[str]) -> Iterator[Path]:
    """What else in the home holds one of the rows, or was begun from an artifact that goes."""
    yield from store.drafts()
    seen = set()
    wider = Terms(terms.ids | frozenset(keys), terms.texts)
    for folder, depth in COPIES.items():
        for path in sorted((home.root / folder).rglob("*")):
            whole = home.root.joinpath(*path.relative_to(home.root).parts[:depth])
            if path.is_file() and whole not in seen and _holds(path, wider if folder == "work" else terms):
                seen.add(whole)
                yield whole


def _holds(path: Path, terms: Terms) -> bool:
    with path.open("rb") as file:
        return search_file(file, path.name, terms).rows > 0


def _sources(home: Home, recipe: Recipe, terms: Terms, roles: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Piece of the source, or file of corrections → rows it still has; and piece → why it could not be read."""
    asked = recipe.collect
    found: Counter[str] = Counter()
    unread = {}
    columns, parts = recipe.task.columns(), recipe.task.parts()
    wanted = {f"task.{role}_column": name for role, name in (parts or {role: columns[role] for role in roles}).items()}
    wanted |= {"collect.id_column": asked.id_column} if asked.id_column else {}
    place = asked.source.shown()
    try:
        for piece in pieces(asked.source, home):
            place = piece.name
            for batch in piece.read(wanted):
                values = composed(batch, parts).values
                found[place] += _rows_in(values, terms, asked.id_column, [columns[role] for role in roles])
    except (Mistake, Fault) as problem:
        unread[place] = str(problem).splitlines()[0]
    for location in asked.corrections:
        if "://" not in location and Path(location).is_file():
            found[location] += _holds(Path(location), terms)
    return dict(+found), unread


def _rows_in(values: pl.DataFrame, terms: Terms, id_column: str | None, text_columns: Sequence[str]) -> int:
    """Rows that were asked for, among rows as they are in the source."""
    texts = values.select(text_columns)
    ids = values[id_column].str.strip_chars() if id_column else text_ids(texts)
    return search_rows(texts.with_columns(ids.alias("id")), terms).rows


def _versions(home: Home, terms: Terms) -> Iterator[Registered]:
    """Registered versions that were trained on one of the texts."""
    wanted = known_by(terms.texts)
    mlflow = client(home)
    for model in patiently(mlflow.search_registered_models, home) if len(wanted) else ():
        for one in patiently(partial(mlflow.search_model_versions, f"name = '{model.name}'"), home):
            registered = patiently(partial(version_of, mlflow, one.name, str(one.version)), home)
            if _learnt_one(home, registered, wanted):
                yield registered


def _learnt_one(home: Home, registered: Registered, wanted: Hashes) -> bool:
    """Whether a version was trained on one of the texts; of one that hone did not register nobody knows."""
    try:
        learnt = training_hashes_of(home, registered)
    except FileNotFoundError:
        return False
    return learnt is not None and bool(among(wanted, learnt).any())


def _runs(home: Home, recipe: Recipe, terms: Terms) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Run or logged model of the recipe's experiment → files that quote a row; and what cannot be searched."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    mlflow: MlflowClient = client(home)
    experiment = patiently(lambda: mlflow.get_experiment_by_name(recipe.name), home)
    if experiment is None:
        return {}, ()
    if not experiment.artifact_location.startswith(("file:", "/")):
        return {}, (experiment.artifact_location,)
    root = Path(local_file_uri_to_path(experiment.artifact_location))
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and _holds(path, terms):
            parts = path.relative_to(root).parts
            owner, inside = (parts[:2], parts[2:]) if parts[0] == "models" else (parts[:1], parts[1:])
            found.setdefault(f"MLflow {'/'.join(owner)}", []).append("/".join(inside))
    return found, ()


def _in_prefect(home: Home, terms: Terms) -> dict[str, list[str]]:
    """Table of the embedded Prefect's database → ids of the reports and log lines in it that quote a row."""
    file = home.prefect / "prefect.db"
    if not file.exists():
        return {}
    found = {}
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        for table, column in PREFECT_TEXTS.items():
            rows = database.execute(f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL")  # noqa: S608
            found[f"Prefect {table}"] = [str(row) for row, text in rows if mentions(str(text), terms.telling())]
    return {table: rows for table, rows in found.items() if rows}
