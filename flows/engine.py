"""Which Prefect and MLflow a command talks to. Decided before Prefect is imported: it reads its settings then.

Prefect: the environment, then the desk of this home when it is up, then the active Prefect profile when it names a
server, then one embedded in the home. MLflow: the environment, then the desk, then the home's database.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from flows.access import PASSWORD, client_environment
from tasks.desk_note import running_desk
from tasks.home import Home

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Nothing phones home, and no library draws over the terminal."""
LOGGING = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal shows hone's own account of the run
}


def configure(home: Home) -> None:
    """Set what Prefect, MLflow and child processes read from the environment; whatever is set already stays."""
    settings = QUIET | LOGGING | {"HONE_HOME": str(home.root)}
    desk = running_desk(home.root)
    if desk is not None:
        settings |= {"PREFECT_API_URL": desk.prefect_api_url, "MLFLOW_TRACKING_URI": desk.mlflow_url}
        settings |= client_environment(os.environ.get(PASSWORD))
    elif not has_server():
        settings |= {
            "PREFECT_HOME": str(home.prefect),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def has_server() -> bool:
    """Whether a Prefect server is configured; asked after `configure`, without importing Prefect."""
    return bool(os.environ.get("PREFECT_API_URL")) or _profile_names_a_server()


GUARD = """
import os, signal, sys
servers = [os.pidfd_open(int(pid)) for pid in sys.argv[1:]]
sys.stdin.read()
for server in servers:
    try:
        signal.pidfd_send_signal(server, signal.SIGTERM)
    except ProcessLookupError:
        pass
"""
"""Waits for its parent's end of a pipe to close, then ends the servers; a pidfd never means another process."""


def guard_embedded_server() -> None:
    """See to it that Prefect's embedded server dies with this process, however that dies; Prefect alone does not."""
    import psutil

    servers = [str(p.pid) for p in psutil.Process().children() if "uvicorn" in p.cmdline()]
    if servers and sys.platform == "linux":
        # Nobody waits for it, and nothing is written to it: it ends when the kernel closes the pipe.
        _guards.append(
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", GUARD, *servers], stdin=subprocess.PIPE, start_new_session=True
            )
        )


_guards: list[subprocess.Popen[bytes]] = []


def _profile_names_a_server() -> bool:
    profiles = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml"
    if not profiles.exists():
        return False
    content = tomllib.loads(profiles.read_text())
    active = content.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or content.get("active"), {})
    return bool(active.get("PREFECT_API_URL"))
