"""Prefect's server for one command, where none is configured: a process of its own on the home's database.

Prefect starts such a server by itself, but not before it is imported here and a flow begins, and imports the server's
code here, too. This one starts at once, beside all that a command imports. Run as a module it is the server.
"""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys

from flows.engine import EMBEDDED, has_server
from flows.guard import start_guard, tell
from schemas.errors import Fault
from tasks import process
from tasks.home import Home

HOST = "127.0.0.1"
START_S = 120.0
"""Longest it may take to answer: in a fresh home it makes its database first."""
STOP_S = 10.0
"""Longest to wait for its end; the guard kills it somewhat before."""
LOG_CHARS = 2_000
"""Characters of its log shown when it dies."""


class EmbeddedServer:
    """Starts at once, answers after a while, and ends with this process, however that dies.

    From then on everything in this process that asks for Prefect's API finds this one.

    Args:
        home: Whose database it serves.
    """

    def __init__(self, home: Home) -> None:
        home.logs.mkdir(parents=True, exist_ok=True)
        self._log = home.logs / "prefect-embedded.log"
        with socket.socket() as listening, self._log.open("wb") as log:
            listening.bind((HOST, 0))
            listening.listen()  # who asks before the server is up waits, and is not refused
            self._port = int(listening.getsockname()[1])
            os.environ["PREFECT_API_URL"] = os.environ[EMBEDDED] = f"http://{HOST}:{self._port}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.embedded", str(listening.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(listening.fileno(),),
                env={**os.environ, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING", "PREFECT_UI_ENABLED": "0"},
                start_new_session=True,  # Ctrl-C is for this process, which has something to tell it still
            )
        self._guard = start_guard()
        tell(self._guard, self._process.pid)
        # Registered before Prefect is imported, so it runs after Prefect has sent its last logs and events.
        atexit.register(self.stop)

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            Fault: It ended, or does not answer in time; with the last lines of its log.
        """
        connection = http.client.HTTPConnection(HOST, self._port, timeout=START_S)
        try:
            connection.request("GET", "/api/health")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise Fault(f"the embedded Prefect server did not answer ({error}):\n{self._log_tail()}") from error
        finally:
            connection.close()
        if status != http.HTTPStatus.OK:
            raise Fault(f"the embedded Prefect server answered {status}:\n{self._log_tail()}")

    def stop(self) -> None:
        """End it; the next call does nothing."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()  # which is when the guard acts
        self._process.wait(STOP_S)

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_CHARS:]


def embed_server(home: Home) -> EmbeddedServer | None:
    """A server for this process where none is configured; call before Prefect is imported."""
    return None if has_server() else EmbeddedServer(home)


def main() -> None:
    """Serve on the socket whose file descriptor is the argument, until told to end."""
    process.begin()
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.socket(fileno=int(sys.argv[1]))
    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[listening])


if __name__ == "__main__":
    main()
