"""The search for a better recipe: trials on a part of the rows, then the best on all, beside the recipe as it is.

Rows are prepared once for all trials. What is known of a trial is in the database of studies as soon as it is known: a
search that was killed or cancelled goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from flows.evaluate import todays_rows
from flows.finetune import finetune
from flows.limits import gpu_slot
from flows.nested import nested
from flows.pipeline import PipelineContext, pipeline
from flows.report import report_found, report_trials
from schemas.errors import EnvironmentMistake, Problem, RecipeError
from schemas.recipe import Recipe
from schemas.records import Artifact
from schemas.tune import Space, Trial, Tuned
from tasks.child import children
from tasks.context import Observer
from tasks.course import examples_in
from tasks.curve import validate
from tasks.gate import Rows as Prepared
from tasks.home import Home
from tasks.machine import Slot, accelerators, cores, slot, slots
from tasks.recipe_yaml import written
from tasks.space import resolved, said, share_of, space_of, with_values
from tasks.study import Asked, Study
from tasks.tokenize import tokenize
from tasks.tracking import Run, adopt
from tasks.train import train
from tasks.trial import Rows, trial
from tasks.tuning import Trained, conclude

CORES_PER_TRIAL = 8
"""Processor cores that one trial makes good use of."""


@flow(name="tune", validate_parameters=True, persist_result=False)
async def tune(recipe: Recipe, then_run: bool = False) -> Tuned:
    """Try other values of the recipe's fields, and say with an interval what the best of them gain.

    Args:
        recipe: The job; its section `tune` says what is tried, and what it may cost.
        then_run: Run the whole pipeline with the recipe that won: train, judge on the test rows, register.
    """
    with pipeline(recipe, None) as context:
        context.record(kind="tune")
        found = search(context)
    if not then_run:
        return found
    ran = await finetune(with_values(recipe, found.winner))
    return found.model_copy(update={"ran": ran.model_dump(mode="json")})


def search(context: PipelineContext) -> Tuned:
    """Trials, finalists, and what they come to."""
    recipe, prepared = context.recipe, todays_rows(context)
    tokens, examples = prepared.tokens, examples_in(prepared.tokens)
    space, share = space_of(recipe, examples), share_of(recipe, examples)
    with _alone(context.home, recipe):
        study = Study(context.home, recipe, space, rows=tokens.key, share=share, examples=examples)
        context.observer.say(_announced(recipe, space, share, tokens, study.trials))
        adopt(context.home, [each.run_id for each in study.trials], context.run_id)
        sweep = Sweep(context, study, Rows(prepared.cleaned, prepared.sides, share))
        sweep.run()
        trained = _finalists(context, prepared, _chosen(context, study.trials, share))
    found = conclude(context, tokens, space, study.trials, trained)
    return _concluded(context, tokens, study, share, found)


class Sweep:
    """Runs the trials of a search, as many at once as the machine is good for, until its budget is spent.

    Args:
        context: Of the whole.
        study: Knows the trials.
        rows: What all of them share.
    """

    def __init__(self, context: PipelineContext, study: Study, rows: Rows) -> None:
        self._context, self._study, self._rows = context, study, rows
        self._at_once = context.recipe.tune.parallel or len(accelerators()) or max(1, cores() // CORES_PER_TRIAL)
        self._lock = threading.Lock()
        self._ends = False
        self._told = ""

    def run(self) -> None:
        """Until there are as many as the recipe says, or the budget is spent."""
        if self._at_once == 1:
            self._work()
        else:
            self._work_in_parts()
        if self._told:
            self._context.observer.say(self._told)

    def _work_in_parts(self) -> None:
        with ThreadPoolExecutor(self._at_once) as threads:
            working = [threads.submit(copy_context().run, self._in_slot, place) for place in slots(self._at_once)]
            try:
                done, _ = wait(working, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()
            except BaseException:
                self._ends = True
                children.ask_to_save()
                raise

    def _in_slot(self, place: Slot) -> None:
        slot.set(place)
        self._work()

    def _work(self) -> None:
        while not self._ends and (asked := self._next()) is not None:
            self._one(asked)

    def _next(self) -> Asked | None:
        tuned = self._context.recipe.tune
        with self._lock:
            spent = _spent(self._context.recipe, self._study.trials, self._rows.share, self._at_once)
            self._told = spent or self._told
            return self._study.next(0 if spent else tuned.trials)

    def _one(self, asked: Asked) -> None:
        context, study = self._context, self._study
        recipe = with_values(context.recipe, asked.values)
        alone = self._at_once == 1
        name = f"trial {asked.number}{', continued' if asked.before else ''}"
        with nested(context, recipe, name=name, kind="trial", alone=alone, trial=f"{asked.number}") as (inner, run):
            if not alone:
                inner.observer = Beside(run)
            with gpu_slot():
                done = trial(inner, asked, self._rows, lambda look, value: study.report(asked.number, look, value))
            run.set_tags({"hone.trial.state": done.state} | ({"hone.trial.told": done.told} if done.told else {}))
        study.tell(done)
        if not alone:
            context.observer.finished(done)
        self._show(study.trials)

    def _show(self, trials: Sequence[Trial]) -> None:
        context = self._context
        assert context.run is not None
        known = [each.value for each in trials if each.value is not None and each.state == "complete"]
        last = trials[-1]
        if last.value is not None:
            context.run.log_metrics([(last.number, {"tune/value": last.value, "tune/best": max(known, default=0.0)})])
        report_trials(context.recipe.name, trials, context.recipe.tune.trials)


class Beside(Observer):
    """Observes a trial beside others: its curve goes to its own MLflow run, and nothing to the terminal.

    Args:
        run: The trial's.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def event(self, event: dict[str, Any]) -> None:
        """Training got on."""
        if "values" in event:
            self._run.log_metrics([(event["step"], event["values"])])


