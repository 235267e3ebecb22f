"""Registered versions looked at again: measured on today's rows, compared on common ground, and made anew."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.e2e.conftest import CHECKOUT, Ended, Hone, Servers, ended, make_project, write_rows
from tests.learning import WORDS, sentences

pytestmark = pytest.mark.e2e

RECIPE = """\
name: NAME
task: {family: text-classification, labels: [negative, positive]}
collect: {source: {kind: csv, path: rows.csv}}
clean: {max_quarantined: 0.9}
split: {kind: hash, test: 0.4, near_duplicates: {search: false}}  # the sentences are made of a dozen words
tokenize: {max_seq_length: 40}
model: {base: ./base}
train: {epochs: 3, learning_rate: 3e-3, global_batch_size: 16, precision: fp32}
evaluate: {bootstrap_resamples: 500}
gate: {thresholds: [{metric: accuracy, at_least: 0.3}], beat_baseline: false, champion_margin: 0.2}
registry: {promote: auto}
"""
MANUAL = ("--set", "registry.promote=manual")
SHORT = ("--set", "train.seed=1", "--set", "train.max_steps=18")
SECOND = (*SHORT, *MANUAL)
DEALT_ANEW = ("--set", "split.version=2", *MANUAL)
THREE_LABELS = ("--set", "task.labels=[negative, neutral, positive]", "--set", "collect.source.path=rows3.csv", *MANUAL)


def noisy(count: int) -> list[tuple[str, str]]:
    """Sentences of which every eighth has the other label, so that no model is right on all."""
    other = {"negative": "positive", "positive": "negative"}
    return [(text, other[label] if i % 8 == 0 else label) for i, (text, label) in enumerate(sentences(count))]


@pytest.fixture(scope="module")
def mlflow(servers: Servers) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(servers.mlflow)


def git(checkout: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(["git", *who, *words], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with hone's rooms, all committed."""
    copy = tmp_path_factory.mktemp("checkout")
    for room in ("flows", "tasks", "schemas"):
        shutil.copytree(CHECKOUT / room, copy / room)
    (copy / ".gitignore").write_text("__pycache__\n")
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "then")
    return copy


@pytest.fixture(scope="module")
def hone(tmp_path_factory: pytest.TempPathFactory, base: Path, servers: Servers, checkout: Path) -> Hone:
    """A project whose version 1 will serve."""
    root = tmp_path_factory.mktemp("versions") / "project"
    made = make_project(root, base, "versions", servers, noisy(500), RECIPE)
    made.checkout = checkout
    neutral = [(" ".join(reversed(text.split())) + " today so", "neutral") for text, _ in sentences(120, seed=5)]
    plain = [(" ".join(w for w in text.split() if w in WORDS[6:]), label) for text, label in neutral]
    write_rows(root / "rows3.csv", [*noisy(500), *plain])
    return made


@pytest.fixture(scope="module")
def first(hone: Hone) -> Ended:
    done = hone("run", "recipe.yaml")
    assert done.code == 0, done.errors
    assert done.result["model"]["aliases"] == ["champion"]
    return done


@pytest.fixture(scope="module")
def second(hone: Hone, first: Ended) -> Ended:
    done = hone("run", "recipe.yaml", *SECOND)
    assert done.code == 0, done.errors
    assert done.result["model"]["version"] == "2"
    return done


def folder(hone: Hone, run: Ended, stage: str) -> Path:
    """What a stage of a run left."""
    return hone.home / "store" / stage / next(s["key"] for s in run.result["stages"] if s["name"] == stage)


def served(hone: Hone, prepared: Ended, version: str, mlflow: Any) -> pl.DataFrame:
    """What a version answered to the test rows of a run."""
    identity = mlflow.get_model_version("versions", version).tags["hone.identity"]
    sides = next(s["key"] for s in prepared.result["stages"] if s["name"] == "split")
    for manifest in (hone.home / "store" / "served").glob("*/manifest.json"):
        if identity in manifest.read_text() and sides in manifest.read_text():
            return pl.read_parquet(manifest.with_name("test.parquet"))
    pytest.fail(f"version {version} was not asked")


def check_of(gate: dict[str, Any], name: str = "champion:macro_f1") -> dict[str, Any]:
    return next(check for check in gate["checks"] if check["name"] == name)


def numbers(pattern: str, told: str) -> tuple[float, ...]:
    found = re.search(pattern, told)
    assert found, told
    return tuple(float(group.replace(",", "")) for group in found.groups())


def line(refused: Ended) -> str:
    """The one line a person is told."""
    assert refused.code == 2, refused.errors
    (told,) = [line for line in refused.errors.splitlines() if line.startswith("hone: ")]
    assert "Traceback" not in refused.errors
    return told


