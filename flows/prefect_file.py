"""`hone deploy --write FILE`: the same deployments as a file for `prefect deploy`, for teams that keep it under review.

The forms are then Prefect's own, made from the flow's signature; `hone deploy` itself makes better ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.deploy import RUN_ENVIRONMENT, Wanted, wanted_of
from schemas.recipe import Recipe
from schemas.schedule import Schedule

HEAD = """\
# Written by `hone deploy --write {name}` from the recipes beside it. In the checkout of hone, to put it onto a server:
#   prefect --no-prompt deploy --all --prefect-file {path}
"""


def write(recipes: Sequence[Recipe], file: Path, *, pool: str) -> None:
    """Write the deployments of recipes; what several of them share is written once."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    shared: dict[str, Any] = {}
    content = {"name": "hone", "pull": [], "deployments": [_entry(w, pool, shared) for w in wanted_of(recipes, {})]}
    with file.open("w", encoding="utf-8") as opened:
        opened.write(HEAD.format(name=file.name, path=file))
        yaml.dump(content, opened)


def _entry(wanted: Wanted, pool: str, shared: dict[str, Any]) -> dict[str, Any]:
    module, _, function = wanted.entrypoint.rpartition(".")
    entry: dict[str, Any] = {
        "name": wanted.name,
        "entrypoint": f"{module.replace('.', '/')}.py:{function}",
        "description": wanted.description,
        "tags": list(wanted.tags),
        "parameters": {name: shared.setdefault(repr(value), value) for name, value in wanted.parameters.items()},
        "enforce_parameter_schema": True,
        "schedules": [_schedule(wanted.schedule)] if wanted.schedule else [],
        "work_pool": {"name": pool, "job_variables": shared.setdefault("variables", {"env": dict(RUN_ENVIRONMENT)})},
    }
    if wanted.alone:
        strategy = "ENQUEUE" if wanted.alone == "queue" else "CANCEL_NEW"
        entry["concurrency_limit"] = {"limit": 1, "collision_strategy": strategy}
    return entry


def _schedule(schedule: Schedule) -> dict[str, Any]:
    rhythm = {"cron": schedule.cron} if schedule.cron else {"interval": 60 * (schedule.every_minutes or 0)}
    return {**rhythm, "timezone": schedule.timezone, "active": schedule.active}
