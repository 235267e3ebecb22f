from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from pydantic import ValidationError

from schemas.data import Clean
from schemas.recipe import Recipe
from schemas.records import Plan
from tasks.batches import TokenTable
from tasks.families import Encoded, Loss
from tasks.families.question_answering import QuestionAnswering
from tasks.learner import train
from tasks.predict import predict
from tasks.probe import plan_training
from tasks.rules.part import text_rules
from tasks.tokenizer import BaseTokenizer, load_tokenizer, read_config
from tests.question_rows import META, serving, tiny_encoder, token_files

FAMILY = QuestionAnswering()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> BaseTokenizer:
    return load_tokenizer(base, read_config(base), trust_remote_code=False)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return token_files(tmp_path_factory.mktemp("tokens"), base, {"train": 900, "validation": 60, "test": 150}, META)


def trained(folder: Path, base: Path, tokens: Path, **settings: Any) -> dict[str, Any]:
    """Train below `folder`; the record."""
    spec: dict[str, Any] = {
        "task": {"family": "question-answering"},
        "model": {"base": ""},
        "train": {"learning_rate": 3e-3, "global_batch_size": 32, "precision": "fp32", "eval_steps": 500, **settings},
        "base": str(base),
        "tokens": str(tokens),
        "metric": "f1",
    }
    (folder / "work").mkdir()
    plan = plan_training(emit=lambda *_, **__: None, **spec)
    return train(
        emit=lambda *_, **__: None, plan=Plan.model_validate(plan).model_dump(), work=str(folder / "work"),
        out=str(folder / "out"), save_minutes=60, **spec,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, base: Path, tokens: Path) -> Path:
    """Trained on questions whose contexts are two windows long."""
    folder = tmp_path_factory.mktemp("learnt")
    assert trained(folder, base, tokens, epochs=6)["validation"]["f1"] > 0.9
    return folder / "out"


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3"])
def test_adapters_are_merged_though_some_answers_are_impossible(
    tmp_path: Path, base: Path, tokens: Path, method: str
) -> None:
    record = trained(tmp_path, base, tokens, max_steps=12, method={"kind": method})
    assert 0 < record["merge_difference"] < 1e-4
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, model: Path, tokens: Path) -> pl.DataFrame:
    file = tmp_path_factory.mktemp("predictions") / "test.parquet"
    predict(
        emit=lambda *_, **__: None, family="question-answering", model=str(model / "model"),
        tokens={str(tokens / "test.arrow"): str(file)},
    )  # fmt: skip
    return pl.read_parquet(file)


def test_it_learns_to_find_answers_and_to_find_none(recorded: pl.DataFrame) -> None:
    scores = FAMILY.score(recorded, META)
    assert scores["exact_match"] > 0.95
    assert min(scores["f1/has_answer"], scores["f1/no_answer"]) > 0.9


def test_what_is_served_is_what_was_recorded(model: Path, tokens: Path, recorded: pl.DataFrame) -> None:
    rows = pl.read_parquet(tokens / "test.parquet")
    served = serving(model / "model").predict(None, rows.select("context", "question").to_pandas())
    answers = served.to_dict(orient="records")
    assert FAMILY.disagreements(answers, recorded, META) == []
    for row, answer in zip(rows.iter_rows(named=True), answers, strict=True):
        if answer["answer"] is not None:
            assert row["context"][answer["start"] : answer["end"]] == answer["answer"]


def test_a_model_whose_threshold_was_fitted_serves_by_it(
    model: Path, tokens: Path, recorded: pl.DataFrame, tmp_path: Path
) -> None:
    threshold = float(recorded["odds"].sort()[20:22].mean())
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps({"no_answer_above": threshold}))
    calibrated = FAMILY.calibrated(recorded, {"no_answer_above": threshold})
    assert (calibrated["prediction"] != "").sum() == 21
    rows = pl.read_parquet(tokens / "test.parquet")
    served = serving(model / "model", calibration).predict(None, rows.select("context", "question").to_pandas())
    assert FAMILY.disagreements(served.to_dict(orient="records"), calibrated, META) == []
    again = FAMILY.from_served(served.to_dict(orient="records"), rows, META)
    assert FAMILY.score(again, META) == FAMILY.score(calibrated, META)


