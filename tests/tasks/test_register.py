from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import pandas as pd
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from schemas.errors import Fault, Mistake
from schemas.recipe import Recipe
from schemas.records import Check, Interval, ModelVersion, Verdict
from tasks import register, registry
from tasks.families.serve_text_classification import TextClassifier
from tasks.families.text_classification import TextClassification
from tasks.home import Home
from tasks.model_card import lineage_of, model_card
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)

LABELS = ["bad", "good"]
WORDS = [f"w{i}" for i in range(60)]
FAMILY = TextClassification()


def tiny_model(folder: Path, seed: int) -> Path:
    """A train artifact with a random BERT of two layers over sixty words."""
    torch.manual_seed(seed)
    out = folder / "model"
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.5, id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(out)
    (out / "hone.json").write_text(json.dumps({"labels": LABELS, "max_seq_length": 16}))
    return folder


def serving(folder: Path) -> TextClassifier:
    model = TextClassifier()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder / "model")}))
    return model


def rows(count: int = 40) -> pl.DataFrame:
    texts = [" ".join(WORDS[(i * 7 + j * 3) % 60] for j in range(1 + i % 25)) for i in range(count)]
    return pl.DataFrame(
        {"id": [f"r{i}" for i in range(count)], "text": texts, "label": [LABELS[i % 2] for i in range(count)]}
    )


def recorded(folder: Path, samples: pl.DataFrame) -> Path:
    """Predictions as the evaluation writes them."""
    served = serving(folder).predict(None, samples["text"].to_list())
    out = folder / "predictions.parquet"
    pl.DataFrame(
        {
            "id": samples["id"],
            "truth": samples["label"],
            "prediction": served["label"].tolist(),
            "probabilities": [[p[label] for label in LABELS] for p in served["probabilities"]],
        }
    ).write_parquet(out)
    return out


def verdict(champion: str | None = None, *, passed: bool = True) -> Verdict:
    check = Check(name="threshold:accuracy", passed=passed, rule="at least 0.5", found="0.6")
    return Verdict(
        stage="gate",
        key="k",
        cached=False,
        why="",
        seconds=0.1,
        run_id="r",
        passed=passed,
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
    return tiny_model(tmp_path_factory.mktemp("first"), seed=1)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_model(tmp_path_factory.mktemp(f"other{seed}"), seed=seed) for seed in (2, 3)]