@contextmanager
def _alone(home: Home, recipe: Recipe) -> Iterator[None]:
    """No other command of this home searches the same recipe: what it left behind unfinished is ours to go on with.

    Raises:
        EnvironmentMistake: One does.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(home.locks / f"tune-{recipe.name}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        problem = Problem("tune", recipe.name, "is being searched by another command", "wait for it, or stop it")
        raise EnvironmentMistake(problem) from error
    try:
        yield
    finally:
        lock.release()


def _spent(recipe: Recipe, trials: Sequence[Trial], share: float, at_once: int) -> str:
    """Why no further trial begins; empty where one may.

    Raises:
        RecipeError: The finalists alone would take longer than the recipe allows.
    """
    tuned = recipe.tune
    learnt = sum(each.tokens for each in trials)
    if tuned.tokens is not None and learnt >= tuned.tokens:
        return f"{learnt:,} tokens are learnt: no further trial"
    first = next((each for each in trials if each.number == 0), None)
    if tuned.minutes is None or first is None:
        return ""
    finals = first.seconds_on_all(share) * (tuned.finalists + 1) * tuned.seeds / 60
    if finals >= tuned.minutes:
        rule = f"the finalists alone take about {finals:.0f} minutes"
        raise RecipeError(
            Problem("tune.minutes", tuned.minutes, rule, "raise it, or lower tune.finalists or tune.seeds")
        )
    gone = sum(each.seconds for each in trials) / at_once / 60
    usual = gone / len(trials)
    if gone + usual + finals > tuned.minutes:
        return f"{gone:.0f} minutes of trials, and about {finals:.0f} for the finalists: no further trial"
    return ""


def _announced(recipe: Recipe, space: Space, share: float, tokens: Artifact, known: Sequence[Trial]) -> str:
    """What the search will do, in a line."""
    examples = examples_in(tokens)
    fields = ", ".join(field.partition(".")[2] for field in space)
    before = f"; {len(known)} are there already" if known else ""
    rows = f"{round(share * examples):,} of {examples:,} rows" if share < 1 else f"all {examples:,} rows"
    measured = f"measured on {tokens.summary['rows']['validation']:,} validation rows, never on the test"
    return f"up to {recipe.tune.trials} trials of {fields} on {rows}{before}; {measured}"


def best_of(
    trials: Sequence[Trial], count: int, fit: Callable[[Sequence[Trial]], bool] = lambda _: True
) -> list[Trial]:  # fmt: skip
    """The best trials that were brought to an end, no two with the same values, the recipe as it is left out.

    Args:
        trials: All.
        count: How many at most.
        fit: Whether so many do; a better one with which they would not is passed over.
    """
    found: list[Trial] = []
    for each in sorted((t for t in trials if t.state == "complete" and t.values), key=lambda t: -(t.value or 0.0)):
        new = all(each.values != other.values for other in found)
        if new and len(found) < count and fit((*found, each)):
            found.append(each)
    return found


def _chosen(context: PipelineContext, trials: Sequence[Trial], share: float) -> list[Trial]:
    """The finalists: the best trials whose trainings on all rows fit into the time that is left; one in any case."""
    tuned = context.recipe.tune
    if tuned.minutes is None:
        return best_of(trials, tuned.finalists)
    as_it_is = next(each.seconds_on_all(share) for each in trials if each.number == 0)
    gone = sum(each.seconds for each in trials)
    left = (tuned.minutes * 60 - gone) / tuned.seeds - as_it_is
    costs = {each.number: each.seconds_on_all(share) for each in trials}
    chosen = best_of(trials, tuned.finalists, lambda several: sum(costs[one.number] for one in several) <= left)
    chosen = chosen or best_of(trials, 1)
    passed_over = [each.number for each in best_of(trials, tuned.finalists) if each not in chosen]
    if passed_over:
        names = ", ".join(f"trial {number}" for number in passed_over)
        context.observer.say(f"{names} would take longer than there is time for: passed over")
    return chosen


def _finalists(context: PipelineContext, prepared: Prepared, best: Sequence[Trial]) -> list[Trained]:
    """The best trials and the recipe as it is, each trained on all rows with several seeds."""
    recipe = context.recipe
    entries: list[tuple[int | None, Mapping[str, Any]]] = [(None, {}), *((each.number, each.values) for each in best)]
    names = ", ".join(f"trial {each.number}" for each in best) or "no trial"
    context.observer.say(f"the finalists, on all rows with {recipe.tune.seeds} seeds: the recipe as it is, {names}")
    trained = []
    for place in range(recipe.tune.seeds):
        for number, values in entries:
            asked = with_values(recipe, values)
            seed = recipe.train.seed + place
            section = asked.train.model_copy(update={"seed": seed})
            asked = asked.model_copy(update={"train": section})
            who = "as it is" if number is None else f"trial {number}"
            context.observer.say(f"{who}, seed {seed}")
            with nested(context, asked, name=f"{who}, seed {seed}", kind="finalist") as (inner, run):
                tokens = (
                    prepared.tokens
                    if _reads_alike(asked, recipe)
                    else tokenize(inner, prepared.cleaned, prepared.sides)
                )
                with gpu_slot():
                    model = train(inner, tokens)
                predictions = validate(inner, tokens, model)
                run.log_metrics([(0, {f"validation/{recipe.metric}": predictions.summary["value"]})])
            trained.append(Trained(number, values, seed, model, predictions))
    return trained


def _reads_alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes make the same tokens of the same rows."""
    return (one.task, one.tokenize, one.model.base) == (other.task, other.tokenize, other.model.base)


