"""One pipeline run from beginning to end: its MLflow run, what it observes, and the summary it ends with."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import State
from prefect.context import SyncClientContext

from flows.engine import guard_embedded_server, has_server
from flows.events import announce, publish_if_possible
from flows.limits import stand_for_backlog
from flows.observer import RunObserver
from flows.report import page_of, report_data, report_model
from schemas.recipe import Recipe
from schemas.records import (
    Artifact,
    Attempt,
    ModelVersion,
    Outcome,
    Partial,
    Skipped,
    StageLine,
    Summary,
    Verdict,
)
from schemas.schedule import Retrain
from schemas.stages import Stage
from tasks.attempts import remember, said
from tasks.child import children
from tasks.context import Context
from tasks.home import Home
from tasks.model_card import lineage_of
from tasks.onnx_job import require
from tasks.register import recipe_digest, verifiers
from tasks.registry import champion, refuse_environment
from tasks.start import Start
from tasks.tracking import Entry, Run, Status, prepare, replay_unsent, sweep

if TYPE_CHECKING:
    from tasks.held_out import Hashes

log = logging.getLogger(__name__)

SPEEDS = ("latency_ms_p50", "latency_ms_p95", "rows_per_second", "size_mb")
"""Of the model, logged to MLflow."""


class PipelineContext(Context):
    """The context of a pipeline run, and what only its beginning and end need.

    Attributes:
        asked: The recipe as it was asked; `recipe` may start from another model.
        learns_on: The champion learns on in this run, where it can.
        run: Its MLflow run, from `record` on.
    """

    observer: RunObserver

    def __init__(self, recipe: Recipe, home: Home, refresh: Stage | None, swept: Sequence[Entry]) -> None:
        observer = RunObserver(home, recipe)
        super().__init__(
            recipe,
            home,
            run_id="",
            flow_run_id=_flow_run_id(),
            refresh=refresh,
            observer=observer,
            orchestrated=True,
        )
        self.asked = recipe
        self.learns_on = False
        self.run: Run | None = None
        self.began = time.monotonic()
        self._swept = swept

    def record(self, **tags: str) -> None:
        """Start the MLflow run; it tells of what has happened already, too.

        Raises:
            Mistake: The registered model is an environment of another recipe, or this machine cannot make what the
                recipe wants registered.
            Fault: MLflow is away.
        """
        require(self.recipe.registry)
        refuse_environment(self.home, self.recipe.model_name)
        known = _tags(self.home, self.recipe, self._swept) | {f"hone.{name}": value for name, value in tags.items()}
        self.run = Run.start(self.home, self.recipe, flow_run_id=self.flow_run_id, name=_flow_run_name(), tags=known)
        self.run_id = self.run.run_id
        self.observer.record_in(self.run)


@contextmanager
def pipeline(recipe: Recipe, refresh: Stage | None) -> Iterator[PipelineContext]:
    """A pipeline's context. Its MLflow run, if it starts one, ends as it ends: FINISHED, FAILED, or KILLED."""
    with SyncClientContext.get_or_create():  # else each stage makes a client, which reads all certificates first
        home = Home.open(Path.cwd())
        guard_embedded_server()
        prepare(home)
        swept = sweep(home)
        mark_crashed(swept)
        replay_unsent(home)
        stand_for_backlog()
        context = PipelineContext(recipe, home, refresh, swept)
        status: Status = "FAILED"
        try:
            yield context
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            status = "KILLED"
            raise
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            verifiers.stop()
            if status != "FINISHED":
                children.stop()
            if context.run is not None:
                context.run.end(status)
            publish_if_possible(home)


@contextmanager
def pipeline_run(recipe: Recipe, refresh: Stage | None) -> Iterator[PipelineContext]:
    """A pipeline's context, with an MLflow run from the beginning."""
    with pipeline(recipe, refresh) as context:
        context.record()
        yield context


def begin(context: PipelineContext, start: Start) -> Hashes | None:
    """Let the model begin as was decided, and say so; returns what it has learnt already, if it learns on."""
    context.observer.say(start.told)
    if context.run is not None:
        known = {"hone.started_from": start.base} if start.base else {}
        context.run.set_tags({"hone.start": start.told, **known})
    if start.base is not None:
        context.start_from(start.base)
    return start.learnt


