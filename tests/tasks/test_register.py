from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient

from schemas.data import Clean
from schemas.errors import Fault, Mistake, Problem
from schemas.recipe import Recipe
from schemas.records import Check, CheckOutcome, Decision, Interval, ModelVersion, SliceScore, Verdict
from tasks import register, registry
from tasks.families.text_classification import TextClassification
from tasks.home import Home
from tasks.model_card import git_state, lineage_of, model_card
from tasks.rules.part import text_rules
from tasks.tracking import Run
from tests.tiny_classifier import LABELS, WORDS, serving, tiny_model

pytest_plugins = ("tests.mlflow_home",)

FAMILY = TextClassification()
TEXT_RULES = text_rules(Clean(strip_markup=True, redact=("email",)))


@dataclass(frozen=True)
class Data:
    """Test rows, as they were collected and as they are learnt."""

    test: Path
    raw: Path


def write_data(folder: Path, count: int = 40) -> Data:
    """Rows whose raw texts have markup, entities, odd spaces and addresses that the clean ones have not."""
    clean = [" ".join(["<EMAIL>", *(WORDS[(i * 7 + j * 3) % 60] for j in range(1 + i % 25))]) for i in range(count)]
    raw = [
        "<p>" + text.replace("<EMAIL>", f"kim{i}@example.com&nbsp;").replace(" ", " \t") for i, text in enumerate(clean)
    ]
    columns = {
        "source": ["b.csv"] * count,
        "row": list(range(1, count + 1)),
        "label": [LABELS[i % 2] for i in range(count)],
    }
    test = pl.DataFrame({"id": [f"r{i}" for i in range(count)], "text": clean} | columns)
    collected = pl.DataFrame({"id": ["shared"] * count, "text": raw} | columns)
    elsewhere = collected.with_columns(source=pl.lit("a.csv"), text=pl.lit("w1"))
    (folder / "rows").mkdir(parents=True)
    for name, frame in {"rows/00000": elsewhere, "rows/00001": collected, "test": test}.items():
        frame.with_columns(pl.col("row").cast(pl.UInt32)).write_parquet(folder / f"{name}.parquet")
    return Data(folder / "test.parquet", folder)


def write_predictions(folder: Path, data: Data, out: Path, calibration: Path | None = None) -> Path:
    """Predictions as the evaluation writes them: from the clean texts."""
    rows = pl.read_parquet(data.test)
    served = serving(folder, calibration).predict(None, rows["text"].to_list())
    pl.DataFrame(
        {
            "id": rows["id"],
            "truth": rows["label"],
            "prediction": served["label"].tolist(),
            "probabilities": [[p[label] for label in LABELS] for p in served["probabilities"]],
        }
    ).write_parquet(out)
    return out


def verdict(champion: str | None = None, decision: Decision = "promote") -> Verdict:
    outcome: CheckOutcome = "failed" if decision == "reject" else "passed"
    check = Check(name="threshold:accuracy", outcome=outcome, rule="at least 0.5", found="0.6")
    return Verdict(
        stage="gate",
        key="k",
        cached=False,
        why="",
        seconds=0.1,
        run_id="r",
        decision=decision,
        checks=(check,),
        champion=champion,
    )


Registering = Callable[..., ModelVersion]