def registered(mlflow: Any) -> list[tuple[str, dict[str, str], list[str]]]:
    return [(v.version, v.tags, v.aliases) for v in mlflow.search_model_versions("name='versions'")]


# hone evaluate.


def test_the_champion_is_worth_today_what_its_run_recorded(hone: Hone, first: Ended, mlflow: Any) -> None:
    before = registered(mlflow)
    done = hone("evaluate", "versions")
    assert done.code == 0, done.errors
    found, recorded = done.result, first.result["metrics"]
    assert (found["model"], found["version"], found["left_out"]) == ("versions", "1", {})
    assert found["rows"] == first.result["rows"]["test"]
    assert 0.6 < found["metrics"]["accuracy"] < 1
    assert found["metrics"].keys() == recorded.keys()
    assert found["metrics"]["accuracy"] == recorded["accuracy"]
    assert found["metrics"] == pytest.approx(recorded, abs=1e-4)
    assert (found["gate"]["decision"], found["gate"]["champion"]) == ("promote", "1")
    assert check_of(found["gate"])["found"] == "version 1 is this very model"

    run = mlflow.get_run(found["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    tags = {name: run.data.tags[f"hone.{name}"] for name in ("kind", "model", "gate")}
    assert tags == {"kind": "evaluate", "model": "models:/versions/1", "gate": "promote"}
    assert run.data.metrics["test/accuracy"] == recorded["accuracy"]
    assert {file.path for file in mlflow.list_artifacts(run.info.run_id)} >= {"report.md", "recipe.json"}
    assert registered(mlflow) == before


def test_any_version_is_measured_by_a_recipe_and_put_before_its_gate(hone: Hone, second: Ended) -> None:
    done = hone("evaluate", "recipe.yaml", "2", "--set", "gate.thresholds=[{metric: accuracy, at_least: 0.99}]")
    assert done.code == 0, done.errors
    found = done.result
    assert (found["version"], found["gate"]["decision"]) == ("2", "reject")
    assert found["metrics"]["accuracy"] == second.result["metrics"]["accuracy"]
    assert check_of(found["gate"], "threshold:accuracy")["outcome"] == "failed"
    # The same two models on the same rows: the same answer as in the run.
    assert check_of(found["gate"])["found"] == check_of(second.result["gate"])["found"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("evaluate", "version"), "model = 'version': nothing of that name is registered; did you mean versions?"),
        (("evaluate", "versions", "99"), "version = '99': versions has no such version; name a version; the latest"),
        (("evaluate", "versions", "--set", "train.epochs=1"), "--set = 'train.epochs=1': needs a recipe file;"),
        (("reproduce", "versions", "99"), "version = '99': versions has no such version; name a version; the latest"),
    ],
)
def test_what_is_not_registered_is_a_mistake_in_one_line(
    hone: Hone, first: Ended, arguments: tuple[str, ...], told: str
) -> None:
    assert line(hone(*arguments)).startswith(f"hone: {told}")


def test_a_version_of_another_tool_is_a_mistake_in_one_line(hone: Hone, first: Ended, mlflow: Any) -> None:
    run = mlflow.create_run("0").info
    mlflow.create_registered_model("foreign")
    mlflow.create_model_version("foreign", f"{run.artifact_uri}/model", run.run_id)
    assert f"its MLflow run {run.run_id} has no recipe.json" in line(hone("evaluate", "foreign", "1"))
    by_recipe = line(hone("evaluate", "recipe.yaml", "1", "--set", "registry.name=foreign"))
    assert "foreign version 1 has no artifacts/model: hone did not register it" in by_recipe
    assert "was registered without weights_sha256 and collect_key" in line(hone("reproduce", "foreign", "1"))


def test_an_interrupted_evaluation_ends_killed(hone: Hone, first: Ended, mlflow: Any) -> None:
    process = hone.start("evaluate", "versions", "1", "--json")
    hone.until(process, "tokenize")
    with all_gone(process):
        process.send_signal(signal.SIGTERM)
        assert ended(process).code == 130
    experiment = mlflow.get_experiment_by_name("versions").experiment_id
    (run,) = mlflow.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=1)
    assert (run.info.status, run.data.tags["hone.kind"]) == ("KILLED", "evaluate")


# Common ground.


