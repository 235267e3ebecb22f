from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import webhook
from flows.webhook import Listener, listen, subscribe, webhook_environment
from tasks.home import Home


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def listener(calls: list[int]) -> Iterator[Listener]:
    with listen(lambda: calls.append(1)) as made:
        yield made


def call(listener: Listener, body: bytes = b'{"data": {}}', **changed: str) -> int:
    """As MLflow makes it."""
    number, sent = "7d3c", changed.pop("sent", str(int(time.time())))
    signed = f"{number}.{sent}.".encode() + body
    digest = hmac.new(changed.pop("secret", listener.secret).encode(), signed, hashlib.sha256).digest()
    headers = {
        "X-MLflow-Delivery-Id": number,
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": f"v1,{base64.b64encode(digest).decode()}",
    }
    return post(listener, body, headers | changed)


def post(listener: Listener, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(listener.url.split("/")[2], timeout=10)
    connection.request("POST", "/", body=body, headers=headers)
    return connection.getresponse().status


def test_a_signed_call_is_taken(listener, calls):
    assert call(listener, '{"alias": "schön"}'.encode()) == 204
    assert calls == [1]


@pytest.mark.parametrize(
    "changed",
    [
        {"secret": "another"},
        {"X-MLflow-Signature": ""},
        {"X-MLflow-Signature": "v1,schön".encode().decode("latin-1")},
        {"X-MLflow-Delivery-Id": "another"},
        {"X-MLflow-Timestamp": "1"},
        {"sent": "now"},
        {"sent": ""},
    ],
)
def test_a_call_that_is_not_signed_is_refused(listener, calls, changed):
    assert call(listener, **changed) == 401
    assert calls == []


@pytest.mark.parametrize("away_s", [-400, 400])
def test_a_signed_call_from_another_time_is_refused(listener, calls, away_s):
    assert call(listener, sent=str(int(time.time()) + away_s)) == 401
    assert calls == []


def test_a_signed_call_keeps_its_time(listener, calls):
    """The signature holds for the very second it was made for, not for all that are near enough."""
    assert call(listener, **{"X-MLflow-Timestamp": str(int(time.time()) + 5)}) == 401
    assert calls == []


def test_a_changed_body_is_refused(listener, calls):
    signed: dict[str, str] = {}
    assert post(listener, b"{}", signed) == 401
    assert calls == []


def test_a_long_body_is_refused_unread(listener, calls):
    address = listener.url.split("/")[2].split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert b" 413 " in raw.recv(100)
    with socket.create_connection((address[0], int(address[1])), timeout=10) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 411 " in raw.recv(100)
    assert call(listener) == 204


def test_a_caller_that_falls_silent_holds_nobody_up(calls, monkeypatch):
    monkeypatch.setattr(webhook, "PATIENCE_S", 0.3)
    with listen(lambda: calls.append(1)) as listener:
        address = listener.url.split("/")[2].split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=10) as raw:
            raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab")
            assert call(listener) == 204
            assert raw.recv(100) == b""
    assert calls == [1]


def test_it_listens_on_this_machine_alone(listener):
    assert listener.url.startswith("http://127.0.0.1:")


def test_the_encryption_key_is_made_once_and_for_the_owner_alone(tmp_path: Path):
    home = Home(tmp_path)
    first = webhook_environment(home)
    assert webhook_environment(home) == first
    key = first["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]
    assert len(base64.urlsafe_b64decode(key)) == 32
    (file,) = [file for file in tmp_path.iterdir() if file.read_text() == key]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("uri", ["sqlite:///x.db", "https://mlflow.example.com"])
def test_an_mlflow_that_cannot_reach_this_machine_is_not_asked(tmp_path: Path, listener, monkeypatch, uri):
    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", uri)
    assert subscribe(Home(tmp_path), listener) is False
