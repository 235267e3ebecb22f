"""The search for a better recipe and the comparison of candidates, as a user asks for them."""

from __future__ import annotations

import csv
import os
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from schemas.loading import load_recipe
from tests.e2e.conftest import Hone, Servers, ended, make_project
from tests.e2e.servers import running_postgres
from tests.learning import sentences

pytestmark = pytest.mark.e2e

SPACE = "tune.space={train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}, train.schedule: [linear, cosine]}"
SHORT = ["train.epochs=2", "train.global_batch_size=32", "tune.seeds=2", "tune.finalists=1", "tune.share=0.5"]


def sets(*fields: str) -> list[str]:
    return [word for field in fields for word in ("--set", field)]


def trials_in(hone: Hone) -> list[tuple[int, str]]:
    """Number and state of every trial, as the database has them."""
    with sqlite3.connect(hone.home / "studies.db") as database:
        return [(number, state) for number, state in database.execute("select number, state from trials order by 1")]


def test_a_search_is_on_record_in_both_systems_and_ends_with_a_recipe(project, servers):
    from mlflow import MlflowClient
    from prefect.client.orchestration import SyncPrefectClient

    hone: Hone = project("searched", servers, rows=400)
    done = hone("tune", "recipe.yaml", "--trials", "3", "--write", "better.yaml", *sets(SPACE, *SHORT))
    assert done.code == 0, done.errors
    found: dict[str, Any] = done.result
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    assert found["trials"][0]["values"] == {}
    assert trials_in(hone) == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]
    assert {finalist["trial"] for finalist in found["finalists"]} >= {None}
    assert "never on the test" in done.errors
    better = load_recipe(hone.project / "better.yaml")
    for field, (_, after) in found["changes"].items():
        assert getattr(better.train, field.partition(".")[2]) == after
    assert (found["verdict"] == "better") == bool(found["changes"])

    mlflow = MlflowClient(servers.mlflow)
    run = mlflow.get_run(found["mlflow_run_id"])
    assert (run.info.status, run.data.tags["hone.tune"]) == ("FINISHED", found["verdict"])
    below = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    kinds = [each.data.tags["hone.kind"] for each in below]
    assert (kinds.count("trial"), kinds.count("finalist")) == (3, 2 * 2)
    files = {file.path for file in mlflow.list_artifacts(run.info.run_id, "tune")}
    assert {"tune/recipe.yaml", "tune/report.md", "tune/trials.png"} <= files
    with SyncPrefectClient(servers.prefect) as client:
        assert client.read_flow_run(UUID(found["flow_run_id"])).state_name == "Completed"
        shown = {artifact.key: artifact.type for artifact in client.read_artifacts()}
    assert (shown["trials-searched"], shown["tune-searched"]) == ("table", "markdown")


def test_a_search_that_is_killed_goes_on_and_no_trial_is_lost_or_run_twice(project):
    hone: Hone = project("killed", rows=500)
    command = ["tune", "recipe.yaml", "--trials", "5", *sets(SPACE, *SHORT, "tune.prune=false", "train.epochs=6")]
    running = hone.start(*command, "--json")
    hone.until(running, r"trial .* 1  0\.")  # the second trial has ended; the database may not have heard of it yet
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = trials_in(hone)
    assert before[0] == (0, "COMPLETE")
    assert 2 <= len(before) < 5
    assert [state for _, state in before].count("RUNNING") <= 1
    done = hone(*command)
    assert done.code == 0, done.errors
    assert trials_in(hone) == [(number, "COMPLETE") for number in range(5)]
    assert re.search(r"; [12] are there already", done.errors)
    assert "2 are there" in done.errors or re.search(r"trial +cached +1 ", done.errors), "it is not learnt again"
    trials = done.result["trials"]
    assert [trial["number"] for trial in trials] == list(range(5))
    assert len({trial["run_id"] for trial in trials}) == 5
    again = hone(*command)
    assert again.result["trials"] == trials, "all is known already"


def test_trials_run_at_once_where_the_machine_is_parted(project):
    hone: Hone = project("parted", rows=300)
    done = hone("tune", "recipe.yaml", "--trials", "4", *sets(SPACE, *SHORT, "tune.parallel=2"))
    assert done.code == 0, done.errors
    assert sorted(trial["number"] for trial in done.result["trials"]) == [0, 1, 2, 3]
    assert {state for _, state in trials_in(hone)} <= {"COMPLETE", "PRUNED"}
    mine = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(hone.project)]
    assert mine == [], "nothing is left behind"


