"""How a retraining begins: with the base model, or with the champion, which then learns the rows it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.records import Artifact
from tasks.base_model import labels_of
from tasks.context import Context
from tasks.evaluate import read_meta
from tasks.register import training_hashes_of
from tasks.registry import Registered, champion, files_of
from tasks.replay import count_new

if TYPE_CHECKING:
    from tasks.held_out import Hashes


@dataclass(frozen=True)
class Start:
    """How a retraining begins.

    Attributes:
        told: Why so, in words.
        version: The registered version that goes on learning; none where the base model learns all rows.
        learnt: Hashes of the rows that it has learnt, sorted.
    """

    told: str
    version: Registered | None = None
    learnt: Hashes | None = None

    @property
    def base(self) -> str | None:
        """The version as a recipe names it."""
        return f"models:/{self.version.name}/{self.version.version}" if self.version else None


def starting_point(context: Context, sides: Artifact) -> Start:
    """The champion where it can learn on, and has something to learn; else the base model, and why.

    Raises:
        Fault: MLflow is away.
    """
    serving = champion(context.home, context.recipe.model_name)
    if serving is None:
        return Start(f"from the base model: no version of {context.recipe.model_name} serves yet")
    told, split = f"version {serving.version}", context.path(sides)
    obstacle = _obstacle(context, serving, read_meta(split).get("labels"))
    if obstacle:
        return Start(f"from the base model: {told} {obstacle}")
    learnt = _learnt(context, serving)
    if learnt is None:
        return Start(f"from the base model: nobody knows which rows {told} has learnt")
    new, rows = count_new(split, learnt)
    if new == 0:
        return Start(f"from the base model: {told} has learnt all {rows:,} training rows already")
    return Start(f"from {told}, to which {new:,} of {rows:,} training rows are new", serving, learnt)


def _obstacle(context: Context, version: Registered, labels: list[str] | None) -> str | None:
    """What keeps a version from learning on for this recipe, if anything."""
    family = context.recipe.task.family
    if version.tags.get("hone.family", family) != family:
        return f"is a model for {version.tags['hone.family']}"
    try:
        known = labels_of(files_of(context.home, version))
    except FileNotFoundError:
        return "has no files any more"
    return None if labels is None or known == labels else f"knows the labels {', '.join(known)}"


def _learnt(context: Context, version: Registered) -> Hashes | None:
    try:
        return training_hashes_of(context.home, version)
    except FileNotFoundError:
        return None
