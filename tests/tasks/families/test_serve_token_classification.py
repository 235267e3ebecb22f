from __future__ import annotations

import json
import shutil

import mlflow.pyfunc
import pandas as pd
import pytest

from schemas.data import Clean
from tasks.families import serve_token_classification
from tasks.families.token_classification import TokenClassification
from tasks.rules import shipping
from tasks.rules.part import text_rules
from tests.tiny_tagger import sentences, serving, tiny_base, tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("first"), base)


def about(folder, to, **more):
    shutil.copytree(folder, to)
    file = to / "model" / "hone.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return to


def rows(found):
    return found.to_dict(orient="records")


def test_entities_stand_where_their_words_do_in_the_text_as_it_was_given(first):
    texts = ["  mr \t kim ada\nw1 ", *sentences(30)["text"]]
    found = rows(serving(first).predict(None, texts))
    assert any(row["entities"] for row in found)
    for text, row in zip(texts, found, strict=True):
        words = text.split()
        assert len(row["tags"]) == len(row["scores"]) == len(words)
        begun = [tag for tag in row["tags"] if tag.startswith("B-")]
        assert [entity["type"] for entity in row["entities"]] == [tag[2:] for tag in begun]
        for entity in row["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
            place = len(text[: entity["start"]].split())
            inside = row["scores"][place : place + len(entity["text"].split())]
            assert entity["score"] == min(inside)


@pytest.mark.parametrize("nothing", [None, "", "  \n", float("nan"), pd.NA])
def test_a_missing_or_blank_text_has_no_tags_and_moves_no_other(first, nothing):
    served = rows(serving(first).predict(None, pd.DataFrame({"text": ["mr kim", nothing, "w2"]})))
    assert served[1] == {"tags": [], "scores": [], "entities": []}
    for now, then in zip(served[::2], rows(serving(first).predict(None, ["mr kim", "w2"])), strict=True):
        assert (now["tags"], now["scores"]) == (then["tags"], pytest.approx(then["scores"]))


def test_no_texts_get_no_answers(first):
    assert serving(first).predict(None, []).shape == (0, 3)


def test_the_order_and_size_of_batches_change_no_tag(first):
    texts = sentences(40, 4)["text"].to_list()
    model = serving(first)
    together = model.predict(None, texts, {"batch_size": 7})
    alone = [model.predict(None, [text]) for text in texts]
    assert together["tags"].tolist() == [one["tags"][0] for one in alone]


def test_texts_are_put_right_as_those_of_the_training_were(first, tmp_path):
    ruly = serving(about(first, tmp_path / "ruly", text_rules=text_rules(Clean(strip_markup=True))))
    (found,) = rows(ruly.predict(None, ["<b>mr</b>  k\u00adim w1"]))
    (plain,) = rows(serving(first).predict(None, ["mr kim w1"]))
    assert (found["tags"], found["scores"]) == (plain["tags"], pytest.approx(plain["scores"]))


def test_every_word_given_gets_its_tag_where_putting_right_would_change_their_number(first, tmp_path):
    ruly = serving(about(first, tmp_path / "ruly", text_rules=text_rules(Clean(redact=("phone",)))))
    given = "mr kim +49 30 123456 w1"
    (found,) = rows(ruly.predict(None, [given]))
    (as_given,) = rows(serving(first).predict(None, [given]))
    assert len(found["tags"]) == 6
    assert (found["tags"], found["scores"]) == (as_given["tags"], pytest.approx(as_given["scores"]))


def test_without_a_scheme_there_are_tags_and_no_entities(base, tmp_path):
    tags = {"scheme": "none", "types": ["N", "V"], "tags": ["N", "V"]}
    (found,) = rows(serving(tiny_model(tmp_path, base, **tags)).predict(None, ["mr kim"]))
    assert set(found["tags"]) <= {"N", "V"}
    assert found["entities"] == []


def test_mlflow_serves_it_as_json(first, tmp_path):
    """Through the signature and the server that `mlflow models serve` runs."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    mlflow.pyfunc.save_model(
        path=str(tmp_path / "model"),
        python_model=str(TokenClassification.serving),
        code_paths=[str(shipping.write_package(tmp_path))],
        artifacts={"model": str(first / "model")},
        pip_requirements=[],
        signature=serve_token_classification.SIGNATURE,
        input_example=pd.DataFrame({"text": ["mr kim"]}),
    )
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    texts = ["mr kim ada w1", None, "of lin"]
    client = TestClient(scoring_server.init(loaded))
    answered = client.post(
        "/invocations", json={"dataframe_split": {"columns": ["text"], "data": [[t] for t in texts]}}
    )
    assert answered.status_code == 200, answered.text
    expected = rows(serving(first).predict(None, texts))
    for now, then in zip(answered.json()["predictions"], expected, strict=True):
        assert now["tags"] == then["tags"]
        assert now["scores"] == pytest.approx(then["scores"], abs=1e-5)
        assert [entity | {"score": 0} for entity in now["entities"]] == [e | {"score": 0} for e in then["entities"]]
    refused = client.post("/invocations", json={"dataframe_split": {"columns": ["body"], "data": [["x"]]}})
    assert refused.status_code == 400