def test_a_second_run_is_measured_against_what_the_champion_answers(hone: Hone, second: Ended, mlflow: Any) -> None:
    ours = pl.read_parquet(folder(hone, second, "evaluate") / "predictions.parquet")
    pairs = ours.join(served(hone, second, "1", mlflow), on="id", suffix="_old")
    truth = pairs["truth"].to_list()
    new, old = (f1_score(truth, pairs[side].to_list(), average="macro") for side in ("prediction", "prediction_old"))
    assert pairs["prediction"].to_list() != pairs["prediction_old"].to_list()
    told = check_of(second.result["gate"])["found"]
    assert numbers(r"^([+-][\d.]+) .* over version 1 on (\d+) rows", told) == (round(new - old, 4), pairs.height)
    assert "none left out because one of the two was trained on them" in told


def test_a_champion_that_lost_its_files_decides_nothing_and_keeps_its_place(
    hone: Hone, second: Ended, servers: Servers, mlflow: Any
) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    lost = ("--set", "registry.name=lost")
    assert hone("run", "recipe.yaml", *lost).result["model"]["aliases"] == ["champion"]
    source = mlflow.get_model_version("lost", "1").source
    get_artifact_repository(source, tracking_uri=servers.mlflow).delete_artifacts()
    shutil.rmtree(hone.home / "cache" / "store" / "models", ignore_errors=True)

    done = hone("run", "recipe.yaml", *lost, *SHORT)
    assert done.code == 0, done.errors
    gate, model = done.result["gate"], done.result["model"]
    assert (gate["decision"], gate["champion"], gate["passed"]) == ("undecidable", "1", False)
    check = check_of(gate)
    assert (check["outcome"], check["rows_needed"]) == ("undecidable", None)
    assert check["found"].startswith("version 1 could not be measured: lost version 1 has no ")
    assert (model["version"], model["aliases"]) == ("2", ["challenger"])
    assert mlflow.get_model_version_by_alias("lost", "champion").version == "1"
    assert "lost version 1 has no artifacts/model" in line(hone("evaluate", "recipe.yaml", *lost))


@pytest.fixture(scope="module")
def with_three_labels(hone: Hone, second: Ended) -> Ended:
    done = hone("run", "recipe.yaml", *THREE_LABELS)
    assert done.code == 0, done.errors
    return done


def test_rows_of_a_label_that_the_champion_does_not_know_do_not_count_against_it(
    hone: Hone, with_three_labels: Ended
) -> None:
    test = pl.read_parquet(folder(hone, with_three_labels, "split") / "test.parquet")
    new = int((test["label"] == "neutral").sum())
    assert new > 10
    told = check_of(with_three_labels.result["gate"])["found"]
    assert numbers(r"over version 1 on (\d+) rows", told) == (test.height - new,)
    assert f"{new} because version 1 does not know their label; labels new: neutral" in told


def test_a_version_is_wrong_on_labels_that_it_does_not_know_and_with_those_it_alone_knows(
    hone: Hone, first: Ended, with_three_labels: Ended, mlflow: Any
) -> None:
    number = with_three_labels.result["model"]["version"]
    for version, overrides, prepared in (("1", THREE_LABELS, with_three_labels), (number, (), first)):
        done = hone("evaluate", "recipe.yaml", version, *overrides)
        assert done.code == 0, done.errors
        answers = served(hone, prepared, version, mlflow)
        accuracy = accuracy_score(answers["truth"].to_list(), answers["prediction"].to_list())
        assert done.result["metrics"]["accuracy"] == pytest.approx(accuracy)
        assert "log_loss" not in done.result["metrics"]
        slices = {part["name"]: part["value"] for part in done.result["slices"]}
        assert slices.get("label=neutral", 0) == 0


def test_rows_that_the_champion_was_trained_on_are_no_test_of_it(hone: Hone, second: Ended, mlflow: Any) -> None:
    dealt = hone("run", "recipe.yaml", *DEALT_ANEW)
    assert dealt.code == 0, dealt.errors
    learnt = set(pl.read_parquet(folder(hone, second, "split") / "train.parquet")["text"])
    test = pl.read_parquet(folder(hone, dealt, "split") / "test.parquet")
    planted = test.filter(test["text"].is_in(learnt))
    assert 50 < planted.height < test.height - 50

    told = check_of(dealt.result["gate"])["found"]
    assert numbers(r"over version 1 on (\d+) rows", told) == (test.height - planted.height,)
    assert f"{planted.height} left out because one of the two was trained on them" in told

    evaluated = hone("evaluate", "recipe.yaml", "1", *DEALT_ANEW).result
    assert evaluated["left_out"] == {"trained_on": planted.height}
    assert evaluated["rows"] == test.height - planted.height
    answers = served(hone, dealt, "1", mlflow).join(planted, on="id", how="anti")
    accuracy = accuracy_score(answers["truth"].to_list(), answers["prediction"].to_list())
    assert evaluated["metrics"]["accuracy"] == pytest.approx(accuracy)


