from __future__ import annotations

import json
from datetime import datetime

import pytest
from mlflow import MlflowClient

from flows.cli import main
from tasks import registry
from tasks.home import Home

pytest_plugins = ("tests.mlflow_home",)


@pytest.fixture
def mlflow(home: Home, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Version 1 serves after 2 was rolled back, 3 waits."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "100")
    client = MlflowClient(home.mlflow_uri)
    client.create_registered_model("tiny")
    for gate in ("passed", "reject", "undecidable"):
        client.create_model_version("tiny", "s3://nowhere", tags={"hone.gate": gate})
    registry.promote_by_hand(home, "tiny", "1", by="ada", reason="the first [1]")
    registry.promote_by_hand(home, "tiny", "2", by="ada", reason="a try", override=True)
    registry.rollback_by_hand(home, "tiny", by="bob", reason="complaints")
    client.set_registered_model_alias("tiny", "challenger", "3")
    return client


def test_the_json_says_who_serves_who_waits_and_who_did_what_and_why(home, mlflow, capsys):
    assert main(["status", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (since,) = [move["at"] for move in model["history"] if move["what"] == "rolled back"]
    assert model["name"] == "tiny"
    marked = datetime.fromisoformat(model["champion"].pop("since"))  # in MLflow, just before the journal's last word
    assert abs((marked - datetime.fromisoformat(since)).total_seconds()) <= 5
    assert model["champion"] == {"version": "1", "gate": "promote", "by": "bob", "reason": "complaints"}
    assert model["challenger"] == {"version": "3", "gate": "undecidable"}
    assert [(m["before"], m["to"], m["event"], m["what"], m["by"], m["reason"]) for m in model["history"]] == [
        (None, "1", "confirmed", "promoted", "ada", "the first [1]"),
        ("1", "2", "confirmed", "promoted", "ada", "a try"),
        ("2", "1", "confirmed", "rolled back", "bob", "complaints"),
    ]


def test_a_person_sees_it_at_a_glance(home, mlflow, capsys):
    mlflow.create_registered_model("empty")
    assert main(["status"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    place = lines.index("tiny")
    times = [line[2:18] for line in lines[place + 3 : place + 6]]
    assert lines[place:] == [
        "tiny",
        f"  champion    version 1 serves, since {times[2]}",
        "  challenger  version 3 waits; the gate had too few test rows to decide",
        f"  {times[0]}  none → 1  promoted     by ada: the first [1]",
        f"  {times[1]}  1 → 2     promoted     by ada: a try",
        f"  {times[2]}  2 → 1     rolled back  by bob: complaints",
    ]
    assert lines[lines.index("empty") + 1] == "  champion    nothing serves"


def test_what_happened_outside_is_told_as_such_and_a_doubtful_champion_is_pointed_out(home, mlflow, capsys):
    mlflow.set_registered_model_alias("tiny", "champion", "2")
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "; the gate rejected it\n" in shown
    assert "1 → 2     moved in MLflow  by a person: moved outside hone" in shown


def test_a_version_that_only_a_person_let_serve_is_shown_with_its_warning(home, mlflow, capsys):
    mlflow.create_registered_model("manual")
    mlflow.create_model_version("manual", "s3://nowhere", tags={"hone.identity": "0f", "hone.gate": "reject"})
    mlflow.set_registered_model_alias("manual", "champion", "1")
    assert main(["status"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    place = lines.index("manual")
    assert lines[place + 1].startswith("  champion    version 1 serves, since ")
    assert lines[place + 1].endswith("; the gate rejected it")
    assert lines[place + 2].endswith("none → 1  moved in MLflow  by a person: moved outside hone")


def test_a_champion_without_a_history_has_no_since(home, mlflow, capsys):
    mlflow.create_registered_model("foreign")
    mlflow.create_model_version("foreign", "s3://nowhere")
    mlflow.set_registered_model_alias("foreign", "champion", "1")
    assert main(["status", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["foreign"]["champion"] == {"version": "1", "gate": None}
    assert models["foreign"]["history"] == []


def test_every_model_is_listed_however_many_there_are(home, mlflow, capsys):
    for number in range(101):
        mlflow.create_registered_model(f"more-{number:03d}")
    assert main(["status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 102
