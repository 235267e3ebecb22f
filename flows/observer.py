"""Records a run where people look: metrics and tags in MLflow, progress in Prefect, lines in the terminal."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.terminal import display, gist
from schemas.recipe import Recipe
from schemas.records import Artifact, Outcome
from tasks import process
from tasks.child import children
from tasks.context import Observer
from tasks.families import family_of
from tasks.home import Home
from tasks.register import verifiers
from tasks.registry import champion
from tasks.tracking import Run

log = logging.getLogger(__name__)

VERIFIER_STAGES = {"baseline", "evaluate"}
"""When one of these is computed, a new model will be verified, and a champion asked; meanwhile the processes that do
this import what they need: fitting baselines leaves them a core."""
ROOMS = ("flows", "tasks")
PREFECT_SECONDS = 2.0
"""Least time between two updates of Prefect's progress artifact."""
EVALUATION_IMPORTS = ("scipy.stats", "sklearn.metrics")
"""Imported while the child trains, which leaves this process idle: they take 0.6 s."""
CHILD_STAGES = {"collect", "clean", "split", "tokenize", "plan", "train", "evaluate"}
"""When one of these is computed, the child process will be needed: it starts warming up meanwhile."""


class RunObserver(Observer):
    """Observes one pipeline run.

    Args:
        home: Where it happens.
        recipe: What it carries out.

    Attributes:
        run: Its MLflow run, from `record_in` on.
    """

    def __init__(self, home: Home, recipe: Recipe) -> None:
        self.run: Run | None = None
        self._unrecorded: list[Outcome] = []
        for room in ROOMS:
            logging.getLogger(room).setLevel(logging.INFO)  # what Prefect shows of them on a run's page
        self._home = home
        self._recipe = recipe
        self._display = display.get()
        self._progress: UUID | None = None
        self._last_update = 0.0

    def record_in(self, run: Run) -> None:
        """From now on all is recorded in an MLflow run, what has happened already as well."""
        self.run = run
        for outcome in self._unrecorded:
            _record(run, outcome)
        self._unrecorded = []

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        log.info(text)
        if self._display:
            self._display.say(f"    {text}")

    def computing(self, stage: str) -> None:
        """Start the child early: what misses the store now will have to be trained or predicted later."""
        if self.run and stage in CHILD_STAGES:  # without a run nothing is trained
            children.warm(self._home.logs)
        if self.run and stage == "train":
            process.import_meanwhile(*EVALUATION_IMPORTS)
        if self.run and stage in VERIFIER_STAGES:
            asked = 1 if champion(self._home, self._recipe.model_name) is None else 2
            verifiers.warm(family_of(self._recipe.task), asked)
        if self._display:
            self._display.computing(stage)

    def event(self, event: dict[str, Any]) -> None:
        """Pass training's progress on, and what it kept of a step that went wrong."""
        if self.run and "values" in event:
            self.run.log_metrics([(event["step"], event["values"])])
        if self.run and "file" in event:
            self.run.log_artifact(Path(event["file"]), "train")
        if "steps" in event:
            self._show_in_prefect(event)
        if self._display:
            self._display.event(event)

    def finished(self, outcome: Outcome) -> None:
        """Record a stage's key and time, and where a cached one came from."""
        if self.run:
            _record(self.run, outcome)
        else:
            self._unrecorded.append(outcome)
        log.info("%s %s: %s", outcome.stage, "is in the store" if outcome.cached else "done", gist(outcome))
        if self._display:
            self._display.finished(outcome)

    def _show_in_prefect(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._progress is not None and now - self._last_update < PREFECT_SECONDS and event["step"] < event["steps"]:
            return
        self._last_update = now
        share = 100 * event["step"] / event["steps"]
        try:
            self._progress = _show_progress(self._progress, share, self._recipe.name)
        except Exception as error:  # noqa: BLE001  a picture of the training must not end the training
            log.warning("Prefect's progress artifact was not updated: %s", error)


def _record(run: Run, outcome: Outcome) -> None:
    run.set_tags({f"hone.stage.{outcome.stage}.key": outcome.key})
    run.log_metrics([(0, {f"seconds/{outcome.stage}": outcome.seconds})])
    if outcome.cached and outcome.run_id:
        run.link_cached(outcome.stage, outcome.run_id)
    elif outcome.stage == "train" and isinstance(outcome, Artifact) and not outcome.cached:
        names = ("tokens", "tokens_per_second", "model_tflops", "steps", "peak_memory_bytes")
        run.log_metrics([(0, {f"train/{name}": outcome.summary[name] for name in names})])


def _show_progress(artifact: UUID | None, share: float, recipe: str) -> UUID:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    if artifact is None:
        return create_progress_artifact(share, key=f"training-{recipe}", description=f"Training {recipe}")  # type: ignore[return-value]
    update_progress_artifact(artifact, progress=share)
    return artifact
