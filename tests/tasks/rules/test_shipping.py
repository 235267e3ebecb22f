from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.rules import personal_data, shipping


@pytest.fixture
def other_package(tmp_path):
    """An installed distribution that brings the redactor `ticket-ids`."""
    site = tmp_path / "site"
    about = site / "acme_redactors-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-redactors\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[{personal_data.GROUP}]\nticket-ids = acme_redactors:hide\n")
    (site / "acme_redactors.py").write_text("def hide(text):\n    return text.replace('T-17', '<TICKET>')\n")
    return site


def test_the_shipped_rules_work_where_hone_is_not(tmp_path, other_package):
    shipping.write_package(tmp_path)
    code = f"""
import sys
for room in ("flows", "tasks", "schemas"):
    sys.modules[room] = None
sys.path[:0] = [{str(tmp_path)!r}, {str(other_package)!r}]
import polars as pl
from hone_serving.repair import repaired
steps = [{{"rule": "strip_markup"}}, {{"rule": "fix_text", "form": "NFC"}}, {{"rule": "redact", "redactor": "phone"}},
         {{"rule": "redact", "redactor": "ticket-ids"}}, {{"rule": "collapse_whitespace"}}]
print(repaired(pl.Series(["<p>T-17:  +49 30 1234567&amp;"]), {{"steps": steps}})[0])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("<TICKET>: <PHONE>&\n", "")


def test_what_the_rules_need_is_told(monkeypatch, other_package):
    monkeypatch.syspath_prepend(str(other_package))
    email, tickets = ({"rule": "redact", "redactor": name} for name in ("email", "ticket-ids"))
    assert shipping.libraries({}) == []
    assert shipping.libraries({"steps": [email, {"rule": "collapse_whitespace"}]}) == ["polars"]
    assert shipping.libraries({"steps": [{"rule": "fix_text", "form": "NFC"}, tickets, email]}) == [
        "polars", "ftfy", "acme-redactors"
    ]  # fmt: skip
