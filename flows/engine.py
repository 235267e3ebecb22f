"""Which Prefect and MLflow a command talks to. Decided before Prefect is imported: it reads its settings then.

Prefect: the environment, then the desk of this home when it is up, then the active Prefect profile when it names a
server, then one embedded in the home. MLflow: the environment, then the desk, then the home's database.
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

from flows.access import VARIABLE, client_environment
from flows.guard import start_guard, tell
from tasks.desk_note import DeskNote, running_desk
from tasks.home import Home

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Nothing phones home, and no library draws over the terminal."""
EMBEDDED = "HONE_EMBEDDED_PREFECT"
"""Set by `flows.embedded` for this process and its children: the API's URL of a server that ends with the command."""
LOGGING = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal shows hone's own account of the run
}


def configure(home: Home, desk: DeskNote | None = None) -> None:
    """Set what Prefect, MLflow and child processes read from the environment; whatever is set already stays.

    Args:
        home: The project's.
        desk: Whose servers to use; default: the home's desk, when it is up.
    """
    settings = QUIET | LOGGING | {"HONE_HOME": str(home.root)}
    desk = desk or running_desk(home.root)
    if desk is not None:
        settings |= {"PREFECT_API_URL": desk.prefect_api_url, "MLFLOW_TRACKING_URI": desk.mlflow_url}
        settings |= client_environment(os.environ.get(VARIABLE))
    elif not has_server():
        settings |= {"PREFECT_HOME": str(home.prefect)}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def has_server() -> bool:
    """Whether a Prefect server outlives this command; asked after `configure`, without importing Prefect."""
    url = os.environ.get("PREFECT_API_URL")
    return url != os.environ.get(EMBEDDED) if url else _profile_names_a_server()


def guard_embedded_server() -> None:
    """See to it that Prefect's embedded server dies with this process, however that dies; Prefect alone does not."""
    import psutil

    servers = [p.pid for p in psutil.Process().children() if "uvicorn" in p.cmdline()]
    if servers and not _guards:
        guard = start_guard()
        for pid in servers:
            tell(guard, pid)
        _guards.append(guard)  # nobody waits for it: it ends when the kernel closes its pipe


_guards: list[subprocess.Popen[bytes]] = []


def _profile_names_a_server() -> bool:
    profiles = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml"
    if not profiles.exists():
        return False
    content = tomllib.loads(profiles.read_text())
    active = content.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or content.get("active"), {})
    return bool(active.get("PREFECT_API_URL"))
