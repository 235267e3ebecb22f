"""`hone forget`: a person's rows leave everything hone keeps, and stay out; what hone must not touch is named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flows.engine import configure
from schemas.errors import DataError, EnvironmentMistake, Problem
from schemas.loading import load_recipe
from tasks.home import Home

CONTENT = ("id", "text")


def forget(
    path: Path,
    overrides: Sequence[str],
    *,
    ids: Sequence[str],
    texts: Sequence[str],
    file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Erase rows, named by id, by text, or by a file with a column of either; with `dry_run`, only list them."""
    recipe = load_recipe(path, overrides)
    more_ids, more_texts = _read(file) if file else ([], [])
    ids, texts = _filled([*ids, *more_ids]), _filled([*texts, *more_texts])
    if not ids and not texts:
        raise DataError(Problem("hone forget", None, "no row is named", "give --id, --text or --file"))
    home = Home.open(path)
    configure(home)
    from tasks.forget import erase, find
    from tasks.tracking import prepare

    prepare(home)
    if not dry_run:
        _refuse_beside_a_run(home)
    found = find(home, recipe, ids, texts)
    if not dry_run:
        erase(home, found)
    shown = {"recipe": recipe.name, "dry_run": dry_run, "found": not found.nothing, **found.as_dict()}
    if as_json:
        print(json.dumps(shown))
    else:
        _print(shown)
    return 0


def _read(file: Path) -> tuple[list[str], list[str]]:
    """Ids and texts of a CSV file with a header, or of a file with one JSON object per line."""
    import polars as pl

    remedy = "name a CSV or JSONL file with a column id, text or both"
    try:
        if file.suffix in {".jsonl", ".ndjson"}:
            rows = pl.read_ndjson(file, infer_schema_length=None)
        else:
            rows = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(Problem("--file", str(file), f"cannot be read: {reason}", remedy)) from error
    if not set(CONTENT) & set(rows.columns):
        raise DataError(Problem("--file", str(file), f"has the columns {', '.join(rows.columns)}", remedy))
    found = [rows[name].cast(pl.String).drop_nulls().to_list() if name in rows.columns else [] for name in CONTENT]
    return found[0], found[1]


def _filled(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(value.strip() for value in values if value.strip()))


def _refuse_beside_a_run(home: Home) -> None:
    """A run under way may have read the rows already, and would write them anew."""
    from tasks.tracking import live_runs, sweep

    sweep(home)
    live = live_runs(home)
    if live:
        run = live[0]
        raise EnvironmentMistake(
            Problem(
                "hone forget", run.recipe, f"is running, in process {run.pid}", "wait until it has ended, or stop it"
            )
        )


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    say = Console(highlight=False, soft_wrap=True).print
    would = "would be " if found["dry_run"] else ""
    if not found["found"]:
        say(f"nothing found: no copy of these rows is in the home{_kept_out(found)}")
    if found["stages"]:
        table = Table(title=f"artifacts that {would or 'were '}discarded", title_justify="left")
        for name in ("stage", "artifacts", "rows found"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for stage, counts in found["stages"].items():
            table.add_row(stage, f"{counts['artifacts']:,}", f"{counts['rows']:,}")
        say(table)
    for line in _lines(found, would):
        say(f"  {line}", markup=False)
    if found["found"] and not found["dry_run"]:
        say("the rows are out for good; the next run computes what is missing without them")


def _lines(found: dict[str, Any], would: str) -> Iterator[str]:
    """Copies that go, and all that is left to a person."""
    yield from (f"{would}removed: {copy}" for copy in found["copies"])
    for place, rows in found["sources"].items():
        yield f"the source {place} still holds {rows:,}: remove it there; until then hone leaves it out"
    for place, why in found["unread"].items():
        yield f"the source {place} could not be searched: {why}"
    for version in found["versions"]:
        aliases = f" ({', '.join(version['aliases'])})" if version["aliases"] else ""
        remedy = "run the recipe again, promote the new version, then delete this one"
        yield f"{version['name']} version {version['version']}{aliases} was trained on it: {remedy}"
    for place, where in found["quotes"].items():
        yield f"{place} quotes it in {', '.join(where)}: delete it there"
    yield from (f"not searched: {place}" for place in found["unsearched"])


def _kept_out(found: dict[str, Any]) -> str:
    return "" if found["dry_run"] else "; they will be left out should the source bring them"
