"""One model rebuilt in a home of its own, from rows to measures; `hone reproduce` starts it, with the code of then.

    python -P -m flows.rebuild JOB

JOB is a JSON file: `recipe` (a recorded recipe), `home` (an empty folder), `collect_key` (of the rows of then), `kept`
(`folder` and `summary` of these rows, where a store still has them, else null), `out` (JSON file to write). Nothing is
registered, and no MLflow is asked.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.engine import configure
from flows.terminal import Display, StageLines
from schemas.errors import DataError, Problem
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks.clean import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.evaluate import evaluate
from tasks.home import Home
from tasks.split import split
from tasks.store import MANIFEST
from tasks.tokenize import tokenize
from tasks.train import train


def main() -> None:
    """Rebuild what the job names."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    home = Home.open(Path(job["home"]))
    configure(home)
    recipe, shown = Recipe.model_validate(job["recipe"]), Display()
    context = Context(recipe, home, run_id="", observer=StageLines(home, shown))
    try:
        found = rebuild(context, job["collect_key"], job["kept"])
    finally:
        shown.stop()
    Path(job["out"]).write_text(json.dumps(found), encoding="utf-8")


def rebuild(context: Context, collect_key: str, kept: dict[str, Any] | None) -> dict[str, Any]:
    """Every stage up to the measures.

    Args:
        context: Of an empty home.
        collect_key: Of the rows that the model was made from.
        kept: Where these rows still are, should the source have changed.

    Raises:
        DataError: The rows are in neither.
    """
    raw, from_source = rows_of_then(context, collect_key, kept)
    cleaned = clean(context, raw)
    sides = split(context, cleaned)
    tokens = tokenize(context, cleaned, sides)
    model = train(context, tokens)
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


def rows_of_then(context: Context, collect_key: str, kept: dict[str, Any] | None) -> tuple[Artifact, bool]:
    """The rows that were collected then, and whether the source still gives them."""
    raw = collect(context)
    if raw.key == collect_key:
        return raw, True
    if kept is None:
        source = context.recipe.collect.source.shown()
        rule = "no longer gives the rows of then, and the store does not have them"
        raise DataError(Problem("collect.source", source, rule, "bring the source back to what it was"))
    with context.store.draft("collect", collect_key) as out:
        shutil.copytree(kept["folder"], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        context.store.publish(
            out, "collect", collect_key, ingredients={}, summary=kept["summary"], run_id=context.run_id
        )
    return raw.model_copy(update={"key": collect_key, "summary": kept["summary"]}), False


if __name__ == "__main__":
    main()