@pytest.fixture
def run(home: Home, recipe: Recipe) -> Run:
    made = Run.start(home, recipe)
    yield made
    made.end("FINISHED")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("first"), seed=1, text_rules=TEXT_RULES)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_model(tmp_path_factory.mktemp(f"other{seed}"), seed=seed) for seed in (2, 3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def registering(home: Home, recipe: Recipe, run: Run, data: Data, tmp_path: Path) -> Registering:
    """Registers a folder with all that belongs to it."""
    plain = tmp_path / "calibration.json"
    plain.write_text("{}")

    def act(folder: Path, **changes: Any) -> ModelVersion:
        asked = changes.pop("recipe", recipe)
        known: dict[str, Any] = {
            "model": folder,
            "calibration": plain,
            "predictions": tmp_path / "predictions.parquet",
            "test": data.test,
            "raw": data.raw,
            "training_hashes": np.array([1, 2], np.uint64),
            "verdict": verdict(),
            "lineage": {"train_key": "t1", "git_commit": "c1"},
            "model_card": "# tiny",
        } | changes
        return register.register_model(home, run.run_id, asked, FAMILY, **known)

    return act


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the fresh process, which takes seconds, where it is not the point."""
    monkeypatch.setattr(register, "_verify", lambda *args: None)
    monkeypatch.setattr(register, "start_verifier", lambda family: SimpleNamespace(alive=True, close=lambda: ""))


def test_as_many_verifiers_wait_as_are_wanted_and_each_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SimpleNamespace] = []

    def start(family: Any) -> SimpleNamespace:
        started.append(SimpleNamespace(alive=True, close=lambda: ended.append(1)))
        return started[-1]

    ended: list[int] = []
    monkeypatch.setattr(register, "start_verifier", start)
    verifiers = register.Verifiers()
    assert verifiers.take() is None
    verifiers.warm(FAMILY, 2)
    verifiers.warm(FAMILY, 2)
    assert len(started) == 2
    assert [verifiers.take(), verifiers.take(), verifiers.take()] == [*started, None]
    verifiers.warm(FAMILY)
    started[-1].alive = False
    verifiers.warm(FAMILY)
    assert len(started) == 4
    verifiers.stop()
    assert (len(ended), verifiers.take()) == (1, None)


def manual(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"registry": recipe.registry.model_copy(update={"promote": "manual"})})


def aliases(home: Home) -> dict[str, str]:
    return registry.aliases_of(MlflowClient(home.mlflow_uri), "tiny")


def events(home: Home) -> list[str]:
    return [line["event"] for line in registry.history(home)]


# The whole way, with the fresh process.


def test_a_registered_model_serves_without_hone(
    home: Home, registering: Registering, run: Run, first: Path, data: Data, tmp_path: Path
) -> None:
    calibration = tmp_path / "fitted.json"
    calibration.write_text(json.dumps({"temperature": 2.5, "abstain": {"precision": 0.9, "threshold": 0.6}}))
    predictions = write_predictions(first, data, tmp_path / "p.parquet", calibration)
    made = registering(first, predictions=predictions, calibration=calibration)

    assert (made.name, made.version, made.cached, made.aliases) == ("tiny", "1", False, ("champion",))
    mlflow_client = MlflowClient(home.mlflow_uri)
    found = mlflow_client.get_model_version("tiny", "1")
    assert (found.status, found.run_id, found.description) == ("READY", run.run_id, "# tiny")
    assert found.tags["hone.identity"] == made.key
    assert found.tags["hone.gate"] == "promote"
    assert (found.tags["hone.train_key"], found.tags["hone.git_commit"]) == ("t1", "c1")
    assert mlflow.active_run() is None
    assert mlflow_client.get_run(run.run_id).info.status == "RUNNING"
    assert [m.model_id for m in mlflow_client.get_run(run.run_id).outputs.model_outputs] == [
        found.tags["hone.model_id"]
    ]

    code = f"""
import sys
for room in ("flows", "tasks", "schemas"):
    sys.modules[room] = None
import json, mlflow, pandas as pd
mlflow.set_tracking_uri({home.mlflow_uri!r})
model = mlflow.pyfunc.load_model("models:/tiny@champion")
raw = pd.DataFrame({{"text": ["<p>kim@example.com&nbsp; w1\\tw2</p>", "w3"]}})
print(json.dumps(model.predict(raw).to_dict(orient="records")))
some = model.predict(pd.DataFrame({{"text": ["w1 w2", None, "<br>"]}}), params={{"batch_size": 1}})
print(json.dumps(some["label"].isna().tolist()))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both, nothing_to_tell = (json.loads(line) for line in done.stdout.splitlines())
    expected = serving(first, calibration).predict(None, ["<EMAIL> w1 w2", "w3"])
    assert [row["label"] for row in both] == expected["label"].tolist()
    assert both[0]["probabilities"]["good"] == pytest.approx(expected["probabilities"][0]["good"], abs=1e-5)
    assert [row["abstains"] for row in both] == expected["abstains"].tolist()
    assert nothing_to_tell == [False, True, True]


def test_a_model_that_reads_raw_texts_otherwise_than_those_it_was_measured_on_is_refused(
    registering: Registering, first: Path, data: Data, tmp_path: Path
) -> None:
    unruly = tmp_path / "unruly"
    shutil.copytree(first, unruly)
    about = unruly / "model" / "hone.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"text_rules": {}}))
    predictions = write_predictions(unruly, data, tmp_path / "p.parquet")
    with pytest.raises(Fault, match="of 40 test rows otherwise than recorded"):
        registering(unruly, predictions=predictions)


def test_registration_is_refused_when_the_fresh_process_predicts_something_else(
    home: Home, registering: Registering, first: Path, data: Data, tmp_path: Path
) -> None:
    predictions = write_predictions(first, data, tmp_path / "p.parquet")
    frame = pl.read_parquet(predictions)
    flipped = [p[::-1] if row == "r7" else p for row, p in frame.select("id", "probabilities").iter_rows()]
    frame.with_columns(pl.Series("probabilities", flipped)).write_parquet(predictions)

    with pytest.raises(Fault, match="predicts 1 of 40 test rows otherwise than recorded, row r7"):
        registering(first, predictions=predictions)

    assert registry.champion(home, "tiny") is None
    assert MlflowClient(home.mlflow_uri).search_registered_models() == []
    experiment = MlflowClient(home.mlflow_uri).get_experiment_by_name("tiny")
    (logged,) = MlflowClient(home.mlflow_uri).search_logged_models([experiment.experiment_id])
    assert str(logged.status) == "FAILED"


def test_a_model_that_cannot_be_loaded_elsewhere_is_refused_with_what_was_said(
    registering: Registering, first: Path, data: Data, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    predictions = write_predictions(first, data, tmp_path / "p.parquet")
    (broken / "model" / "config.json").write_text("{}")
    with pytest.raises(Fault, match=r"cannot predict with the logged model[\s\S]*config"):
        registering(broken, predictions=predictions)


# What is checked.


def test_rows_are_checked_as_they_were_collected_in_the_order_asked_for(data: Data) -> None:
    ids = pl.Series("id", ["r3", "r0", "r39"])
    found = register.as_collected(ids, ["text"], test=data.test, raw=data.raw)
    assert found["id"].to_list() == ["r3", "r0", "r39"]
    assert found["text"][1] == "<p>kim0@example.com&nbsp; \tw0"


def test_a_row_that_was_never_collected_cannot_be_checked(data: Data, tmp_path: Path) -> None:
    ids = pl.Series("id", ["r3", "r40"])
    with pytest.raises(Fault, match="1 of 2 recorded predictions belong to a test row that was collected"):
        register.as_collected(ids, ["text"], test=data.test, raw=data.raw)


def test_checked_rows_are_spread_evenly(tmp_path: Path) -> None:
    pl.DataFrame({"id": [f"r{i}" for i in range(10)]}).write_parquet(tmp_path / "p.parquet")
    assert register.spread(tmp_path / "p.parquet", 4)["id"].to_list() == ["r0", "r2", "r5", "r7"]
    assert register.spread(tmp_path / "p.parquet", 512).height == 10


# What the registry holds.


@pytest.mark.usefixtures("trusted")
def test_the_same_model_is_never_registered_twice(
    home: Home, registering: Registering, first: Path, tmp_path: Path
) -> None:
    made = registering(first)
    copied = tmp_path / "copy"
    shutil.copytree(first, copied)
    again = registering(copied, verdict=verdict("1"))
    assert (again.version, again.cached, again.key) == (made.version, True, made.key)
    assert again.aliases == ("champion",)
    assert len(MlflowClient(home.mlflow_uri).search_model_versions("name = 'tiny'")) == 1
    assert events(home) == ["intent", "confirmed"]


@pytest.mark.usefixtures("trusted")
def test_another_model_is_another_version(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    assert registering(first).version == "1"
    assert registering(others[0], verdict=verdict("1")).version == "2"


def test_another_calibration_is_another_model(home: Home, first: Path, tmp_path: Path) -> None:
    known_by = set()
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "calibration.json").write_text(json.dumps({"temperature": 1.5 if folder == "c" else 1.2}))
        known_by.add(register.identity_of(home, first, FAMILY, tmp_path / folder / "calibration.json", {}))
    assert len(known_by) == 2


def test_another_way_of_writing_is_another_model_and_what_is_registered_is_told_it(
    home: Home, first: Path, tmp_path: Path
) -> None:
    (tmp_path / "calibration.json").write_text("{}")
    ways: list[dict[str, Any]] = [{}, {"generation": {"max_new_tokens": 4}}, {"generation": {"max_new_tokens": 8}}]
    known_by = {register.identity_of(home, first, FAMILY, tmp_path / "calibration.json", notes) for notes in ways}
    assert len(known_by) == 3


class OnnxFile:
    """Makes what stands for an ONNX file; counts how often."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def __call__(self) -> Path:
        self.made += 1
        self.folder.mkdir(exist_ok=True)
        (self.folder / "model.onnx").write_bytes(b"graph")
        (self.folder / "about.json").write_text(json.dumps({"checked": {"largest_difference": 1.2345e-6}}))
        return self.folder


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("at_once", [True, False])
def test_an_onnx_file_lies_beside_the_model_and_makes_no_other_version(
    home: Home, registering: Registering, first: Path, tmp_path: Path, at_once: bool
) -> None:
    onnx = OnnxFile(tmp_path / "made")
    made = registering(first, onnx=onnx if at_once else None)
    again = registering(first, onnx=onnx, verdict=verdict("1"))
    third = registering(first, onnx=onnx, verdict=verdict("1"))
    assert [(each.version, each.key) for each in (made, again, third)] == [("1", made.key)] * 3
    assert onnx.made == 1
    found = registry.champion(home, "tiny")
    assert found.tags[register.ONNX_DIFFERENCE] == "1.2e-06"
    assert registry.files_of(home, found, "onnx/model.onnx").read_bytes() == b"graph"
    assert registry.files_of(home, found, "onnx/about.json").exists()


@pytest.mark.usefixtures("trusted")
def test_a_model_whose_onnx_file_cannot_be_made_is_not_registered(
    home: Home, registering: Registering, first: Path
) -> None:
    def refuse() -> Path:
        raise Mistake(Problem("registry.onnx", True, "cannot be exported", "leave registry.onnx out"))

    with pytest.raises(Mistake, match="cannot be exported"):
        registering(first, onnx=refuse)
    assert MlflowClient(home.mlflow_uri).search_registered_models() == []
    assert registering(first).version == "1"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "extra.pkl"])
def test_pickle_is_refused(home: Home, registering: Registering, first: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(first, folder)
    (folder / "model" / name).write_bytes(b"x")
    with pytest.raises(Mistake, match=name):
        registering(folder)
    assert MlflowClient(home.mlflow_uri).search_registered_models() == []


@pytest.mark.usefixtures("trusted")
def test_the_requirements_are_pinned_and_can_be_installed(home: Home, registering: Registering, first: Path) -> None:
    registering(first)
    found = registry.champion(home, "tiny")
    lines = registry.files_of(home, found, "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    assert {line.split("==")[0] for line in lines} == {"mlflow", *FAMILY.serving_libraries, "polars", "ftfy"}


@pytest.mark.usefixtures("trusted")
def test_no_personal_data_is_shown_as_an_example(home: Home, registering: Registering, first: Path) -> None:
    registering(first)
    example = registry.files_of(home, registry.champion(home, "tiny"), "input_example.json").read_text()
    assert "<EMAIL>" in example
    assert "example.com" not in example


@pytest.mark.usefixtures("trusted")
def test_a_version_keeps_what_its_training_rows_are_known_by(home: Home, registering: Registering, first: Path) -> None:
    registering(first)
    found = registry.champion(home, "tiny")
    assert register.training_hashes_of(home, found).tolist() == [1, 2]
    assert (registry.files_of(home, found) / "model.safetensors").exists()


@pytest.mark.usefixtures("trusted")
def test_training_rows_of_versions_of_before_are_known(home: Home, registering: Registering, first: Path) -> None:
    registering(first)
    found = registry.champion(home, "tiny")
    newer = registry.files_of(home, found, register.TRAINING_HASHES[0])
    newer.with_name("training_hashes.txt.gz").write_bytes(gzip.compress(b"00000000000000ff\nfedcba9876543210\n"))
    newer.unlink()
    assert register.training_hashes_of(home, found).tolist() == [255, 0xFEDCBA9876543210]


@pytest.mark.usefixtures("trusted")
def test_a_version_that_hone_did_not_register_has_no_training_rows_to_tell(
    home: Home, registering: Registering, first: Path
) -> None:
    registering(first)
    made = registry.champion(home, "tiny")
    mlflow_client = MlflowClient(home.mlflow_uri)
    mlflow_client.create_model_version("tiny", str(registry.files_of(home, made, "")), made.run_id)
    mlflow_client.set_registered_model_alias("tiny", "champion", "2")
    foreign = registry.champion(home, "tiny")
    assert foreign.identity is None
    assert register.training_hashes_of(home, foreign) is None


@pytest.mark.usefixtures("trusted")
def test_nothing_serves_before_the_first_promotion(
    home: Home, recipe: Recipe, registering: Registering, first: Path
) -> None:
    assert registry.champion(home, "tiny") is None
    made = registering(first, recipe=manual(recipe))
    assert made.aliases == ("challenger",)
    assert registry.champion(home, "tiny") is None


# Who serves.


@pytest.mark.usefixtures("trusted")
def test_a_better_model_takes_over_and_the_former_champion_is_known(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    made = registering(others[0], verdict=verdict("1"))
    assert made.aliases == ("champion",)
    mlflow_client = MlflowClient(home.mlflow_uri)
    assert "was_champion" in str(mlflow_client.get_model_version("tiny", "1").tags)
    assert mlflow_client.get_model_version("tiny", "2").tags["hone.champion_before"] == "1"
    assert aliases(home) == {"champion": "2"}
    moved = [line for line in registry.history(home, "tiny") if line["event"] == "confirmed"]
    assert [(line["before"], line["to"]) for line in moved] == [(None, "1"), ("1", "2")]
    assert moved[1]["by"].startswith("MLflow run")
    assert moved[1]["reason"] == "passed the gate: threshold:accuracy"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("decision", ["challenger", "undecidable"])
def test_a_model_that_is_not_shown_to_be_better_waits_as_challenger(
    home: Home, registering: Registering, first: Path, others: list[Path], decision: Decision
) -> None:
    registering(first)
    made = registering(others[0], verdict=verdict("1", decision))
    assert made.aliases == ("challenger",)
    assert registry.champion(home, "tiny").version == "1"
    newest = registering(others[1], verdict=verdict("1", decision))
    assert newest.aliases == ("challenger",)
    assert aliases(home) == {"champion": "1", "challenger": "3"}


@pytest.mark.usefixtures("trusted")
def test_a_rejected_model_is_on_record_and_challenges_nobody(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    rejected = registering(others[0], verdict=verdict("1", "reject"))
    assert (rejected.version, rejected.aliases) == ("2", ())
    assert MlflowClient(home.mlflow_uri).get_model_version("tiny", "2").tags["hone.gate"] == "reject"
    assert aliases(home) == {"champion": "1"}


@pytest.mark.usefixtures("trusted")
def test_a_challenger_that_is_judged_again_and_rejected_challenges_no_longer(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    registering(others[0], verdict=verdict("1", "challenger"))
    again = registering(others[0], verdict=verdict("1", "reject"))
    assert (again.version, again.cached, again.aliases) == ("2", True, ())
    assert aliases(home) == {"champion": "1"}


@pytest.mark.usefixtures("trusted")
def test_promotion_is_refused_when_another_champion_serves_by_now(
    home: Home, recipe: Recipe, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    registering(others[0], verdict=verdict("1"))
    registering(others[1], recipe=manual(recipe), verdict=verdict("1"))
    with pytest.raises(Mistake, match="was measured against champion 1"):
        registry.promote(home, "tiny", "3", expected_champion="1", by="me", reason="I like it")
    assert registry.champion(home, "tiny").version == "2"
    assert events(home)[-1] == "refused"


@pytest.mark.usefixtures("trusted")
def test_a_run_whose_champion_was_replaced_meanwhile_ends_with_a_challenger(
    home: Home, registering: Registering, first: Path, others: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    registering(first)
    registering(others[0], verdict=verdict("1"))
    late = registering(others[1], verdict=verdict("1"))
    assert late.aliases == ("challenger",)
    assert registry.champion(home, "tiny").version == "2"
    assert "is not promoted" in caplog.text


@pytest.mark.usefixtures("trusted")
def test_a_rollback_brings_the_former_champion_back_and_the_bad_one_never_returns_by_itself(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    registering(others[0], verdict=verdict("1"))
    assert registry.rollback(home, "tiny", by="me", reason="complaints").version == "1"

    again = registering(others[0], verdict=verdict("1"))
    assert (again.cached, again.aliases) == (True, ())
    assert registry.champion(home, "tiny").version == "1"
    with pytest.raises(Mistake, match="was rolled back"):
        registry.promote(home, "tiny", "2", expected_champion="1", by="me", reason="fixed")
    returned = registry.promote(
        home, "tiny", "2", expected_champion="1", by="me", reason="fixed", even_if_rolled_back=True
    )
    assert returned == ("champion",)


@pytest.mark.usefixtures("trusted")
def test_rolling_back_the_first_champion_leaves_nothing_serving(
    home: Home, registering: Registering, first: Path
) -> None:
    registering(first)
    assert registry.rollback(home, "tiny", by="me", reason="broken") is None
    assert registry.champion(home, "tiny") is None
    with pytest.raises(Mistake, match="no version of tiny serves"):
        registry.rollback(home, "tiny", by="me", reason="again")


# What a crash leaves.


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("died_in", ["_set_champion", "_finish"])
def test_a_promotion_that_a_crash_cut_short_is_finished(
    home: Home, recipe: Recipe, registering: Registering, first: Path, others: list[Path],
    monkeypatch: pytest.MonkeyPatch, died_in: str,
) -> None:  # fmt: skip
    registering(first)
    registering(others[0], recipe=manual(recipe), verdict=verdict("1"))

    class Died(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(registry, died_in, die)
        registry.promote(home, "tiny", "2", expected_champion="1", by="me", reason="good")
    with (home.journal / "promotions.jsonl").open("a") as journal:
        journal.write('{"event": "int')

    registry.reconcile(home)

    assert aliases(home) == {"champion": "2"}
    assert events(home) == ["intent", "confirmed", "intent", "confirmed"]
    assert registry.champion(home, "tiny").tags["hone.champion_before"] == "1"
    assert registry.reconcile(home) == []


@pytest.mark.usefixtures("trusted")
def test_a_promotion_that_a_crash_cut_short_is_undone_when_another_serves_by_now(
    home: Home,
    recipe: Recipe,
    registering: Registering,
    first: Path,
    others: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registering(first)
    for folder in others:
        registering(folder, recipe=manual(recipe), verdict=verdict("1"))

    class Died(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(registry, "_set_champion", die)
        registry.promote(home, "tiny", "2", expected_champion="1", by="me", reason="good")
    MlflowClient(home.mlflow_uri).set_registered_model_alias("tiny", "champion", "3")

    assert [line["event"] for line in registry.reconcile(home)] == ["undone", "by hand"]
    assert registry.champion(home, "tiny").version == "3"


@pytest.mark.usefixtures("trusted")
def test_a_champion_moved_by_hand_is_noticed_and_can_be_rolled_back(
    home: Home, registering: Registering, first: Path, others: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    registering(first)
    registering(others[0], verdict=verdict("1", "reject"))
    MlflowClient(home.mlflow_uri).set_registered_model_alias("tiny", "champion", "2")
    (noted,) = registry.reconcile(home)
    assert (noted["event"], noted["before"], noted["to"]) == ("by hand", "1", "2")
    assert "although it failed the gate" in caplog.text
    assert registry.reconcile(home) == []
    assert registry.rollback(home, "tiny", by="me", reason="it failed the gate").version == "1"


# The model card.


def test_the_card_tells_what_a_user_must_know(recipe: Recipe) -> None:
    card = model_card(
        recipe,
        rows={"rows": 38_158, "quarantined": {"duplicate": 7, "too_short": 2}, "test": 3_000},
        train={"steps": 100, "precision": "bf16"},
        metrics={
            "macro_f1": Interval(value=0.8123, low=0.80, high=0.82),
            "accuracy": Interval(value=0.9, low=0.8, high=1),
        },
        baselines={"majority": {"macro_f1": 0.21}},
        slices=[
            SliceScore(name=f"label={name}", kind="label", rows=1_500, value=value, low=0.1, high=0.95, p_weaker=0.5)
            for name, value in (("good", 0.9), ("bad", 0.4))
        ],
        row_score="share of right answers",
        calibration=["Temperature 1.370, fitted on validation."],
        speed={
            "latency_ms_p50": 4.0,
            "latency_ms_p95": 7.5,
            "rows_per_second": 1_234.5,
            "size_mb": 17.2,
            "machine": {"cores": 2},
        },
        verdict=verdict("4", "reject"),
        lineage={"git_commit": "abc"},
    )
    assert "| **macro_f1** | 0.8123 | 0.8000 to 0.8200 |" in card
    assert "- quarantined: duplicate 7, too_short 2" in card
    assert "- rows: 38,158" in card
    assert card.index("| label=bad | 1,500 | 0.4000 |") < card.index("| label=good | 1,500 | 0.9000 |")
    assert "- Temperature 1.370, fitted on validation." in card
    assert "95 of 100 within 7.5 ms" in card
    assert "Gate: reject" in card
    assert "- FAILED: threshold:accuracy (at least 0.5; found 0.6)" in card
    assert "- git commit: abc" in card
    assert "/models" not in card
    assert "/data" not in card


def test_a_long_card_is_cut_where_mlflow_would_refuse_it(home: Home) -> None:
    assert len(register._fitting("x" * 9_000)) == 5_000
    assert register._fitting("x" * 9_000).endswith("of the logged model")


def test_lineage_names_the_commit_and_whether_it_is_all(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert "git_commit" not in lineage_of(tmp_path)
    git("init", "-q")
    (tmp_path / "recipe.yaml").write_text("name: x")
    git("add", ".")
    git("commit", "-qm", "x")
    found = lineage_of(tmp_path, train_key="t")
    assert (found["git_commit"], found["git_dirty"], found["train_key"]) == (git("rev-parse", "HEAD"), "false", "t")
    assert found["torch"]
    (tmp_path / "recipe.yaml").write_text("name: y")
    assert lineage_of(tmp_path)["git_dirty"] == "true"
    (tmp_path / "flows").mkdir()
    assert git_state(tmp_path, "flows", "tasks")["git_dirty"] == "false"
    (tmp_path / "flows" / "new.py").write_text("")
    assert git_state(tmp_path, "flows", "tasks")["git_dirty"] == "true"
