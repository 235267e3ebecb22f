from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from transformers import AutoTokenizer

from schemas.data import Clean
from tasks import calibration
from tasks.families import serve_text_classification
from tasks.families.text_classification import TextClassification
from tasks.rules import serving as serving_rules
from tasks.rules import shipping
from tasks.rules.part import text_rules
from tests.tiny_classifier import LABELS, WORDS, serving, tiny_model

TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % 60] for j in range(1 + i % 25)) for i in range(50)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("first"), seed=1)


def about(folder: Path, to: Path, **more: Any) -> Path:
    """A copy of the model that says more of itself."""
    shutil.copytree(folder, to)
    file = to / "model" / "hone.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return to


def probabilities(model: Any, texts: list[str]) -> np.ndarray[Any, Any]:
    served = model.predict(None, texts)["probabilities"]
    return np.array([[found[label] for label in LABELS] for found in served])


def test_the_order_and_size_of_batches_change_nothing(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = serving(first)
    together = model.predict(None, TEXTS, {"batch_size": 7})["probabilities"].tolist()
    alone = [model.predict(None, [text])["probabilities"][0] for text in TEXTS]
    monkeypatch.setattr(serving_rules, "CHUNK", 8)
    in_chunks = model.predict(None, TEXTS)["probabilities"].tolist()
    for one, other, third in zip(together, alone, in_chunks, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx(third, abs=1e-5)


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
    assert served["abstains"][1] is None


def test_no_texts_get_no_answers(first: Path) -> None:
    served = serving(first).predict(None, [])
    assert served.shape == (0, 4)


def test_something_else_than_text_is_refused(first: Path) -> None:
    with pytest.raises(TypeError, match="text 1 is 7"):
        serving(first).predict(None, ["w1", 7])
    with pytest.raises(ValueError, match="no column 'text'"):
        serving(first).predict(None, pd.DataFrame({"body": ["w1"]}))


# The rules of the training's texts.


def test_texts_are_put_right_as_those_of_the_training_were(first: Path, tmp_path: Path) -> None:
    rules = text_rules(Clean(strip_markup=True, redact=("email", "phone"), unicode_form="NFKC"))
    ruly = serving(about(first, tmp_path / "ruly", text_rules=rules))
    raw = ["<p>w1&nbsp;\t w2</p>", "w\u00ad3 \uff57\uff14", "call +49 (0)30 123456 w5", "w6 kim@example.com"]
    right = ["w1 w2", "w3 w4", "call <PHONE> w5", "w6 <EMAIL>"]
    assert probabilities(ruly, raw) == pytest.approx(probabilities(serving(first), right), abs=1e-6)
    assert probabilities(serving(first), raw) != pytest.approx(probabilities(serving(first), right), abs=1e-3)


def test_a_text_of_which_nothing_is_left_gets_no_label(first: Path, tmp_path: Path) -> None:
    ruly = serving(about(first, tmp_path / "ruly", text_rules=text_rules(Clean(strip_markup=True))))
    assert pd.isna(ruly.predict(None, ["w1", "<br/>\u200b", None])["label"]).tolist() == [False, True, True]


def load_by_path(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"served_from_{file.parent.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MODEL


def test_the_serving_file_finds_the_rules_in_the_checkout_when_it_is_loaded_by_path(
    first: Path, tmp_path: Path
) -> None:
    folder = about(first, tmp_path / "ruly", text_rules=text_rules(Clean(strip_markup=True))) / "model"
    model = load_by_path(TextClassification.serving)
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    assert probabilities(model, ["<b>w1</b>"]) == pytest.approx(probabilities(serving(first), ["w1"]), abs=1e-6)


def test_each_model_follows_the_rules_that_lie_beside_it(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for name in ("old", "new"):
        place = tmp_path / name
        (place / "code").mkdir(parents=True)
        package = shipping.write_package(place / "code")
        shutil.copyfile(TextClassification.serving, place / TextClassification.serving.name)
        folder = about(first, tmp_path / f"{name}-model", text_rules=text_rules(Clean())) / "model"
        if name == "new":
            (package / "text.py").write_text(
                (package / "text.py").read_text().replace('r"\\s+", " "', 'r"\\s+", " w9 "')
            )
        with monkeypatch.context() as patch:  # hone's rooms are not to be had
            for room in ("tasks", "schemas"):
                patch.setitem(sys.modules, room, None)
            models[name] = load_by_path(place / TextClassification.serving.name)
            models[name].load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    bare = serving(first)
    assert probabilities(models["old"], ["w1  w2"]) == pytest.approx(probabilities(bare, ["w1 w2"]), abs=1e-6)
    assert probabilities(models["new"], ["w1  w2"]) == pytest.approx(probabilities(bare, ["w1 w9 w2"]), abs=1e-6)


# Calibration.


def fitted(folder: Path, **content: Any) -> Path:
    file = folder / "calibration.json"
    file.write_text(json.dumps(content))
    return file


def test_probabilities_are_those_of_the_temperature(first: Path, tmp_path: Path) -> None:
    plain = probabilities(serving(first), TEXTS)
    tempered = probabilities(serving(first, fitted(tmp_path, temperature=2.5)), TEXTS)
    assert tempered == pytest.approx(softmax(np.log(plain) / 2.5, axis=-1), abs=1e-9)
    assert abs(tempered - plain).max() > 0.01


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.7, 20.0])
def test_the_temperature_is_applied_as_it_was_fitted(temperature: float) -> None:
    found = np.array([[0.0, 0.25, 0.75], [1e-40, 0.5, 0.5], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    served = np.array([serve_text_classification._tempered(row, temperature) for row in found])
    assert served == pytest.approx(calibration.apply(found, temperature), abs=1e-12)


def test_a_temperature_of_a_half_squares_the_odds() -> None:
    found = serve_text_classification._tempered(np.array([0.0, 0.25, 0.75]), 0.5)
    assert found.tolist() == pytest.approx([0.0, 0.1, 0.9])  # 1/16 to 9/16


def test_without_a_calibration_nothing_changes(first: Path, tmp_path: Path) -> None:
    assert (probabilities(serving(first, fitted(tmp_path)), TEXTS) == probabilities(serving(first), TEXTS)).all()


def test_the_model_abstains_below_the_threshold_alone(first: Path, tmp_path: Path) -> None:
    plain = serving(first).predict(None, TEXTS)
    assert plain["abstains"].isna().all()
    threshold = float(np.sort(plain["score"])[20])
    sure = serving(first, fitted(tmp_path, temperature=1.0, abstain={"threshold": threshold}))
    served = sure.predict(None, TEXTS)
    assert served["abstains"].tolist() == (served["score"] < threshold).tolist()
    assert served["abstains"].sum() == 20
    never = serving(first, fitted(tmp_path, temperature=1.0, abstain={"threshold": None}))
    assert never.predict(None, TEXTS)["abstains"].all()


# Windows.


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_read_in_overlapping_windows(first: Path, tmp_path: Path, side: str) -> None:
    folder = about(first, tmp_path / side, overlong="window", stride=4)
    config = folder / "model" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"truncation_side": side}))
    long, short = " ".join(WORDS[:38]), "w1 w2"
    ends = {"right": [(0, 14), (10, 24), (20, 34), (30, 38)], "left": [(24, 38), (14, 28), (4, 18), (0, 8)]}[side]
    windows = [" ".join(WORDS[start:end]) for start, end in ends]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    by_transformers = tokenizer(long, truncation=True, max_length=16, stride=4, return_overflowing_tokens=True)
    assert by_transformers["input_ids"] == tokenizer(windows)["input_ids"]

    served = serving(folder)
    bare = serving(first)
    expected = [
        probabilities(bare, windows).mean(0),
        probabilities(bare, [short])[0],
        probabilities(bare, windows).mean(0),
    ]
    assert probabilities(served, [long, short, long]) == pytest.approx(np.array(expected), abs=1e-5)
    assert abs(probabilities(served, [long]) - probabilities(bare, [long])).max() > 1e-3


def test_the_temperature_is_that_of_the_mean_over_windows(first: Path, tmp_path: Path) -> None:
    folder = about(first, tmp_path / "windows", overlong="window", stride=0)
    of_three = fitted(tmp_path, temperature=3.0)
    long = " ".join(WORDS[:28])
    mean = probabilities(serving(first), [" ".join(WORDS[:14]), " ".join(WORDS[14:28])]).mean(0)
    expected = np.exp(log_softmax(np.log(mean) / 3.0))
    assert probabilities(serving(folder, of_three), [long])[0] == pytest.approx(expected, abs=1e-5)
