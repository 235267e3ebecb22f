"""MLflow's webhook: a person moves an alias, and the desk hears of it at once rather than in its next round.

A tiny receiver on the loopback interface, and its subscription at an MLflow server on this machine. Calls are signed;
what they say is not believed: they only make the caretaker look. MLflow keeps no call that it could not deliver, and a
server elsewhere or with other rules delivers none here, so that the caretaker looks regularly as well.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from schemas.base import LOOPBACK
from tasks.home import Home
from tasks.outbox import first_line
from tasks.tracking import client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import Webhook, WebhookEventStr

log = logging.getLogger(__name__)

NAME = "hone-desk"
EVENTS: tuple[WebhookEventStr, ...] = ("model_version_alias.created", "model_version_alias.deleted")
"""A moved alias is one that is created again."""
LONGEST_BODY = 64 * 1024
"""Bytes of a call; MLflow's have a few hundred."""
CLOCK_S = 300
"""Most that a call's timestamp may be off."""
PATIENCE_S = 5
"""Longest a caller may be silent."""
HEARD_S = 1
"""How long an MLflow server may go on without looking who subscribes."""


def webhook_environment(home: Home) -> dict[str, str]:
    """What an MLflow server needs in its environment to call a receiver on its own machine.

    The key that it encrypts the subscriptions' secrets with is kept in the home: with another one after a restart it
    could not read them, and would call nobody.
    """
    return {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": str(HEARD_S),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": _encryption_key(home),
    }


def _encryption_key(home: Home) -> str:
    """The home's Fernet key, made once, readable by its owner alone."""
    file = home.root / "webhook.key"
    with suppress(FileExistsError), open(file, "x", opener=lambda path, how: os.open(path, how, 0o600)) as fresh:
        fresh.write(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return file.read_text()


class Listener:
    """A receiver of calls on a free port of the loopback interface, until closed; use as a context manager.

    Args:
        on_move: Called for every call that is signed; by another thread, and quick.

    Attributes:
        url: Where it is.
        secret: What calls are signed with.
    """

    def __init__(self, on_move: Callable[[], None]) -> None:
        self.secret = secrets.token_urlsafe(32)
        self.on_move = on_move
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True).start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, headers: Message, body: bytes) -> int:
        """Take a call, if it is signed and new; returns the HTTP status."""
        sent, number = headers.get("X-MLflow-Timestamp", ""), headers.get("X-MLflow-Delivery-Id", "")
        if not hmac.compare_digest(headers.get("X-MLflow-Signature", "").encode(), self._signature(number, sent, body)):
            return 401
        if not sent.isdecimal() or abs(time.time() - int(sent)) > CLOCK_S:
            return 401
        self.on_move()
        return 204

    def _signature(self, number: str, sent: str, body: bytes) -> bytes:
        signed = f"{number}.{sent}.".encode() + body
        return b"v1," + base64.b64encode(hmac.new(self.secret.encode(), signed, hashlib.sha256).digest())


def listen(on_move: Callable[[], None]) -> Listener:
    """Take calls from now on; see `Listener`."""
    return Listener(on_move)


def subscribe(home: Home, listener: Listener) -> bool:
    """Have the home's MLflow call the listener when an alias is moved; earlier subscriptions of this home end.

    Returns:
        Whether it will: an MLflow that is elsewhere, no server or not set up for it does not.
    """
    if not home.mlflow_is_server or urlsplit(home.mlflow_uri).hostname not in LOOPBACK:
        return False
    mlflow = client(home)
    how: dict[str, Any] = {"name": NAME, "url": listener.url, "events": list(EVENTS), "secret": listener.secret}
    try:
        known = _ours(home, mlflow)
        if known:
            mlflow.update_webhook(known[0].webhook_id, status="ACTIVE", **how)
        else:
            mlflow.create_webhook(description=_whose(home), **how)
        for stale in known[1:]:
            mlflow.delete_webhook(stale.webhook_id)
    except Exception as error:  # noqa: BLE001  without webhooks the caretaker looks by itself
        log.info(
            "MLflow calls nobody when an alias is moved (%s); it is looked at every few seconds", first_line(error)
        )
        return False
    return True


def unsubscribe(home: Home) -> None:
    """End the home's subscription; one that is left calls nobody, and MLflow tries that in vain a few times."""
    mlflow = client(home)
    try:
        for known in _ours(home, mlflow):
            mlflow.delete_webhook(known.webhook_id)
    except Exception as error:  # noqa: BLE001  the next subscription ends it
        log.info("the webhook could not be taken from MLflow: %s", first_line(error))


def _ours(home: Home, mlflow: MlflowClient) -> list[Webhook]:
    """Subscriptions of this home; another home may have its own at the same MLflow."""
    page = mlflow.list_webhooks()
    found = list(page)
    while page.token:
        page = mlflow.list_webhooks(page_token=page.token)
        found += page
    return [one for one in found if one.name == NAME and one.description == _whose(home)]


def _whose(home: Home) -> str:
    return f"Tells the desk of {home.root} that an alias was moved."


def _handler(listener: Listener) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One connection."""

        timeout = PATIENCE_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LONGEST_BODY:
                self._end(413 if length.isdecimal() else 411)
                return
            try:
                body = self.rfile.read(int(length))
            except OSError:  # silent, or gone
                self.close_connection = True
                return
            self._end(listener.answer(self.headers, body))

        def _end(self, status: int) -> None:
            self.close_connection = True
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
            log.debug("webhook: %s", format % args)

    return Handler
