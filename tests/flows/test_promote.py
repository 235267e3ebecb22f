from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.cli import main
from tasks.home import Home
from tasks.promotion_journal import history

pytest_plugins = ("tests.mlflow_home",)

NAME = "tiny"
RECIPE = """
name: other-name
task: {family: text-classification}
collect: {source: {kind: csv, path: x.csv}}
model: {base: b}
registry: {name: tiny}
"""


@pytest.fixture
def mlflow(home: Home) -> MlflowClient:
    """Version 1 serves, 2 was rejected, 3 waits as challenger."""
    client = MlflowClient(home.mlflow_uri)
    client.create_registered_model(NAME)
    for gate in ("promote", "reject", "promote"):
        client.create_model_version(NAME, "s3://nowhere", tags={"hone.gate": gate})
    assert main(["promote", NAME, "1"]) == 0
    client.set_registered_model_alias(NAME, "challenger", "3")
    return client


Json = Any


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Json:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_person_reads_who_serves_who_served_and_how_to_undo_it(home, mlflow, capsys):
    capsys.readouterr()
    assert main(["promote", NAME]) == 0
    assert capsys.readouterr().out == (
        "tiny: promoted\n"
        "  serves now     version 3\n"
        "  served before  version 1\n"
        "  to undo        hone rollback tiny\n"
    )  # fmt: skip
    assert main(["rollback", NAME]) == 0
    assert capsys.readouterr().out == (
        "tiny: rolled back\n"
        "  serves now     version 1\n"
        "  served before  version 3\n"
        "  to undo        hone promote tiny 3 --override --reason WHY\n"
    )  # fmt: skip
    assert main(["promote", NAME, "1"]) == 0
    assert capsys.readouterr().out == "tiny: version 1 serves already; nothing was done\n"
    assert main(["rollback", NAME]) == 0
    assert "serves now     nothing\n" in capsys.readouterr().out


def test_the_json_is_one_object(home, mlflow, capsys):
    assert told(capsys, "promote", NAME, "3") == {
        "model": "tiny", "champion": "3", "before": "1", "changed": True, "undo": "hone rollback tiny",
    }  # fmt: skip
    assert told(capsys, "promote", NAME, "3") == {
        "model": "tiny", "champion": "3", "before": "3", "changed": False, "undo": None,
    }  # fmt: skip


def test_journal_and_tags_hold_who_and_why(home, mlflow, capsys, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    told(capsys, "promote", NAME, "--reason", "fewer\ncomplaints \udcff")
    told(capsys, "rollback", NAME, "--by", "bob", "--reason", "more complaints")
    told(capsys, "promote", NAME, "2", "--override", "--reason", "only for a day")
    told(capsys, "rollback", NAME)
    confirmed = [(line["by"], line["reason"]) for line in history(home) if line["event"] == "confirmed"]
    assert confirmed[1:] == [
        ("ada", "fewer complaints ?"),
        ("bob", "more complaints"),
        ("ada", "only for a day (with --override)"),
        ("ada", "no reason given"),
    ]
    assert mlflow.get_model_version(NAME, "3").tags["hone.rolled_back"].endswith(", by bob: more complaints")
    assert (
        mlflow.get_model_version(NAME, "2").tags["hone.promoted"].endswith(", by ada: only for a day (with --override)")
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["promote", NAME, "2"],
         "hone: version = '2': it failed the gate; "
         "to let it serve all the same, promote it with --override and --reason"),
        (["promote", NAME, "2", "--override"],
         "hone: --reason: is required with --override; say why the version shall serve"),
        (["promote", NAME, "2", "--override", "--reason", " \n"],
         "hone: --reason = ' \\n': is required with --override; say why the version shall serve"),
        (["promote", "tinny"], "hone: model = 'tinny': nothing of that name is registered; did you mean tiny?"),
        (["rollback", "tinny"], "hone: model = 'tinny': nothing of that name is registered; did you mean tiny?"),
        (["promote", NAME, "7"],
         "hone: version = '7': tiny has no such version; name a version; the latest are 3, 2, 1"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_and_exit_code_two_and_changes_nothing(home, mlflow, capsys, arguments, line):
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line + "\n")
    assert told(capsys, *arguments, code=2)["error"]["type"] == "Mistake"
    assert len(history(home)) == 2
    assert str(mlflow.get_model_version_by_alias(NAME, "champion").version) == "1"


def test_a_recipe_stands_for_its_model(home, mlflow, capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    assert told(capsys, "promote", str(recipe))["champion"] == "3"
    assert told(capsys, "rollback", str(recipe)) == {
        "model": "tiny", "champion": "1", "before": "3", "changed": True,
        "undo": f"hone promote {recipe} 3 --override --reason WHY",
    }  # fmt: skip


def test_where_nothing_was_ever_run_no_home_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HONE_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    home = Home.locate(Path.cwd())
    for verb in ("promote", "rollback"):
        assert main([verb, NAME]) == 2
        assert capsys.readouterr().err == (
            f"hone: model = 'tiny': there is no home at {home}, so nothing is registered; "
            "go to the project, name its recipe, or set HONE_HOME\n"
        )
    assert not home.exists()
