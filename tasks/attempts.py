"""Attempts that were judged, `<home>/journal/attempts/<model>.json`: the same one is not made twice by itself.

An attempt is the rows, what of the recipe and its base model can change what comes of them, and the champion that the
gate measured against. hone's own code is no part of it, nor what a hub serves under a name without a revision: for
these, ask for a `refresh`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.recipe import Recipe
from schemas.records import Artifact, Attempt, ModelVersion, Verdict
from tasks.base_model import known_digest
from tasks.digests import write_atomically
from tasks.home import Home
from tasks.registry import champion

log = logging.getLogger(__name__)

KEPT = 200
"""Attempts remembered for each model."""
NEUTRAL: dict[str, tuple[str, ...]] = {
    "description": (),
    "schedule": (),
    "collect": (),  # the key of the rows covers it, wherever they lie
    "registry": ("environments", "intended_use"),
    "train": ("save_steps", "save_minutes"),
    "retrain": ("on_new_rows",),
}
"""Section → fields that change neither the model nor the gate's word; none named: the whole section."""


def judged_already(home: Home, recipe: Recipe, raw: Artifact) -> Attempt | None:
    """The attempt that a retraining of these rows would repeat; none where something is new.

    Whoever serves now is the champion it was measured against, or the very model that it made.

    Raises:
        EnvironmentMistake: There is no such base model.
        Fault: MLflow is away.
    """
    serving = champion(home, recipe.model_name)
    now = serving.version if serving else None
    asked = digest_of(home, recipe, raw)
    for attempt in reversed(attempts(home, recipe.model_name)):
        if attempt.key == asked and now in {attempt.champion, attempt.version}:
            return attempt
    return None


def remember(
    home: Home, recipe: Recipe, raw: Artifact, verdict: Verdict, version: ModelVersion, *, flow_run_id: str
) -> Attempt:
    """Keep in mind what came of an attempt.

    Args:
        home: Where.
        recipe: As it was asked; `retrain` is that of a retraining, and the default of a run that is none.
        raw: The rows.
        verdict: The gate's.
        version: The model's, in the registry.
        flow_run_id: Prefect's.
    """
    from filelock import FileLock

    attempt = Attempt(
        key=digest_of(home, recipe, raw),
        champion=verdict.champion,
        decision=verdict.decision,
        version=version.version,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        flow_run_id=flow_run_id,
        run_id=verdict.run_id,
    )
    with FileLock(home.locks / f"attempts-{recipe.model_name}.lock"):
        kept = [*attempts(home, recipe.model_name), attempt][-KEPT:]
        write_atomically(
            _file(home, recipe.model_name), json.dumps([one.model_dump(mode="json") for one in kept], indent=1)
        )
    return attempt


def attempts(home: Home, model: str) -> list[Attempt]:
    """What was judged of a model, oldest first."""
    file = _file(home, model)
    if not file.exists():
        return []
    try:
        return [Attempt.model_validate(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, ValidationError) as error:
        log.warning("%s cannot be read, so that a retraining may repeat an attempt: %s", file, error)
        return []


def digest_of(home: Home, recipe: Recipe, raw: Artifact) -> str:
    """What an attempt with these rows is known by, whoever serves."""
    identity = {"rows": raw.key, "recipe": telling(recipe), "base": known_digest(recipe.model, home)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def telling(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe can change what comes of its rows."""
    values = recipe.model_dump(mode="json")
    for section, fields in NEUTRAL.items():
        kept = {name: value for name, value in values[section].items() if name not in fields} if fields else None
        values[section] = kept
    if recipe.retrain.start_from == "base":
        values["retrain"] = {"start_from": "base"}
    return values


def said(attempt: Attempt, serving: str | None) -> str:
    """Why there is nothing to do, in a sentence.

    Args:
        attempt: The one that would be repeated.
        serving: Version that serves.
    """
    judged = f"judged on {attempt.at[:16].replace('T', ' ')} UTC ({attempt.decision})"
    if serving is None:
        return f"nothing serves, and the rows and the recipe are those {judged}: nothing to do"
    if attempt.version == serving:
        return f"the rows and the recipe are those of champion version {serving}, {judged}: nothing to do"
    return f"the rows, the recipe and champion version {serving} are those {judged}: nothing to do"


def _file(home: Home, model: str) -> Path:
    return home.journal / "attempts" / f"{model}.json"
