"""When a recipe runs by itself, and how a retraining begins. None of it shapes a stage's output or its key."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from schemas.base import Section
from schemas.data import Share
from schemas.stages import Stage


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("must be the name of a time zone, such as Europe/Berlin or UTC") from error
    return value


class Schedule(Section):
    """When something runs by itself: at the times of a cron expression, or every so many minutes."""

    cron: Annotated[str, Field(pattern=r"^\S+( +\S+){4}$")] | None = None
    """Five fields: minute, hour, day of month, month, day of week. `0 3 * * 1` is Mondays at three."""
    every_minutes: Annotated[int, Field(ge=1, le=527_040)] | None = None
    """Minutes between two runs."""
    timezone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    """Whose clock `cron` goes by."""
    active: bool = True
    """Off: it is on the server, and waits there until somebody switches it on."""

    @model_validator(mode="after")
    def _one_rhythm(self) -> Self:
        if (self.cron is None) == (self.every_minutes is None):
            raise ValueError("a schedule needs cron or every_minutes, and not both")
        return self


class StageSchedule(Schedule):
    """When one stage runs by itself."""

    stage: Stage
    """The last stage of such a run."""


class Schedules(Section):
    """What runs by itself, and what becomes of a run that is due while another one of the recipe goes on."""

    retrain: Schedule | None = None
    """Collects, and trains when rows, recipe or champion are not those of the last attempt."""
    finetune: Schedule | None = None
    """The whole pipeline, whatever has changed."""
    stages: tuple[StageSchedule, ...] = ()
    """Single stages, each with the stages before it, from the store where nothing has changed."""
    overlap: Literal["queue", "cancel"] = "queue"
    """A run that is due while one of the same deployment goes on waits for it, or is cancelled."""


class Retrain(Section):
    """What `retrain` does with rows that have changed; a plain run always begins with `model.base`."""

    start_from: Literal["base", "champion"] = "base"
    """`model.base`, or the champion, which learns the rows new to it; if none serves, fits or is new: `model.base`."""
    replay: Share = 0.2
    """Started from the champion: share of the rows it has learnt that are learnt again, so that they stay known."""
    on_new_rows: bool = False
    """Retrain as soon as a `collect` of its own finds rows that have changed."""