def _concluded(context: PipelineContext, tokens: Artifact, study: Study, share: float, found: Artifact) -> Tuned:
    """Record what the search comes to in MLflow and Prefect."""
    assert context.run is not None
    recipe, trials, examples = context.recipe, study.trials, examples_in(tokens)
    winner = found.summary["winner"]
    before = {field: resolved(recipe, field, examples) for field in winner}
    changes = {field: (before[field], after) for field, after in winner.items() if before[field] != after}
    head = f"Found by `hone tune`, {datetime.now(UTC):%Y-%m-%d}: {found.summary['told']}."
    result = Tuned(
        recipe=recipe.name,
        flow_run_id=context.flow_run_id,
        mlflow_run_id=context.run_id,
        mlflow_url=context.run.url,
        study=study.name,
        metric=recipe.metric,
        validation_rows=tokens.summary["rows"]["validation"],
        share=share,
        trials=tuple(trials),
        changes=changes,
        recipe_yaml=written(with_values(recipe, winner), changes, head),
        seconds=time.monotonic() - context.began,
        **{name: found.summary[name] for name in ("finalists", "verdict", "told", "importance")},
    )
    folder = context.path(found)
    context.run.log_artifact(folder, "tune")
    context.run.log_text(result.recipe_yaml, "tune/recipe.yaml")
    context.run.log_params({f"tuned.{field}": said(after) for field, (_, after) in changes.items()})
    context.run.set_tags({"hone.tune": result.verdict, "mlflow.note.content": result.told})
    report_found(result, "tune", folder, context.run)
    return result
