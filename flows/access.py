"""Who may use the desk's servers: anybody on this machine, and beyond it only who knows the password.

The password comes from `HONE_PASSWORD` and goes to servers and clients by the environment alone: into no command line,
no log and no file. The user is `hone`, for both servers.
"""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path

from schemas.base import LOOPBACK
from schemas.errors import EnvironmentMistake, Problem
from tasks.home import Home

VARIABLE = "HONE_PASSWORD"
USER = "hone"
FEWEST = 12
"""Characters of a password; MLflow takes none with fewer."""


def password_for(host: str) -> str | None:
    """The password to ask for; none where nobody but this machine can come in and none is set.

    Raises:
        EnvironmentMistake: The host can be reached from elsewhere and there is no password, or a short one.
    """
    password = os.environ.get(VARIABLE)
    if password is None and host in LOOPBACK:
        return None
    if password is None:
        rule = "can be reached from other machines, so that the servers must ask for a password"
        raise EnvironmentMistake(Problem("--host", host, rule, f"set {VARIABLE}, or leave --host out"))
    if len(password) < FEWEST:
        raise EnvironmentMistake(Problem(VARIABLE, None, f"has fewer than {FEWEST} characters", "set a longer one"))
    if find_spec("flask_wtf") is None:
        remedy = "pip install 'hone[auth]'"
        raise EnvironmentMistake(Problem(VARIABLE, None, "MLflow needs Flask-WTF to ask for a password", remedy))
    return password


def client_environment(password: str | None) -> dict[str, str]:
    """By which clients of both servers are let in."""
    if password is None:
        return {}
    return {
        "PREFECT_API_AUTH_STRING": f"{USER}:{password}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def prefect_environment(password: str | None) -> dict[str, str]:
    """By which the Prefect server asks for it."""
    return {"PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{password}"} if password else {}


def mlflow_environment(home: Home, password: str | None) -> dict[str, str]:
    """By which the MLflow server, started with `--app-name basic-auth`, asks for it."""
    if password is None:
        return {}
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_settings(home, password)),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


def _settings(home: Home, password: str) -> Path:
    """MLflow's own file of settings; what it keeps of users is made to know today's password."""
    database = f"sqlite:///{home.root / 'mlflow-auth.db'}"
    file = home.root / "mlflow-auth.ini"
    file.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database}\n"
        f"admin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    if (home.root / "mlflow-auth.db").exists():
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore()
        store.init_db(database)
        if store.has_user(USER):
            store.update_user(USER, password=password)
        store.engine.dispose()
    return file