def test_a_raw_context_is_answered_with_places_in_it(model: Path, tmp_path: Path) -> None:
    ruly = tmp_path / "ruly"
    shutil.copytree(model / "model", ruly)
    about = json.loads((ruly / "hone.json").read_text())
    (ruly / "hone.json").write_text(json.dumps(about | {"text_rules": text_rules(Clean(strip_markup=True))}))
    raw = "w1  <b>w2</b> &amp; 😀 a0\n\n<i>a3</i> w4 b1 b2"
    asked = pd.DataFrame({"question": ["where is a ?", "where is b ?"], "context": [raw, raw]})
    served = serving(ruly).predict(None, asked).to_dict(orient="records")
    assert [row["answer"] for row in served] == ["a0 a3", "b1 b2"]
    assert [raw[row["start"] : row["end"]] for row in served] == ["a0\n\n<i>a3", "b1 b2"]


@pytest.mark.parametrize("nothing", [None, "", "  \n", float("nan")])
def test_a_missing_text_gets_no_answer_and_moves_no_other(model: Path, nothing: Any) -> None:
    asked = pd.DataFrame({"question": ["where is a ?", nothing], "context": ["w1 a0 a3", "w1 a0 a3"]})
    served = serving(model / "model").predict(None, asked)
    assert served["answer"].tolist() == ["a0 a3", None]
    assert served.iloc[1].tolist() == [None] * 4
    with pytest.raises(ValueError, match="no column 'question'"):
        serving(model / "model").predict(None, asked[["context"]])
    assert serving(model / "model").predict(None, asked.iloc[:0]).shape == (0, 4)


# What is learnt of a row.


def encoded(tokenizer: BaseTokenizer, context: str, answers: list[dict[str, Any]], **meta: Any) -> Encoded:
    rows = pl.DataFrame({"context": [context], "question": ["where is a ?"], "answers": [json.dumps(answers)]})
    return FAMILY.encode(rows, META | meta, tokenizer)


def learnt(tokenizer: BaseTokenizer, context: str, answers: list[dict[str, Any]], **meta: Any) -> list[str]:
    """What the labels of each window say, by its own characters; nothing for no answer."""
    found = encoded(tokenizer, context, answers, **meta)
    begins, ends = (found.columns[name].to_pylist() for name in ("begins", "ends"))
    return [
        context[begins[place][first] : ends[place][last]] if first else ""
        for place, (first, last) in enumerate(found.columns["labels"].to_pylist())
    ]


def test_each_window_learns_the_first_answer_that_lies_in_it(tokenizer: BaseTokenizer) -> None:
    context = " ".join(f"w{i % 10}" for i in range(40))
    late = context.index("w4 w5", 60)
    two = [{"text": "w4 w5", "start": late}, {"text": "w1", "start": 3}]
    assert learnt(tokenizer, context, two) == ["w1", "w4 w5", "w4 w5", ""]
    assert learnt(tokenizer, context, []) == [""] * 4
    assert learnt(tokenizer, context, two, overlong="truncate", stride=None) == ["w1"]


def test_the_context_is_kept_once_and_lengths_are_of_the_whole(tokenizer: BaseTokenizer) -> None:
    context = " ".join(["w1"] * 40)
    found = encoded(tokenizer, context, [])
    assert found.pieces == [4]
    assert found.uncut == [4 + 3 + 40]
    assert found.columns["context"].to_pylist() == [context, None, None, None]
    assert found.columns["truths"].to_pylist() == ["[]", None, None, None]


