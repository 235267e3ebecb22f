"""One model rebuilt in a home of its own, from rows to measures; `hone reproduce` starts it, with the code of then.

    python -P -m flows.rebuild JOB

JOB is a JSON file: `told` (what the version is called), `recipe` (as it was recorded), `home` (an empty folder),
`collect_key` (of the rows of then), `kept` (`folder` and `summary` of these rows, where a store still has them, else
null), `plan` (of the training of then, or null), `learnt` (file with the hashes of the rows that the model had learnt
which it went on from, or null), `out` (JSON file to write, with `found`, `mistake` or `fault`). Later
code starts this one: what they tell each other may grow, and must not change. Nothing is registered, and no MLflow is
asked.

Ends by itself when standard input closes, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flows.engine import configure
from flows.terminal import Display, StageLines
from schemas.errors import DataError, Fault, HoneError, Mistake, Problem
from schemas.records import Artifact, Plan
from tasks.child import children
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.digests import write_atomically
from tasks.evaluate import evaluate
from tasks.held_out import read_hashes
from tasks.home import Home
from tasks.recorded import as_recipe
from tasks.replay import replay
from tasks.split import split
from tasks.store import MANIFEST
from tasks.tokenize import tokenize
from tasks.train import plan_artifact, train

if TYPE_CHECKING:
    from tasks.held_out import Hashes


def main() -> None:
    """Rebuild what the job names."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"found": _do(job)}
    except Mistake as mistake:
        answer = {"mistake": mistake.as_dict()}
    except Fault as fault:
        answer = {"fault": str(fault)}
    write_atomically(Path(job["out"]), json.dumps(answer))


def _end_with_parent() -> None:
    sys.stdin.read()
    children.stop()  # first, so that nothing is written any more once this process is gone
    os._exit(1)


def _do(job: dict[str, Any]) -> dict[str, Any]:
    recipe = as_recipe(job["recipe"], job["told"], remedy="check out hone at the commit that made it")
    home, shown = Home.open(Path(job["home"])), Display()
    configure(home)
    context = Context(recipe, home, run_id="", observer=StageLines(home, shown))
    try:
        learnt = read_hashes(Path(job["learnt"])) if job.get("learnt") else None
        return rebuild(context, job["collect_key"], job["kept"], job.get("plan"), learnt)
    finally:
        shown.stop()


def rebuild(
    context: Context,
    collect_key: str,
    kept: dict[str, Any] | None,
    plan: dict[str, Any] | None,
    learnt: Hashes | None = None,
) -> dict[str, Any]:
    """Every stage up to the measures.

    Args:
        context: Of an empty home.
        collect_key: Of the rows that the model was made from.
        kept: Where these rows still are, should the source have changed.
        plan: By which the model was trained, where that is known.
        learnt: Of a model that went on learning: hashes of the rows that it had learnt before.

    Raises:
        DataError: The rows are in neither.
    """
    raw, from_source = rows_of_then(context, collect_key, kept)
    cleaned = clean(context, raw)
    sides = split(context, cleaned)
    tokens = tokenize(context, cleaned, sides)
    lessons = tokens if learnt is None else replay(context, sides, tokens, learnt)
    if plan is not None:
        follow(context, lessons, plan)
    model = train(context, lessons)
    scores = evaluate(context, sides, tokens, model)
    return {
        "rows": raw.summary["rows"],
        "rows_from": "source" if from_source else "store",
        "keys": {artifact.stage: artifact.key for artifact in (raw, cleaned, sides, tokens, model, scores)},
        "weights_sha256": model.summary["weights_sha256"],
        "plan": model.summary["plan"],
        "metrics": scores.summary["metrics"],
        "seconds": sum(artifact.seconds for artifact in (raw, cleaned, sides, tokens, model, scores)),
    }


def follow(context: Context, tokens: Artifact, plan: dict[str, Any]) -> None:
    """Freeze the plan of then in place of this machine's, which may have other cores; not for another device."""
    here = plan_artifact(context, tokens)
    try:
        frozen = Plan.model_validate({**plan, "reasons": here.summary["reasons"]})
    except ValidationError:  # of a hone that planned otherwise
        return
    if frozen.device == here.summary["device"]:
        context.replace(here, frozen.model_dump(mode="json"))


def rows_of_then(context: Context, collect_key: str, kept: dict[str, Any] | None) -> tuple[Artifact, bool]:
    """The rows that were collected then, and whether the source still gives them.

    Raises:
        DataError: Neither the source nor a store has them.
    """
    try:
        raw, why = collect(context), "no longer gives the rows of then"
    except HoneError as error:  # it may be gone, or out of reach
        raw, why = None, error.problems[0].rule if isinstance(error, Mistake) else str(error).splitlines()[0]
    if raw is not None and raw.key == collect_key:
        return raw, True
    if kept is None:
        rule = f"{why}, and the store does not have them"
        raise DataError(
            Problem("collect.source", context.recipe.collect.source.shown(), rule, "bring it back to what it was")
        )
    with context.store.draft("collect", collect_key) as out:
        shutil.copytree(kept["folder"], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        context.store.publish(
            out, "collect", collect_key, ingredients={}, summary=kept["summary"], run_id=context.run_id
        )
    about = {"stage": "collect", "key": collect_key, "summary": kept["summary"]}
    return Artifact(**about, cached=True, why="", seconds=0.0, run_id=context.run_id), False


if __name__ == "__main__":
    main()