def mark_crashed(swept: Sequence[Entry]) -> None:
    """Tell Prefect of flow runs whose process is gone, where it still takes them for running."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    flow_run_ids = [UUID(entry.flow_run_id) for entry in swept if entry.flow_run_id]
    if not flow_run_ids:
        return
    with get_client(sync_client=True) as client:
        for flow_run_id in flow_run_ids:
            with suppress(ObjectNotFound):  # another Prefect ran it
                state = client.read_flow_run(flow_run_id).state
                if state is None or not state.is_final():
                    crashed: State[Any] = Crashed(message="its process is gone; swept by the next run")
                    client.set_flow_run_state(flow_run_id, crashed, force=True)


def summarize(context: PipelineContext, outcomes: Sequence[Outcome]) -> Summary:
    """Gather what the run found, record it in MLflow, Prefect and the home, and hand it back."""
    assert context.run is not None
    by_stage = {outcome.stage: outcome for outcome in outcomes}
    raw, cleaned, sides, tokens, model, scores = (
        _artifact(by_stage[stage]) for stage in ("collect", "clean", "split", "tokenize", "train", "evaluate")
    )
    described = _artifact(by_stage["data-report"])
    verdict, version = by_stage["gate"], by_stage["register"]
    assert isinstance(verdict, Verdict)
    assert isinstance(version, ModelVersion)
    lessons = by_stage.get("replay")
    summary = Summary(
        recipe=context.recipe.name,
        flow_run_id=context.flow_run_id,
        mlflow_run_id=context.run_id,
        mlflow_url=context.run.url,
        model=version,
        metric=context.recipe.metric,
        metrics=scores.summary["metrics"],
        baselines=scores.summary["baselines"],
        gate=verdict,
        rows={
            "collected": raw.summary["rows"],
            "quarantined": _set_aside(cleaned, sides, tokens),
            **{side: tokens.summary["rows"][side] for side in ("train", "validation", "test")},
            **({name: _artifact(lessons).summary[name] for name in ("new", "replayed")} if lessons else {}),
        },
        train=_training(model),
        stages=tuple(_line(outcome) for outcome in outcomes),
        seconds=time.monotonic() - context.began,
        started_from=context.started_from,
    )
    _record(context, summary, by_stage)
    _record_data(context, context.run, described)
    attempted = context.asked if context.learns_on else context.asked.model_copy(update={"retrain": Retrain()})
    remember(context.home, attempted, raw, verdict, version, flow_run_id=context.flow_run_id)
    announce(context, outcomes)
    return summary


def stopped(context: PipelineContext, outcomes: Sequence[Outcome]) -> Partial:
    """What a run ends with that was to stop before its last stage."""
    announce(context, outcomes)
    last = outcomes[-1]
    found = last.summary if isinstance(last, Artifact) else last.model_dump(mode="json")
    run = context.run
    for outcome in outcomes:
        if outcome.stage == "data-report":
            _record_data(context, run, _artifact(outcome))
        elif run is not None:
            _record_part(run, outcome)
    return Partial(
        recipe=context.recipe.name,
        until=last.stage,
        flow_run_id=context.flow_run_id,
        mlflow_run_id=context.run_id,
        mlflow_url=run.url if run else None,
        found=found,
        stages=tuple(_line(outcome) for outcome in outcomes),
        seconds=time.monotonic() - context.began,
    )


def skipped(context: PipelineContext, raw: Artifact, attempt: Attempt) -> State[Skipped]:
    """The state of a retraining that has nothing to do."""
    from prefect.states import Completed

    serving = champion(context.home, context.recipe.model_name)
    why = said(attempt, serving.version if serving else None)
    log.info(why)
    announce(context, [raw])
    result = Skipped(
        recipe=context.recipe.name,
        flow_run_id=context.flow_run_id,
        skipped=why,
        attempt=attempt,
        stages=(_line(raw),),
        seconds=time.monotonic() - context.began,
    )
    return Completed(name="Skipped", message=why, data=result)


def _line(outcome: Outcome) -> StageLine:
    return StageLine(
        name=outcome.stage,
        key=outcome.key,
        cached=outcome.cached,
        why=outcome.why,
        seconds=outcome.seconds,
        run_id=outcome.run_id,
    )


def _artifact(outcome: Outcome) -> Artifact:
    assert isinstance(outcome, Artifact)
    return outcome


def _set_aside(cleaned: Artifact, sides: Artifact, tokens: Artifact) -> dict[str, int]:
    """Rows set aside by reason, whichever stage did it: with those of the sides they make up what was collected."""
    overlong = sum(tokens.summary["dropped"].values())
    found: dict[str, int] = cleaned.summary["quarantined"] | sides.summary["leaked_by_reason"]
    return found | ({"overlong": overlong} if overlong else {})


def _training(model: Artifact) -> dict[str, Any]:
    """The training's record; a cached one ran no step here."""
    here = {"steps_run_here": 0, "tokens_run_here": 0, "seconds_here": 0.0} if model.cached else {}
    return model.summary | here


