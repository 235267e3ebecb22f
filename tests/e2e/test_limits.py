"""One training has a GPU at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CHECKOUT, Servers, quiet_environment

pytestmark = pytest.mark.e2e

HOLDER = """
import sys, time
from pathlib import Path
from flows import limits
limits.accelerators = lambda: ["a card"]
with limits.gpu_slot():
    Path(sys.argv[1]).write_text(str(time.time()))
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1]).with_suffix(".left").write_text(str(time.time()))
"""


def hold(servers: Servers, file: Path, seconds: float) -> subprocess.Popen[bytes]:
    environment = quiet_environment(PYTHONPATH=str(CHECKOUT), **servers.environment)
    return subprocess.Popen([sys.executable, "-P", "-c", HOLDER, str(file), str(seconds)], env=environment)


def test_who_wants_the_gpu_waits_until_it_is_free(servers: Servers, tmp_path: Path) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(servers.prefect) as client:
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
        first = hold(servers, tmp_path / "first", 3)
        while not (tmp_path / "first").exists():
            assert first.poll() is None
            time.sleep(0.1)
        second = hold(servers, tmp_path / "second", 0)
        assert (first.wait(30), second.wait(60)) == (0, 0)
        assert float((tmp_path / "second").read_text()) >= float((tmp_path / "first.left").read_text())
        client.delete_global_concurrency_limit_by_name("gpu")


def test_without_a_limit_or_a_gpu_nobody_waits(servers: Servers, tmp_path: Path) -> None:
    assert hold(servers, tmp_path / "only", 0).wait(60) == 0
    assert (tmp_path / "only.left").exists()
    assert os.environ.get("PREFECT_API_URL") is None