def test_the_loss_does_not_depend_on_padding(base: Path, tokens: Path) -> None:
    table = TokenTable(tokens / "test.arrow", 0)
    loaded = FAMILY.load_model(str(base), META).eval()
    rows = [int(table.lengths.argmin()), int(table.lengths.argmax())]
    together = FAMILY.loss_sum(loaded, table.batch(rows), Loss()).item()
    alone = sum(FAMILY.loss_sum(loaded, table.batch([row]), Loss()).item() for row in rows)
    assert together == pytest.approx(alone, rel=1e-4)


# Measures.


def predictions(*rows: tuple[list[str], str, float]) -> pl.DataFrame:
    """Of (true answers, best span, odds), decided at odds of zero."""
    truths, best, odds = zip(*rows, strict=True)
    frame = pl.DataFrame(
        {"id": [f"r{i}" for i in range(len(rows))], "truth": pl.Series(truths, dtype=pl.List(pl.String)), "best": best}
    ).with_columns(odds=pl.Series(odds), best_score=0.6, second_score=0.1, no_answer_score=0.2)
    return FAMILY.calibrated(frame, {"no_answer_above": 0.0})


def test_the_threshold_is_the_one_with_the_best_f1() -> None:
    found = predictions((["v"], "v", 1.0), (["w"], "w", 2.0), ([], "x", 4.0), ([], "y", 5.0), (["z"], "x", 3.0))
    assert FAMILY.score(found, META)["f1"] == pytest.approx(2 / 5)
    fitted = FAMILY.calibrate(found, META, abstain_precision=None, confidence=0.95)
    assert fitted == {"no_answer_above": 2.5, "before": pytest.approx(2 / 5), "after": pytest.approx(4 / 5)}
    assert FAMILY.score(FAMILY.calibrated(found, fitted), META)["f1"] == pytest.approx(4 / 5)
    assert FAMILY.decided(found, META).equals(FAMILY.calibrated(found, fitted))
    always = META | {"unanswerable": False}
    assert FAMILY.calibrate(found, always, abstain_precision=None, confidence=0.95) == {}
    assert FAMILY.decided(found, always).equals(found)


def test_rows_served_otherwise_are_named_and_ties_are_none() -> None:
    recorded = predictions((["a"], "a", -3.0), ([], "b", 0.001), (["c"], "c", -3.0), (["d"], "d", -3.0))
    recorded = recorded.with_columns(second_score=pl.Series([0.1, 0.1, 0.5999, 0.1]))
    served: list[dict[str, Any]] = [
        {"answer": "x", "score": 0.6}, {"answer": "b", "score": 0.6}, {"answer": "y", "score": 0.6},
        {"answer": "d", "score": 0.61},
    ]  # fmt: skip
    assert FAMILY.disagreements(served, recorded, META) == [
        ("r0", "'a' was recorded, 'x' is served"),
        ("r3", "the probability differs by 0.01"),
    ]
    silent: list[dict[str, Any]] = [{"answer": None, "score": None}] * 4
    assert len(FAMILY.disagreements(silent, recorded, META)) == 4


# Recipes.


def recipe(**sections: Any) -> Recipe:
    parts: dict[str, Any] = {
        "name": "tiny",
        "task": {"family": "question-answering"},
        "collect": {"source": {"kind": "squad", "path": "train.json"}},
        "model": {"base": "base"},
        "tokenize": {"overlong": "window"},
    }
    return Recipe.model_validate(parts | sections)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"tokenize": {}}, "tokenize.overlong is 'truncate'"),
        ({"tokenize": {"overlong": "window", "stride": 60}}, r"tokenize.stride \(60\) must be less than 60"),
        ({"evaluate": {"abstain_precision": 0.9}}, "evaluate.abstain_precision is not for question-answering"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(sections: dict[str, Any], told: str) -> None:
    assert recipe().metric == "f1"
    with pytest.raises(ValidationError, match=told):
        recipe(**sections)