def test_machines_with_one_postgresql_share_a_search(tmp_path_factory: pytest.TempPathFactory, base: Path):
    """Two homes, as on two machines: no trial is run by both, and the one that comes later knows all of them."""
    with running_postgres() as server:
        studies = {"HONE_STUDIES": server.url()}
        homes = [
            make_project(tmp_path_factory.mktemp(name) / "project", base, "shared", None, sentences(300))
            for name in ("one", "two")
        ]
        command = ["tune", "recipe.yaml", "--trials", "6", *sets(SPACE, *SHORT)]
        at_once = [hone.start(*command, "--json", **studies) for hone in homes]
        both = [ended(process) for process in at_once]
        assert [done.code for done in both] == [0, 0], both[0].errors + both[1].errors
        kept = server.execute("select number, state::text from trials order by 1")
        assert [number for number, state in kept if state != "FAIL"] == list(range(6))
        assert not (homes[0].home / "studies.db").exists()
        last = homes[0](*command, **studies).result
        assert [trial["number"] for trial in last["trials"]] == list(range(6))
        owners = server.execute("select distinct value_json from trial_user_attributes where key = 'hone.home'")
        assert len(owners) == 2, "both took some"


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[bool, Hone]:
    """Two projects with the same rows but for the test: in one its rows end with a word that tells the label."""
    made = {}
    for leaks in (False, True):
        root = tmp_path_factory.mktemp("leak") / "project"
        hone = make_project(root, base, "leak", None, sentences(10))
        sides = ["train"] * 300 + ["validation"] * 60 + ["test"] * 60
        rows = [
            (f"{number} {text} {label if leaks and side == 'test' else ''}", label, side)  # no text is there twice
            for number, ((text, label), side) in enumerate(zip(sentences(420), sides, strict=True))
        ]
        with (root / "rows.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([("text", "label", "side"), *rows])
        made[leaks] = hone
    return made


LEAK = sets(
    "collect.split_column=side",
    "split={kind: official, near_duplicates: {search: false}}",
    "tokenize.max_truncated=1",
    "train.epochs=1",
    "clean={max_quarantined: 0.9, drop_duplicates: false}",
)


def test_a_feature_that_only_the_test_rows_have_does_not_influence_the_search(leaking: dict[bool, Hone]) -> None:
    space = "tune.space={tokenize.max_seq_length: [8, 40], train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}"
    found = {}
    for leaks, hone in leaking.items():
        done = hone("tune", "recipe.yaml", "--trials", "4", *LEAK, *sets(space, "tune.seeds=2", "tune.finalists=1"))
        assert done.code == 0, done.errors
        found[leaks] = done.result
    without, with_leak = found[False], found[True]
    assert [(t["values"], t["value"]) for t in with_leak["trials"]] == [
        (t["values"], t["value"]) for t in without["trials"]
    ]
    assert [one["value"] for one in with_leak["finalists"]] == [one["value"] for one in without["finalists"]]
    assert with_leak["changes"] == without["changes"]


def test_nor_does_it_influence_the_comparison(leaking: dict[bool, Hone]) -> None:
    found = {}
    for leaks, hone in leaking.items():
        done = hone("compare", "recipe.yaml", "--method", "full", "--method", "freeze", "--method", "bitfit", *LEAK)
        assert done.code == 0, done.errors
        found[leaks] = {one["name"]: one["value"] for one in done.result["candidates"]}
    assert set(found[True]) == {"full", "freeze", "bitfit", "tfidf", "majority"}
    assert found[True] == found[False]


def test_the_comparison_recommends_one_and_only_that_goes_before_the_gate(project, servers: Servers) -> None:
    from mlflow import MlflowClient

    hone: Hone = project("chosen", servers, rows=400)
    methods = ["--method", "full", "--method", "lora", "--method", "qlora"]
    done = hone("compare", "recipe.yaml", *methods, "--minutes", "1", "--run", *sets("train.epochs=1"))
    assert done.code == 0, done.errors
    found = done.result
    named = {one["name"]: one for one in found["candidates"]}
    assert set(named) == {"full", "lora", "qlora", "tfidf", "majority"}
    assert "bitsandbytes" in named["qlora"]["told"]
    assert named["qlora"]["value"] is None
    assert found["chosen"] in {"full", "lora"}
    assert found["ran"]["model"]["name"] == "chosen"
    mlflow = MlflowClient(servers.mlflow)
    versions = mlflow.search_model_versions("name='chosen'")
    assert [version.version for version in versions] == ["1"]
    run = mlflow.get_run(found["mlflow_run_id"])
    assert run.data.tags["hone.compare"] == found["chosen"]
    assert not [name for name in run.data.metrics if name.startswith("test/")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tune", "recipe.yaml", "--set", "tune.space={split.test: [0.1, 0.2]}"], "split.test may not be tuned"),
        (["tune", "recipe.yaml", "--write", "/tmp/elsewhere.yaml"], "--write"),
        (["compare", "recipe.yaml", "--method", "lorra"], "--method = 'lorra'"),
        (["compare", "recipe.yaml", "--share", "0"], "--share"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(project, arguments, told):
    done = project("wrong", rows=60)(*arguments)
    assert done.code == 2
    assert told in done.errors
    assert "Traceback" not in done.errors
