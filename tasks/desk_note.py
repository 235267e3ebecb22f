"""The note that `hone up` leaves in the home, by which other commands find its servers, and know when it is gone."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tasks.digests import write_atomically
from tasks.home import Home
from tasks.outbox import without_password

NAME = "desk.json"


@dataclass(frozen=True)
class DeskNote:
    """A desk that is up, or was up last.

    Attributes:
        prefect_port: Of the Prefect server it started; none where it uses another one. Likewise for MLflow.
        mlflow_store: What its MLflow server serves: the same runs are reached through either.
        pid: Process of `hone up`.
        created: When that process began, in seconds since 1970: a number may come back, this pair does not.
    """

    prefect_api_url: str
    mlflow_url: str
    prefect_port: int | None
    mlflow_port: int | None
    mlflow_store: str
    pid: int = field(default_factory=os.getpid)
    created: float = field(default_factory=lambda: _created(os.getpid()))

    @property
    def up(self) -> bool:
        """Whether that desk runs now."""
        return _created(self.pid) == self.created > 0

    def write(self, root: Path) -> None:
        """Leave it in a home."""
        write_atomically(root / NAME, json.dumps(asdict(self), indent=1))

    @staticmethod
    def read(root: Path) -> DeskNote | None:
        """The note in a home; none before the first `hone up` and where it cannot be read."""
        with suppress(OSError, ValueError, TypeError):
            return DeskNote(**json.loads((root / NAME).read_text()))
        return None


def mlflow_name(home: Home) -> str:
    """Which MLflow that is, however it is reached: by the server of `hone up`, or straight to what that serves."""
    desk = DeskNote.read(home.root)
    served = desk.mlflow_store if desk is not None and home.mlflow_uri == desk.mlflow_url else home.mlflow_uri
    return without_password(served)


def running_desk(root: Path) -> DeskNote | None:
    """The desk of a home, where one is up."""
    note = DeskNote.read(root)
    return note if note is not None and note.up else None


def _created(pid: int) -> float:
    """When a process began; 0 where there is none of that number."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0
