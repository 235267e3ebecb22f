"""Prefect's server for one command: there once it is waited for, gone with the process that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows.embedded import EmbeddedServer, embed_server
from schemas.errors import Fault
from tasks.home import Home

WITHIN_S = 20.0
STARTS = """
import json, os, sys, time
from pathlib import Path
from flows.embedded import embed_server
from flows.engine import configure, has_server
from tasks.home import Home

home = Home.open(Path.cwd())
configure(home)
server = embed_server(home)
server.wait()
print(json.dumps({"url": os.environ["PREFECT_API_URL"], "outlives": has_server()}), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "HONE_EMBEDDED_PREFECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home" / "prefect"))
    return Home.open(tmp_path)


def start(home: Home, seconds: float) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", STARTS, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert said["outlives"] is False
    assert (home.prefect / "prefect.db").exists()
    return process, said["url"]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(json.load(answer))
    except urllib.error.URLError:
        return False


@pytest.mark.parametrize("how", [None, signal.SIGKILL])
def test_it_answers_and_ends_with_its_process_however_that_ends(home: Home, how: signal.Signals | None) -> None:
    process, url = start(home, seconds=0.5 if how is None else 60)
    (server,) = [p for p in psutil.process_iter(["cmdline"]) if _serves(p, home)]
    assert answers(url)
    if how is not None:
        process.send_signal(how)
    process.wait(WITHIN_S)
    server.wait(WITHIN_S)
    assert not answers(url)


def _serves(process: psutil.Process, home: Home) -> bool:
    with suppress(psutil.Error):  # another test's, which has ended meanwhile
        ours = "flows.embedded" in (process.info["cmdline"] or [])
        return ours and process.environ().get("PREFECT_HOME") == str(home.prefect)
    return False


def test_a_server_that_cannot_start_is_a_fault_with_its_last_words(home: Home) -> None:
    home.prefect.mkdir(parents=True)
    (home.prefect / "prefect.db").write_text("not a database")
    server = EmbeddedServer(home)
    try:
        with pytest.raises(Fault, match="file is not a database"):
            server.wait()
    finally:
        server.stop()


def test_a_server_that_is_configured_is_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    assert embed_server(home) is None
    assert os.environ["PREFECT_API_URL"] == "https://prefect.example/api"
