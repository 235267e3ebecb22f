"""One run's context: where it works, what it was asked, and how a stage gets its output from the store or computes it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import DamagedArtifact
from schemas.recipe import STAGES, Recipe, Stage
from schemas.records import Artifact
from tasks.digests import write_atomically
from tasks.families import Family, family_of
from tasks.home import Home
from tasks.keys import stage_key
from tasks.store import Manifest, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What every stage of one run shares.

    Attributes:
        run_id: The pipeline's MLflow run.
        refresh: This stage and all after it are computed again, whatever the store holds.
    """

    recipe: Recipe
    home: Home
    run_id: str
    refresh: Stage | None = None

    @cached_property
    def store(self) -> Store:
        """The home's store."""
        return Store(self.home.store, self.home.materialised)

    @cached_property
    def family(self) -> Family:
        """The recipe's task family."""
        return family_of(self.recipe.task)

    def path(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files, digests checked."""
        return self.store.open(artifact.stage, artifact.key)

    def artifact(
        self,
        stage: str,
        compute: Callable[..., dict[str, Any]],
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None,
        unkeyed: Mapping[str, Any] | None = None,
        modules: Iterable[str] = (),
        libraries: Iterable[str] = (),
        part_of: Stage | None = None,
    ) -> Artifact:
        """The output of `compute`: from the store when nothing that shaped it has changed, else computed and kept.

        `compute` is called with every setting, the folder of every input, everything unkeyed, and `out`, an empty
        folder; it returns the summary for the manifest. It can read nothing that the key does not cover, but `unkeyed`.

        Args:
            stage: The stage, or the name of a part of one.
            compute: A plain function; its module is where the stage's code starts.
            settings: Values that shape the output; pydantic models and JSON values.
            inputs: Artifacts read.
            unkeyed: Values that do not shape the output: paths of digested content, callbacks.
            modules: Further modules the output depends on, such as the task family's.
            libraries: Distributions whose version shapes the output.
            part_of: The stage this is a part of; default: `stage` itself.
        """
        from filelock import FileLock

        began = time.monotonic()
        inputs, unkeyed = inputs or {}, unkeyed or {}
        input_keys = {name: artifact.key for name, artifact in inputs.items()}
        key, ingredients = stage_key(stage, settings, input_keys, (compute.__module__, *modules), libraries)
        with FileLock(self.home.locks / f"{stage}-{key}.lock"):
            manifest, why = self._found(stage, key, ingredients, part_of)
            cached = manifest is not None
            if manifest is None:
                log.info("%s: computing (%s)", stage, why)
                with self.store.draft(stage, key) as out:
                    folders = {name: self.path(artifact) for name, artifact in inputs.items()}
                    summary = compute(**settings, **folders, **unkeyed, out=out)
                    manifest = self.store.publish(
                        out, stage, key, ingredients=ingredients, summary=summary, run_id=self.run_id
                    )
        write_atomically(self._last_note(stage), json.dumps(ingredients))
        return Artifact(
            stage=stage,
            key=key,
            cached=cached,
            why=why,
            seconds=time.monotonic() - began,
            run_id=manifest.run_id,
            summary=manifest.summary,
        )

    def refreshes(self, stage: Stage) -> bool:
        """Whether this run was asked to compute `stage` again."""
        return self.refresh is not None and STAGES.index(stage) >= STAGES.index(self.refresh)

    def _found(
        self, stage: str, key: str, ingredients: dict[str, Any], part_of: Stage | None
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
        return None, self._what_changed(stage, ingredients)

    def _last_note(self, stage: str) -> Path:
        return self.home.journal / "last" / self.recipe.name / f"{stage}.json"

    def _what_changed(self, stage: str, ingredients: dict[str, Any]) -> str:
        note = self._last_note(stage)
        if not note.exists():
            return "first run"
        changes = list(_differences(json.loads(note.read_text()), ingredients))
        return "; ".join(changes[:3]) or "gone from the store"


def _differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif path == "code":
        yield "code changed"
    elif path.startswith("inputs."):
        yield f"{path.removeprefix('inputs.')} changed"
    elif path.startswith("libraries."):
        yield f"{path.removeprefix('libraries.')} {old} → {new}"
    else:
        yield f"{path.removeprefix('settings.')} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:10]}…{text[-6:]}"
