"""`hone quarantine`: what the last run set aside, by reason; exported to be corrected; replayed after a fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from schemas.loading import load_recipe
from tasks.home import Home
from tasks.markdown import shortened

MOST_SOURCES = 4
"""Sources named for each reason."""
TEXT_CHARS = 100
SOURCE_CHARS = 20
"""Of a text, and of a file's name, in the terminal."""
JSON_CHARS = 200
"""Characters of a text in the JSON."""


def quarantine(
    path: Path,
    overrides: Sequence[str],
    *,
    reason: str | None,
    examples: int,
    export: Path | None,
    replay: bool,
    as_json: bool,
) -> int:
    """Show, export or replay the rows that the last run of a recipe set aside; the replay changes nothing."""
    from flows.terminal import Display
    from tasks import quarantine as rows

    recipe = load_recipe(path, overrides)
    home = Home.open(path)
    aside = rows.last_set_aside(recipe, home)
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "collected": aside.collected,
        "kept": aside.kept,
        "split": aside.split is not None,
        "stale": aside.stale,
        "groups": [asdict(group) for group in rows.groups(aside, reason=reason, examples=examples)],
    }
    if export:
        found["export"] = {"file": str(export), **asdict(rows.export(aside, export, reason=reason))}
    if replay:
        shown = Display()
        shown.say(f"{recipe.name}: collecting, cleaning and splitting again; nothing of it is kept")
        try:
            found["replay"] = asdict(rows.replay(aside, home, reason=reason))
        finally:
            shown.stop()
    if as_json:
        print(json.dumps(_cut(found), ensure_ascii=False))
    else:
        _print(found)
    return 0


def _cut(found: dict[str, Any]) -> dict[str, Any]:
    """The findings with their texts cut short."""
    groups = [group | {"examples": [_cut_texts(example) for example in group["examples"]]} for group in found["groups"]]
    return found | {"groups": groups}


def _cut_texts(example: dict[str, Any]) -> dict[str, Any]:
    return {name: shortened(value, JSON_CHARS) if isinstance(value, str) else value for name, value in example.items()}


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def say(*parts: str | tuple[str, str]) -> None:
        """One line, cut to the width; texts from outside are no markup."""
        line = Text.assemble(*parts)
        line.truncate(console.width, overflow="ellipsis")
        console.print(line)

    _print_groups(say, found)
    if "export" in found:
        _print_export(partial(console.print, markup=False, soft_wrap=True), found["export"])
    if "replay" in found:
        _print_replay(say, found["replay"], found["kept"])


def _print_groups(say: Callable[..., None], found: dict[str, Any]) -> None:
    aside = sum(group["rows"] for group in found["groups"])
    say((found["recipe"], "bold"), f"  {aside:,} of {found['collected']:,} collected rows were set aside")
    if found["stale"]:
        say(("  newer rows were collected since, but not cleaned to the end: this is of the run before", "yellow"))
    if not found["split"]:
        say(("  these rows were not split yet: rows that leak are not among them", "yellow"))
    for group in found["groups"]:
        sources = list(group["sources"].items())
        where = ", ".join(f"{shortened(name, SOURCE_CHARS)} {rows:,}" for name, rows in sources[:MOST_SOURCES])
        more = f" and {len(sources) - MOST_SOURCES:,} more" if len(sources) > MOST_SOURCES else ""
        share = f"{group['rows']:>9,}  {group['share']:>6.2%}  "
        say(share, (group["reason"], "bold"), (f"  by {group['stage']}  {where}{more}", "dim"))
        for example in group["examples"]:
            _print_example(say, example)


def _print_example(say: Callable[..., None], example: dict[str, Any]) -> None:
    known = {"source", "row", "id", "text", "twin", "twin_text"}
    targets = ", ".join(str(value) for name, value in example.items() if name not in known and value is not None)
    source = shortened(example["source"].rpartition("/")[2], SOURCE_CHARS)
    say(
        "      ",
        (f"{targets}  " if targets else "", "cyan"),
        shortened(example["text"], TEXT_CHARS),
        (f"  {source}:{example['row']} {example.get('id') or 'no id'}", "dim"),
    )
    if example.get("twin"):
        say("        like  ", shortened(example["twin_text"], TEXT_CHARS), (f"  {example['twin']}", "dim"))


def _print_export(say: Callable[..., None], export: dict[str, Any]) -> None:
    file = export["file"]
    say(
        f"  {export['rows']:,} rows written to {file}: put them right, or write true under drop; then add", markup=False
    )
    say(f"      collect: {{corrections: [{file}]}}")
    say("  to the recipe, the file's place relative to it. Empty cells change nothing.")
    if export["without_id"]:
        say(f"  lines without an id, to be put right in the source itself: {export['without_id']:,}")


def _print_replay(say: Callable[..., None], replay: dict[str, Any], before: int | None) -> None:
    say(("replay", "bold"), "  what the recipe would make of these rows now")
    for reason, fates in replay["fates"].items():
        told = ", ".join(f"{rows:,} {fate}" for fate, rows in fates.items())
        say(f"{sum(fates.values()):>9,}  ", (reason, "bold"), f" → {told}")
    say(f"  {replay['kept']:,} rows kept in all" + (f", {before:,} before" if before is not None else ""))
    for problem in replay["stops"]:
        say(("  a run would stop: ", "yellow"), problem)
