"""The home: where one project keeps its store, registry, locks, work in progress and journal.

`HONE_HOME` names it; else it is `.hone/` at the root of the project the recipe belongs to. Deleting it resets
everything.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import EnvironmentMistake, Problem

FORMAT = 1
"""Version of the home's layout. A newer one is refused, an older one migrated."""
HOME_NAME = ".hone"
PROJECT_MARKS = (".git", "pyproject.toml")


@dataclass(frozen=True)
class Home:
    """Paths below one home; `Home.open` makes them."""

    root: Path

    @property
    def store(self) -> str:
        """Root of the artifact store: `HONE_STORE` (any fsspec URL), else a folder of the home."""
        return os.environ.get("HONE_STORE") or str(self.root / "store")

    @property
    def project(self) -> Path:
        """Folder of the project it belongs to, where that can be told; else the current one."""
        return self.root.parent if self.root.name == HOME_NAME else Path.cwd()

    @property
    def digests(self) -> Path:
        """Remembered content digests; safe to delete."""
        return self.root / "cache" / "digests"

    @property
    def unpacked(self) -> Path:
        """Base models whose quantised weights were written out; safe to delete."""
        return self.root / "cache" / "unpacked"

    @property
    def materialised(self) -> Path:
        """Local copies of artifacts of a remote store; safe to delete."""
        return self.root / "cache" / "store"

    @property
    def locks(self) -> Path:
        """Lock files; held only by living processes."""
        return self.root / "locks"

    @property
    def work(self) -> Path:
        """Work in progress: drafts of artifacts, checkpoints of unfinished training."""
        return self.root / "work"

    @property
    def journal(self) -> Path:
        """One JSON file per run, and the history of promotions."""
        return self.root / "journal"

    @property
    def logs(self) -> Path:
        """Output of child processes and servers."""
        return self.root / "logs"

    @property
    def prefect(self) -> Path:
        """Home of the embedded Prefect."""
        return self.root / "prefect"

    @property
    def mlflow_uri(self) -> str:
        """Tracking URI: `MLFLOW_TRACKING_URI`, else SQLite in the home."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_is_server(self) -> bool:
        """Whether MLflow is reached through a server, rather than straight to its database."""
        return self.mlflow_uri.startswith(("http://", "https://"))

    @property
    def mlflow_artifacts(self) -> str:
        """URL below which MLflow keeps artifacts, where hone decides: `HONE_ARTIFACTS`, else a folder of the home."""
        return os.environ.get("HONE_ARTIFACTS") or (self.root / "mlartifacts").as_uri()

    @staticmethod
    def locate(start: Path) -> Path:
        """Where the home of the project around `start` (a recipe, or a folder) is, there or not yet."""
        named = os.environ.get("HONE_HOME")
        if named:
            return Path(named).expanduser().resolve()
        folder = start.resolve() if start.is_dir() else start.resolve().parent
        for candidate in (folder, *folder.parents):
            if any((candidate / mark).exists() for mark in PROJECT_MARKS):
                return candidate / HOME_NAME
        return folder / HOME_NAME

    @staticmethod
    def open(start: Path) -> Home:
        """The home of the project around `start`, made if need be.

        Raises:
            EnvironmentMistake: It cannot be written, or was made by a newer hone.
        """
        home = Home(Home.locate(start))
        try:
            for folder in (home.digests, home.locks, home.work, home.journal / "runs"):
                folder.mkdir(parents=True, exist_ok=True)
            _check_format(home.root / "home.json")
        except OSError as error:
            raise EnvironmentMistake(
                Problem("HONE_HOME", str(home.root), error.strerror or str(error), "name a folder that can be written")
            ) from error
        return home


def _check_format(note: Path) -> None:
    if not note.exists():
        note.write_text(json.dumps({"format": FORMAT}))
        return
    found = json.loads(note.read_text())["format"]
    if found > FORMAT:
        raise EnvironmentMistake(
            Problem(
                str(note),
                found,
                f"this hone reads homes up to format {FORMAT}",
                "use the newer hone, or another HONE_HOME",
            )
        )
