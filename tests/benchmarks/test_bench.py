"""`make bench` asks the benchmarks for what they know."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_benchmark_of_the_short_set_is_there_and_knows_its_options(tmp_path: Path) -> None:
    told = subprocess.run(
        ["make", "-n", "bench", f"BENCH={tmp_path}"],
        cwd=CHECKOUT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    commands = re.findall(r"-m benchmarks\.(\w+)(.*)", told)
    assert {"orchestration", "preparation", "plain_preparation", "prediction", "encoder", "sft"} <= dict(
        commands
    ).keys()
    for module, arguments in commands:
        known = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", "--help"],
            cwd=CHECKOUT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert set(re.findall(r"--[a-z-]+", arguments)) <= set(re.findall(r"--[a-z-]+", known)), module
        assert f"{tmp_path}/{module}.jsonl" in arguments