def _record(context: PipelineContext, summary: Summary, by_stage: Mapping[str, Outcome]) -> None:
    run = context.run
    assert run is not None
    sides, tokens, scores = (_artifact(by_stage[stage]) for stage in ("split", "tokenize", "evaluate"))
    _record_training(run, summary.train)
    _record_scores(run, scores)
    run.log_metrics([(0, {"seconds/total": summary.seconds})])
    for side in ("train", "validation", "test"):
        counts = {"rows": tokens.summary["rows"][side], "tokens": tokens.summary["tokens"][side]}
        source = context.recipe.collect.source.shown()
        run.log_dataset(f"{context.recipe.name}-{side}", digest=sides.key, source=source, counts=counts, context=side)
    if summary.started_from:
        run.log_metrics([(0, {f"data/{name}_rows": summary.rows[name] for name in ("new", "replayed")})])
    run.set_tags(
        {
            "hone.gate": summary.gate.decision,
            "hone.model": f"models:/{summary.model.name}/{summary.model.version}",
        }
    )
    run.log_artifact(context.path(scores), "evaluation")
    page = page_of(summary, (context.path(scores) / "report.md").read_text(encoding="utf-8"))
    run.log_text(page, "report.md")
    report_model(summary, page, context.path(scores), run)


def _record_training(run: Run, record: Mapping[str, Any]) -> None:
    run.log_params({f"plan.{name}": value for name, value in record["plan"].items()})
    run.set_tags({"hone.weights_sha256": record["weights_sha256"]})


def _record_scores(run: Run, scores: Artifact) -> None:
    run.log_metrics([(0, {f"test/{name}": value for name, value in scores.summary["metrics"].items()})])
    for baseline, metrics in scores.summary["baselines"].items():
        run.log_metrics([(0, {f"baseline/{baseline}/{name}": value for name, value in metrics.items()})])
    run.log_metrics([(0, {f"speed/{name}": scores.summary["speed"][name] for name in SPEEDS})])


def _record_part(run: Run, outcome: Outcome) -> None:
    """Log what one stage found, where the pipeline does not go on to the end."""
    match outcome:
        case Verdict():
            run.set_tags({"hone.gate": outcome.decision})
        case Artifact(stage="train"):
            _record_training(run, outcome.summary)
        case Artifact(stage="evaluate"):
            _record_scores(run, outcome)


def _record_data(context: PipelineContext, run: Run | None, described: Artifact) -> None:
    """Put what the data looks like, and how it drifted, beside the model that it made, and onto Prefect's page."""
    folder = context.path(described)
    if run is not None:
        for file in ("report.md", "profile.json", *(picture.name for picture in sorted(folder.glob("*.png")))):
            run.log_artifact(folder / file, "data")
        measures = described.summary["measures"]
        run.log_metrics([(0, {f"data/{name.replace(' ', '_')}": value for name, value in measures.items()})])
        run.set_tags({f"hone.drift.{what}": verdict for what, verdict in described.summary["drift"].items()})
    report_data(context.recipe.name, folder, run)


def _tags(home: Home, recipe: Recipe, swept: Sequence[Entry]) -> dict[str, str]:
    tags = {f"hone.{name}": value for name, value in lineage_of(home.project).items()}
    tags["hone.recipe_digest"] = recipe_digest(recipe)
    url = _flow_run_url()
    if url:
        tags["hone.flow_run_url"] = url
    continued = [entry.run_id for entry in swept if entry.recipe == recipe.name]
    if continued:
        tags["hone.continues"] = continued[-1]
    return tags


def _flow_run_id() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.id or "")


def _flow_run_name() -> str | None:
    from prefect.runtime import flow_run

    return flow_run.name or None


def _flow_run_url() -> str | None:
    from prefect.runtime import flow_run

    url: str | None = flow_run.ui_url if has_server() else None
    return url