# hone check --power.


def test_what_the_test_rows_can_show_is_told_before_anything_is_trained(hone: Hone, second: Ended, mlflow: Any) -> None:
    done = hone("check", "recipe.yaml", "--power")
    assert done.code == 0, done.errors
    assert done.result["test_rows"] == second.result["rows"]["test"]
    assert sum(done.result["labels"].values()) == done.result["test_rows"]
    gains = list(done.result["smallest_visible"].values())
    assert gains == sorted(gains)
    assert done.result["measured_disagreement"] is None or 0 < done.result["measured_disagreement"] < 1


# hone reproduce.


def work(hone: Hone) -> list[str]:
    return sorted(path.name for path in (hone.home / "work").iterdir())


def test_a_version_is_made_again_bit_for_bit_by_the_code_of_then(hone: Hone, first: Ended) -> None:
    then = git(hone.checkout, "rev-parse", "HEAD")
    with (hone.checkout / "tasks" / "learner.py").open("a") as learner:
        learner.write('raise ImportError("today nothing is learnt")\n')
    git(hone.checkout, "commit", "-qam", "now")
    try:
        done = hone("reproduce", "versions", "champion")
    finally:
        git(hone.checkout, "reset", "-q", "--hard", then)
    assert done.code == 0, done.errors
    found = done.result
    assert found["code"] == {"recorded": then, "rebuilt": then, "changed": False, "note": ""}
    assert (found["equal"], found["metrics_differing"], found["plan"], found["environment"]) == (True, {}, {}, {})
    weights = first.result["train"]["weights_sha256"]
    assert found["weights_sha256"] == {"recorded": weights, "rebuilt": weights}
    assert found["metrics_compared"] == len(first.result["metrics"])
    assert (found["rows"], found["rows_from"], found["home"]) == (500, "source", None)
    assert work(hone) == []


@contextmanager
def changed(file: Path) -> Iterator[None]:
    """A source that has another row for a while."""
    before = file.read_text()
    file.write_text(f"{before}a row of today,positive\n")
    try:
        yield
    finally:
        file.write_text(before)


def test_a_version_is_made_again_from_the_rows_of_then_and_its_home_can_be_kept(hone: Hone, first: Ended) -> None:
    with changed(hone.project / "rows.csv"):
        done = hone("reproduce", "recipe.yaml", "1", "--keep")
    assert done.code == 0, done.errors
    assert (done.result["equal"], done.result["rows"], done.result["rows_from"]) == (True, 500, "store")
    assert done.result["code"]["rebuilt"] == git(hone.checkout, "rev-parse", "HEAD")
    home = Path(done.result["home"])
    assert home.is_relative_to(hone.home)
    assert len(list((home / "store" / "train").iterdir())) == 1
    shutil.rmtree(home.parent)


def test_another_model_is_told_apart(hone: Hone, second: Ended, mlflow: Any) -> None:
    weights = mlflow.get_model_version("versions", "2").tags["hone.weights_sha256"]
    mlflow.set_model_version_tag("versions", "2", "hone.weights_sha256", "0" * 64)
    process = hone.start("reproduce", "versions", "2")
    told, errors = process.communicate(timeout=400)
    mlflow.set_model_version_tag("versions", "2", "hone.weights_sha256", weights)
    assert process.returncode == 1, errors
    head, *lines = told.splitlines()
    assert re.fullmatch(r"versions version 2, made again in \d+ s: DIFFERENT", head)
    assert f"  weights      DIFFERENT: {'0' * 16}… recorded, {weights[:16]}… rebuilt" in lines
    count = len(second.result["metrics"])
    assert f"  metrics      {count} of {count} equal" in lines


@contextmanager
def all_gone(process: subprocess.Popen[str]) -> Iterator[None]:
    """Nothing of a command's process tree may outlive it."""
    started = psutil.Process(process.pid).children(recursive=True)
    yield
    left: Sequence[psutil.Process] = psutil.wait_procs(started, timeout=20)[1]
    assert list(left) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_reproduction_leaves_no_process(hone: Hone, first: Ended, how: signal.Signals) -> None:
    process = hone.start("reproduce", "versions", "1", "--json")
    hone.until(process, "tokenize")
    with all_gone(process):
        process.send_signal(how)
        stopped = ended(process)
    if how == signal.SIGTERM:
        assert (stopped.code, work(hone)) == (130, [])
        assert "hone: interrupted; the same command starts over" in stopped.errors
        assert "Traceback" not in stopped.errors
