from __future__ import annotations

import hashlib
import json
import stat

import polars as pl
import pytest

from schemas.errors import EnvironmentMistake
from tasks import forgotten
from tasks.home import Home

pytest_plugins = ("tests.mlflow_home",)

LIKENESS = "my name is ann example call me"


def rows(texts: list[str], **columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": texts} | columns)


def test_forgotten_rows_are_left_out_by_id_and_by_text(home):
    assert forgotten.digest(forgotten.load(home)) is None
    assert forgotten.remember(home, ["r1"], [LIKENESS]) == 2
    assert forgotten.remember(home, ["r1", "r9"], []) == 1
    hashes = forgotten.load(home)
    assert len(hashes) == 3
    frame = rows(["a", "b", None, "my name is ann EXAMPLE call me", LIKENESS + " now"])
    assert forgotten.leave_out(frame, ["text"], hashes)["id"].to_list() == ["r0", "r2", "r4"]
    assert forgotten.leave_out(frame, ["text"], frozenset()) is frame


def test_another_home_keeps_out_the_same_rows_once_they_are_handed_on(home, tmp_path):
    other = Home(tmp_path / "other")
    for folder in (other.journal, other.locks):
        folder.mkdir(parents=True)
    forgotten.hand_on(home, other)
    assert list(other.journal.iterdir()) == []
    forgotten.remember(home, ["r1"], [LIKENESS])
    forgotten.hand_on(home, other)
    frame = rows(["a", "b", LIKENESS])
    assert forgotten.leave_out(frame, ["text"], forgotten.load(other))["id"].to_list() == ["r0"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in other.journal.iterdir()} == {0o600}


def test_the_journal_of_erasures_holds_neither_id_nor_text(home):
    forgotten.remember(home, ["ann-7"], [LIKENESS])
    written = (home.journal / "forgotten.jsonl").read_text()
    assert [set(json.loads(line)) for line in written.splitlines()] == [{"at", "kind", "hash", "key"}] * 2
    assert "ann" not in written


def plain_hash(kind: str, value: str) -> str:
    return hashlib.blake2b(f"{kind}\0{value}".encode(), digest_size=16).hexdigest()


def test_who_guesses_a_text_does_not_find_its_hash_without_the_homes_secret(home, tmp_path, monkeypatch):
    forgotten.remember(home, ["ann-7"], [LIKENESS])
    secret = home.journal / "forgotten.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    known = secret.read_bytes()
    assert len(known) == 32
    hashes = forgotten.load(home)
    assert plain_hash("text", LIKENESS) not in hashes
    keyed = hashlib.blake2b(plain_hash("text", LIKENESS).encode(), digest_size=16, key=known).hexdigest()
    assert keyed in hashes
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "other"))
    other = Home.open(tmp_path)
    forgotten.remember(other, ["ann-7"], [LIKENESS])
    assert not forgotten.load(other) & hashes
    forgotten.remember(home, ["bob"], [])
    assert secret.read_bytes() == known


def test_hashes_of_before_there_was_a_secret_are_honoured_and_made_anew(home):
    journal = home.journal / "forgotten.jsonl"
    lines = [{"at": "2025", "kind": kind, "hash": plain_hash(kind, what)} for kind, what in
             (("id", "r1"), ("text", LIKENESS))]  # fmt: skip
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame = rows(["a", "b", LIKENESS.upper(), "c"])
    assert forgotten.leave_out(frame, ["text"], forgotten.load(home))["id"].to_list() == ["r0", "r3"]
    before = forgotten.digest(forgotten.load(home))
    assert forgotten.remember(home, ["r1"], [LIKENESS]) == 0
    assert forgotten.digest(forgotten.load(home)) == before
    assert forgotten.remember(home, ["r3"], []) == 1
    assert forgotten.leave_out(frame, ["text"], forgotten.load(home))["id"].to_list() == ["r0"]
    assert not any(line["hash"] in journal.read_text() for line in lines)
    assert [json.loads(line)["at"] for line in journal.read_text().splitlines()][:2] == ["2025", "2025"]


@pytest.mark.parametrize("found", [None, b"", b"x" * 32])
def test_without_its_secret_nothing_is_collected_that_was_forgotten(home, found):
    forgotten.remember(home, ["r1"], [])
    secret = home.journal / "forgotten.secret"
    secret.unlink()
    if found is not None:
        secret.write_bytes(found)
    for ask in (lambda: forgotten.load(home), lambda: forgotten.remember(home, ["r2"], [])):
        with pytest.raises(EnvironmentMistake, match=r"forgotten\.secret.* restore it from a backup"):
            ask()


def test_hashes_without_their_secret_are_refused(home):
    forgotten.remember(home, ["r1"], [])
    with pytest.raises(TypeError, match="without the secret"):
        forgotten.leave_out(rows(["a"]), ["text"], frozenset(forgotten.load(home)))
