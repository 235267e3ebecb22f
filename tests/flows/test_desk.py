"""The desk's addresses, its note in the home, and who finds it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.desk import MLFLOW_PORT, PREFECT_PORT, Desk, Part, choose_addresses
from flows.engine import configure
from schemas.errors import EnvironmentMistake, Fault
from tasks.desk_note import DeskNote, mlflow_name, running_desk
from tasks.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HONE_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "no-profiles"))
    return Home.open(tmp_path)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def note(**changed: object) -> DeskNote:
    values = {
        "prefect_api_url": "http://127.0.0.1:4201/api",
        "mlflow_url": "http://127.0.0.1:5001",
        "prefect_port": 4201,
        "mlflow_port": 5001,
        "mlflow_store": "sqlite:////somewhere/mlflow.db",
    }
    return DeskNote(**{**values, **changed})


def test_a_port_that_was_asked_for_and_is_taken_is_named_with_its_holder(home: Home, taken: int) -> None:
    with pytest.raises(EnvironmentMistake) as refused:
        choose_addresses(home, prefect_port=taken, mlflow_port=None)
    (problem,) = refused.value.problems
    assert (problem.field, problem.value) == ("--prefect-port", taken)
    assert f"taken by process {os.getpid()}" in problem.rule


@pytest.mark.parametrize("number", [-1, 0, 65_536])
def test_what_is_no_port_is_said_so(home: Home, number: int) -> None:
    with pytest.raises(EnvironmentMistake, match="is not a port"):
        choose_addresses(home, prefect_port=number, mlflow_port=None)


def test_both_servers_cannot_have_one_port(home: Home) -> None:
    port = free()
    with pytest.raises(EnvironmentMistake, match="--mlflow-port"):
        choose_addresses(home, prefect_port=port, mlflow_port=port)


def test_the_ports_of_the_last_time_come_first_and_another_one_is_found_where_they_are_taken(
    home: Home, taken: int
) -> None:
    last = free()
    note(prefect_port=last, mlflow_port=taken).write(home.root)
    chosen = choose_addresses(home, prefect_port=None, mlflow_port=None)
    assert chosen.prefect_port == last
    assert chosen.mlflow_port not in {taken, last, None}
    assert chosen.prefect_api_url == f"http://127.0.0.1:{last}/api"
    assert chosen.mlflow_url == f"http://127.0.0.1:{chosen.mlflow_port}"


def test_the_usual_ports_are_taken_where_they_are_free(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.desk._is_free", lambda port: True)
    chosen = choose_addresses(home, prefect_port=None, mlflow_port=None)
    assert (chosen.prefect_port, chosen.mlflow_port) == (PREFECT_PORT, MLFLOW_PORT)


def test_what_is_configured_already_is_not_started(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    chosen = choose_addresses(home, prefect_port=None, mlflow_port=None)
    assert (chosen.prefect_port, chosen.mlflow_port) == (None, None)
    assert (chosen.prefect_api_url, chosen.mlflow_url) == ("https://prefect.example/api", "https://mlflow.example")
    with Desk(home, chosen) as desk:
        desk.start_prefect()
        desk.start_mlflow({})
        assert desk.parts == {}


def test_a_note_tells_a_desk_that_is_up_from_one_that_was(home: Home) -> None:
    assert running_desk(home.root) is None
    note().write(home.root)
    assert running_desk(home.root) == DeskNote.read(home.root)
    note(pid=os.getpid(), created=1.0).write(home.root)  # another process had this number
    assert running_desk(home.root) is None
    (home.root / "desk.json").write_text('{"torn')
    assert running_desk(home.root) is None


def test_commands_use_a_desk_that_is_up_unless_the_environment_says_otherwise(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    note().write(home.root)
    configure(home)
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4201/api"
    assert home.mlflow_uri == "http://127.0.0.1:5001"
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    configure(home)
    assert os.environ["PREFECT_API_URL"] == "https://prefect.example/api"
    assert home.mlflow_uri == "https://mlflow.example"


def test_without_a_desk_everything_is_embedded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("HOME", str(home.root))
    note(created=1.0).write(home.root)
    configure(home)
    assert "PREFECT_API_URL" not in os.environ
    assert os.environ["PREFECT_HOME"] == str(home.prefect)
    assert home.mlflow_uri == f"sqlite:///{home.root}/mlflow.db"


def test_an_mlflow_is_the_same_through_the_desk_and_straight_to_its_database(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = mlflow_name(home)
    note(mlflow_store=home.mlflow_uri).write(home.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    assert mlflow_name(home) == straight
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example")
    assert mlflow_name(home) == "http://mlflow.example"


def test_a_server_that_ends_as_it_starts_is_a_fault_with_the_end_of_its_log(home: Home) -> None:
    with Desk(home, choose_addresses(home, prefect_port=None, mlflow_port=None)) as desk:
        command = ["-c", "import sys; sys.exit('no such database')"]
        desk._add(Part("prefect", command, {}, rank=0, url=f"http://127.0.0.1:{free()}"))
        with pytest.raises(Fault, match=r"(?s)the prefect server ended as it started.*no such database"):
            desk.wait_healthy("prefect")


def test_a_part_that_dies_is_started_again_after_a_pause_and_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.desk.RESTART_S", (0.0,))
    said: list[str] = []
    with Desk(home, choose_addresses(home, prefect_port=None, mlflow_port=None)) as desk:
        desk._add(Part("worker", ["-c", "import time; time.sleep(60)"], {}, rank=1))
        part = desk.parts["worker"]
        assert part.process is not None
        first = part.process
        desk.mend(said.append)
        assert (part.process, said) == (first, [])
        first.kill()
        first.wait()
        desk.mend(said.append)
        desk.mend(said.append)
        assert part.process is not first
        assert part.alive
        assert len(said) == 1
        assert said[0].startswith("worker ended (exit code -9); starting it again")
        again = part.process
    assert again.poll() is not None


def test_parts_see_no_project_of_the_users_on_their_path(home: Home, tmp_path: Path) -> None:
    with Desk(home, choose_addresses(home, prefect_port=None, mlflow_port=None)) as desk:
        out = tmp_path / "path"
        (home.root / "tasks.py").write_text("raise SystemExit('shadowed')")
        script = f"import sys, pathlib, tasks; pathlib.Path({str(out)!r}).write_text(tasks.__file__)"
        desk._add(Part("worker", ["-c", script], {}, rank=1))
        process = desk.parts["worker"].process
        assert process is not None
        assert process.wait(20) == 0
        assert out.read_text().startswith(str(Path(sys.modules["tasks"].__file__ or "").parent))
