from __future__ import annotations

import pytest

from flows import terminal
from flows.terminal import print_checks
from schemas.records import Check

CHECKS = [
    Check(
        name="threshold:accuracy", outcome="passed", rule="at least 0.8",
        found="0.8165 (95% interval 0.8039 to 0.8288)",
    ),
    Check(
        name="baseline:macro_f1", outcome="failed", rule="better than tfidf",
        found="+0.0062 (95% interval -0.0016 to +0.0106)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("width", "lines"), [(80, 5), (120, 3)])
def test_what_a_gate_found_is_never_broken_in_two(width, lines, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    print_checks(CHECKS)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(printed) == lines
    for check in CHECKS:
        assert any(line.endswith(check.found) for line in printed)
        assert any(check.name in line and check.rule in line for line in printed)
    assert all(len(line) <= width for line in printed)


@pytest.mark.parametrize(
    ("called", "found", "named"),
    [
        (".venv/bin/hone", None, ".venv/bin/hone"),
        (".venv/bin/hone", "/usr/bin/hone", "hone"),
        ("flows/cli.py", None, "hone"),
    ],
)
def test_the_command_that_is_named_is_one_that_the_shell_finds(called, found, named, monkeypatch):
    monkeypatch.setattr(terminal.sys, "argv", [called, "run"])
    monkeypatch.setattr(terminal, "which", lambda _: found)
    assert terminal._command() == named
