"""One run's context: where it works, what it was asked, and how a stage gets its output, computed or from the store."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import DamagedArtifact
from schemas.recipe import Recipe
from schemas.records import Artifact, Outcome
from schemas.stages import STAGES, Stage
from tasks.digests import write_atomically
from tasks.families import Family, family_of
from tasks.home import Home
from tasks.keys import key_of, remember_code, stage_key
from tasks.stopping import GivenUp
from tasks.store import Manifest, Store

log = logging.getLogger(__name__)

SHOWN_ITEMS = 3
"""Items of a list up to which a change shows them all."""


class Observer:
    """Told what happens in a run; this one does not care. Whoever shows or records a run derives from it."""

    def computing(self, stage: str) -> None:
        """The store does not have this stage's output, so it is being computed."""

    def event(self, event: dict[str, Any]) -> None:
        """Training got on: `started`, `progress`, `log` or `checkpoint`, with its values; or it `kept` a file."""

    def finished(self, outcome: Outcome) -> None:
        """A stage ended well."""


class Context:
    """What every stage of one run shares.

    Args:
        recipe: What was asked.
        home: Where it happens.
        run_id: The pipeline's MLflow run.
        flow_run_id: Prefect's, where it runs it.
        refresh: This stage and all after it are computed again, whatever the store holds.
        observer: Told what happens.
        orchestrated: Stages run as Prefect tasks; else as plain functions.

    Attributes:
        started_from: The registered version that learns on in this run, if one does; see `start_from`.
    """

    def __init__(
        self,
        recipe: Recipe,
        home: Home,
        run_id: str,
        *,
        flow_run_id: str = "",
        refresh: Stage | None = None,
        observer: Observer | None = None,
        orchestrated: bool = False,
    ) -> None:
        self.recipe = recipe
        self.home = home
        self.run_id = run_id
        self.flow_run_id = flow_run_id
        self.refresh = refresh
        self.family: Family = family_of(recipe.task)
        self.store = Store(home.store, home.materialised)
        self.observer = observer or Observer()
        self.orchestrated = orchestrated
        self.started_from: str | None = None
        self._compute_again: dict[tuple[str, str], Callable[[], Manifest]] = {}
        remember_code(home)

    def start_from(self, version: str) -> None:
        """Let a registered version learn on, named as `models:/<name>/<version>`, in place of the base model."""
        model = self.recipe.model.model_copy(update={"base": version, "revision": None})
        self.recipe = self.recipe.model_copy(update={"model": model})
        self.started_from = version

    def path(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, digests checked; a damaged artifact is computed again first."""
        try:
            return self.store.open(artifact.stage, artifact.key)
        except DamagedArtifact as damage:
            log.warning("%s %s is damaged: %s; computing it again", artifact.stage, artifact.key, damage)
            self._compute_again[artifact.stage, artifact.key]()
            return self.store.open(artifact.stage, artifact.key)

    def artifact(
        self,
        stage: str,
        compute: Callable[..., dict[str, Any]],
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact | Sequence[Artifact]] | None = None,
        unkeyed: Mapping[str, Any] | None = None,
        modules: Iterable[str] = (),
        libraries: Iterable[str] = (),
        apart_from: Iterable[str] = (),
        part_of: Stage | None = None,
        part: str | None = None,
        work_settings: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """The output of `compute`: from the store when nothing that shaped it has changed, else computed and kept.

        `compute` is called with every setting, the folder of every input (a list of them for a sequence), everything
        unkeyed, and `out`, an empty folder; it returns the summary for the manifest. It can read nothing that the key
        does not cover, but `unkeyed`.

        Args:
            stage: The stage, or the name of a part of one.
            compute: A plain function; its module is where the stage's code starts.
            settings: Values that shape the output; pydantic models and JSON values.
            inputs: Artifacts read.
            unkeyed: Values that do not shape the output: paths of digested content, callbacks.
            modules: Further modules the output depends on, such as the task family's.
            libraries: Distributions whose version shapes the output.
            apart_from: Modules that the others reach, but that this stage does not run.
            part_of: The stage this is a part of; default: `stage` itself.
            part: Which part, where a stage has many of one kind, such as a file.
            work_settings: The settings that work in progress depends on. When given, `compute` is also given `work`, a
                folder named by them that outlives a crash.
        """
        from filelock import FileLock

        began = time.monotonic()
        inputs, unkeyed = inputs or {}, dict(unkeyed or {})
        input_keys = {name: _key_of(given) for name, given in inputs.items()}
        code = {"modules": (compute.__module__, *modules), "libraries": libraries, "apart_from": apart_from}
        key, ingredients = stage_key(stage, settings, input_keys, **code)
        work = None
        if work_settings is not None:
            named, _ = stage_key(stage, work_settings, input_keys, **code)
            work = unkeyed["work"] = self.home.work / f"{stage}-{named}"

        def computed() -> Manifest:
            self.observer.computing(part_of or stage)
            if work is not None:
                work.mkdir(parents=True, exist_ok=True)
            with self.store.draft(stage, key) as out:
                folders = {name: self._folders(given) for name, given in inputs.items()}
                try:
                    summary = compute(**settings, **folders, **unkeyed, out=out)
                except GivenUp:  # nobody will go on with it
                    if work is not None:
                        shutil.rmtree(work)
                    raise
                made = self.store.publish(out, stage, key, ingredients=ingredients, summary=summary, run_id=self.run_id)
            if work is not None:
                shutil.rmtree(work)
            return made

        self._compute_again[stage, key] = computed
        with FileLock(self.home.locks / f"{stage}-{key}.lock"):
            note = self._last_note(stage, part)
            manifest, why = self._found(stage, key, ingredients, part_of, note)
            cached = manifest is not None
            if manifest is None:
                log.info("%s: computing (%s)", stage, why)
                manifest = computed()
        write_atomically(note, json.dumps(ingredients))
        return Artifact(
            stage=stage,
            key=key,
            cached=cached,
            why=why,
            seconds=time.monotonic() - began,
            run_id=manifest.run_id,
            summary=manifest.summary,
        )

    def replace(self, artifact: Artifact, summary: dict[str, Any]) -> None:
        """Give an artifact that has no content but its summary another one, under the same key."""
        manifest = self.store.find(artifact.stage, artifact.key)
        ingredients = manifest.ingredients if manifest else {}
        with self.store.draft(artifact.stage, artifact.key) as draft:
            self.store.publish(
                draft, artifact.stage, artifact.key, ingredients=ingredients, summary=summary, run_id=self.run_id
            )

    def refreshes(self, stage: Stage) -> bool:
        """Whether this run was asked to compute `stage` again."""
        return self.refresh is not None and STAGES.index(stage) >= STAGES.index(self.refresh)

    def _folders(self, given: Artifact | Sequence[Artifact]) -> Path | list[Path]:
        return self.path(given) if isinstance(given, Artifact) else [self.path(artifact) for artifact in given]

    def _found(
        self, stage: str, key: str, ingredients: dict[str, Any], part_of: Stage | None, note: Path
    ) -> tuple[Manifest | None, str]:
        if self.refreshes(part_of or stage):  # type: ignore[arg-type]  # a part always names its stage
            return None, f"refresh: {self.refresh}"
        try:
            manifest = self.store.find(stage, key)
        except DamagedArtifact as damage:
            log.warning("%s %s in the store is damaged: %s; computing it again", stage, key, damage)
            return None, f"damaged: {damage}"
        if manifest is not None:
            return manifest, ""
        return None, _what_changed(note, ingredients)

    def _last_note(self, stage: str, part: str | None) -> Path:
        name = stage if part is None else f"{stage}-{hashlib.sha256(part.encode()).hexdigest()[:16]}"
        return _note(self.home, self.recipe.name, name)


def last_key(home: Home, recipe: str, stage: str) -> str | None:
    """Key of what a stage last left for a recipe of this name; none before its first run."""
    note = _note(home, recipe, stage)
    return key_of(json.loads(note.read_text())) if note.exists() else None


def _note(home: Home, recipe: str, name: str) -> Path:
    return home.journal / "last" / recipe / f"{name}.json"


def _key_of(given: Artifact | Sequence[Artifact]) -> str | list[str]:
    return given.key if isinstance(given, Artifact) else [artifact.key for artifact in given]


def _what_changed(note: Path, ingredients: dict[str, Any]) -> str:
    if not note.exists():
        return "first run"
    # What the user changed comes first; what the plan made of it after that.
    changes = sorted(_differences(json.loads(note.read_text()), ingredients), key=lambda c: c.startswith("plan."))
    return "; ".join(changes[:3]) or "gone from the store"


def _differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif path == "code":
        yield "code changed"
    elif isinstance(old, list) and isinstance(new, list) and (path.startswith("inputs.") or len(new) > SHOWN_ITEMS):
        known = {json.dumps(item) for item in old}
        fresh = sum(json.dumps(item) not in known for item in new)
        yield f"{fresh} of {len(new)} {path.rpartition('.')[2]} new"
    elif path.startswith("inputs."):
        yield f"{path.removeprefix('inputs.')} changed"
    elif path.startswith("libraries."):
        yield f"{path.removeprefix('libraries.')} {old} → {new}"
    else:
        yield f"{path.removeprefix('settings.')} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:10]}…{text[-6:]}"