@pytest.fixture
def registering(home: Home, recipe: Recipe, run: Run) -> Registering:
    """Registers a folder with all that belongs to it."""

    def act(folder: Path, **changes: Any) -> ModelVersion:
        samples = rows()
        known: dict[str, Any] = {
            "model": folder,
            "predictions": changes.get("predictions") or recorded(folder, samples),
            "samples": samples,
            "training_hashes": ["b", "a", "b"],
            "verdict": verdict(),
            "lineage": {"train_key": "t1", "git_commit": "c1"},
            "model_card": "# tiny",
        }
        known |= {k: v for k, v in changes.items() if k != "recipe"}
        return register.register_model(home, run.run_id, changes.get("recipe", recipe), FAMILY, **known)

    return act


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the fresh process, which takes seconds, where it is not the point."""
    monkeypatch.setattr(register, "_verify", lambda *args: None)
    monkeypatch.setattr(register, "start_verifier", lambda family: SimpleNamespace(alive=True, close=lambda: ""))


def manual(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"registry": recipe.registry.model_copy(update={"promote": "manual"})})


def aliases(home: Home) -> dict[str, str]:
    return registry.aliases_of(MlflowClient(home.mlflow_uri), "tiny")


def events(home: Home) -> list[str]:
    return [line["event"] for line in registry.history(home)]


# The whole way, with the fresh process.


def test_a_registered_model_serves_without_hone(
    home: Home, registering: Registering, run: Run, first: Path, tmp_path: Path
) -> None:
    made = registering(first)

    assert (made.name, made.version, made.cached, made.aliases) == ("tiny", "1", False, ("champion",))
    mlflow_client = MlflowClient(home.mlflow_uri)
    found = mlflow_client.get_model_version("tiny", "1")
    assert (found.status, found.run_id, found.description) == ("READY", run.run_id, "# tiny")
    assert found.tags["hone.identity"] == made.key
    assert found.tags["hone.gate"] == "passed"
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
print(json.dumps(model.predict(pd.DataFrame({{"text": ["w1 w2", "w3"]}})).to_dict(orient="records")))
some = model.predict(pd.DataFrame({{"text": ["w1 w2", None]}}), params={{"batch_size": 1}})
print(json.dumps(some["label"].isna().tolist()))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both, with_missing = (json.loads(line) for line in done.stdout.splitlines())
    expected = serving(first).predict(None, ["w1 w2", "w3"])
    assert [row["label"] for row in both] == expected["label"].tolist()
    assert both[0]["probabilities"]["good"] == pytest.approx(expected["probabilities"][0]["good"], abs=1e-5)
    assert with_missing == [False, True]


def test_registration_is_refused_when_the_fresh_process_predicts_something_else(
    home: Home, registering: Registering, first: Path
) -> None:
    samples = rows()
    predictions = recorded(first, samples)
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
    registering: Registering, first: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    predictions = recorded(first, rows())
    (broken / "model" / "config.json").write_text("{}")
    with pytest.raises(Fault, match=r"cannot predict with the logged model[\s\S]*config"):
        registering(broken, predictions=predictions)


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
    assert register.identity_of(home, first, FAMILY) != register.identity_of(home, others[0], FAMILY)


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
    assert {line.split("==")[0] for line in lines} == {"mlflow", *FAMILY.serving_libraries}


@pytest.mark.usefixtures("trusted")
def test_a_version_keeps_what_its_training_rows_are_known_by(home: Home, registering: Registering, first: Path) -> None:
    registering(first)
    found = registry.champion(home, "tiny")
    assert register.training_hashes_of(home, found) == {"a", "b"}
    assert (registry.files_of(home, found) / "model.safetensors").exists()


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
def test_a_model_that_failed_the_gate_waits_as_challenger(
    home: Home, registering: Registering, first: Path, others: list[Path]
) -> None:
    registering(first)
    made = registering(others[0], verdict=verdict("1", passed=False))
    assert made.aliases == ("challenger",)
    assert registry.champion(home, "tiny").version == "1"
    newest = registering(others[1], verdict=verdict("1", passed=False))
    assert newest.aliases == ("challenger",)
    assert aliases(home) == {"champion": "1", "challenger": "3"}


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
    registering(others[0], verdict=verdict("1", passed=False))
    MlflowClient(home.mlflow_uri).set_registered_model_alias("tiny", "champion", "2")
    (noted,) = registry.reconcile(home)
    assert (noted["event"], noted["before"], noted["to"]) == ("by hand", "1", "2")
    assert "although it failed the gate" in caplog.text
    assert registry.reconcile(home) == []
    assert registry.rollback(home, "tiny", by="me", reason="it failed the gate").version == "1"


# What is served.


def test_the_order_and_size_of_batches_change_nothing(first: Path) -> None:
    model = serving(first)
    texts = rows(50)["text"].to_list()
    together = model.predict(None, texts, {"batch_size": 7})["probabilities"].tolist()
    alone = [model.predict(None, [text])["probabilities"][0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_long_texts_are_cut_as_in_training(first: Path) -> None:
    model = serving(first)
    long = " ".join(WORDS[:30])
    cut = " ".join(WORDS[:14])  # 16 tokens with [CLS] and [SEP]
    assert model.predict(None, [long])["score"][0] == pytest.approx(model.predict(None, [cut])["score"][0], abs=1e-7)


@pytest.mark.parametrize("nothing", [None, "", "  \n", float("nan"), pd.NA])
def test_a_missing_or_blank_text_gets_no_label_and_moves_no_other(first: Path, nothing: Any) -> None:
    model = serving(first)
    served = model.predict(None, pd.DataFrame({"text": ["w1", nothing, "w2"]}))
    expected = model.predict(None, ["w1", "w2"])
    assert served["label"].tolist()[::2] == expected["label"].tolist()
    assert pd.isna(served["label"][1])
    assert pd.isna(served["score"][1])
    assert served["probabilities"][1] is None


def test_something_else_than_text_is_refused(first: Path) -> None:
    with pytest.raises(TypeError, match="text 1 is 7"):
        serving(first).predict(None, ["w1", 7])
    with pytest.raises(ValueError, match="no column 'text'"):
        serving(first).predict(None, pd.DataFrame({"body": ["w1"]}))


def test_a_tie_may_fall_either_way_but_a_difference_may_not() -> None:
    def differences(label: str, good: float) -> list[tuple[str, str]]:
        row = pl.DataFrame({"id": ["r"], "prediction": ["bad"], "probabilities": [[0.50001, 0.49999]]})
        served = [{"label": label, "probabilities": {"bad": 1 - good, "good": good}}]
        return register.disagreements(served, row, LABELS)

    assert differences("bad", 0.49999) == []
    assert differences("good", 0.50001) == []
    assert differences("bad", 0.4995) != []
    assert differences("bad", float("nan")) != []


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
        verdict=verdict("4", passed=False),
        lineage={"git_commit": "abc"},
    )
    assert "| **macro_f1** | 0.8123 | 0.8000 to 0.8200 |" in card
    assert "- quarantined: duplicate 7, too_short 2" in card
    assert "- rows: 38,158" in card
    assert "Gate: failed" in card
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
