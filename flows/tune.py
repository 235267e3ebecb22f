"""`hone tune`: a better recipe, and what it surely gains over this one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flows.kept_recipe import WIDTH, keep, print_end, refuse_other_folder
from flows.run import Runs, watched
from schemas.loading import load_recipe
from schemas.tune import Finalist, Tuned, TuneVerdict

STYLES: dict[TuneVerdict, str] = {"better": "bold green", "within": "bold yellow"}


def tune(path: Path, overrides: Sequence[str], *, write: Path | None, then_run: bool, as_json: bool) -> int:
    """Search for a better recipe.

    Args:
        path: The recipe.
        overrides: Of its fields.
        write: Where the recipe's own file goes, with what was found changed in it; default: a whole recipe in the home.
        then_run: Run the pipeline with what was found.
        as_json: Print one JSON object.
    """
    recipe = load_recipe(path, overrides)
    refuse_other_folder(path, write)

    def chosen() -> Runs:
        from flows.tuning import tune as flow

        return flow

    found: Tuned = watched(path, recipe, chosen, then_run)
    file = keep(found, path, write)
    if as_json:
        print(found.model_dump_json())
    else:
        _print(found, file)
    return 0


def _print(found: Tuned, file: Path) -> None:
    """The same as a person enjoys reading it."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from tasks.curve import shown
    from tasks.space import said

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    finalists = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("finalist", f"validation {found.metric}", "gain", "seconds"):
        finalists.add_column(name)
    for one in found.finalists:
        gain = "" if one.gain is None else shown(one.gain, "+.4f")
        finalists.add_row(_name(one), shown(one.value, ".4f"), gain, f"{one.seconds:.0f}")
    console.print(Padding(finalists, (1, 2, 0, 2)))
    console.print(Padding(Text(found.told, style=STYLES[found.verdict]), (1, 2, 0, 2)))
    changes = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("field", "was", "is"):
        changes.add_column(name)
    for field, (before, after) in found.changes.items():
        changes.add_row(field, said(before), said(after))
    if found.changes:
        console.print(Padding(changes, (1, 2, 0, 2)))
    ended = [trial.state for trial in found.trials]
    counts = ", ".join(f"{ended.count(state)} {state}" for state in dict.fromkeys(ended))
    print_end(console, found, file, f"{len(ended)} trials ({counts}), ")


def _name(one: Finalist) -> str:
    return "as it is" if one.trial is None else f"trial {one.trial}"
