from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import Fault
from schemas.recipe import Recipe
from schemas.records import Artifact
from tasks import served
from tasks.context import Context
from tasks.evaluate import read_predictions
from tasks.home import Home
from tests.prepared import Asked, Prepared, answer, version

pytest_plugins = ("tests.mlflow_home",)


def right(text: str) -> dict[str, object]:
    """What the text says of itself."""
    return answer(text.split()[1].lower())


@pytest.fixture
def context(home: Home, recipe: Recipe) -> Context:
    return Context(recipe, home, run_id="r")


@pytest.fixture
def prepared(context: Context) -> Prepared:
    return Prepared(context)


def ask(prepared: Prepared, registered: object = None) -> Artifact:
    return served.served_predictions(prepared.context, prepared.raw, prepared.sides, registered or version())


def predictions(prepared: Prepared, artifact: Artifact) -> pl.DataFrame:
    return read_predictions(prepared.context.path(artifact) / "test.parquet")


def test_a_version_is_asked_with_the_rows_as_they_were_collected(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch, right)
    found = predictions(prepared, ask(prepared))
    assert asked.uris == ["models:/tiny/3"]
    assert asked.texts == [f"TEST {('BAD', 'GOOD')[i % 2]} {i}" for i in range(40)]
    assert found["id"].to_list() == prepared.test["id"].to_list()
    assert found["truth"].to_list() == found["prediction"].to_list() == prepared.test["label"].to_list()
    assert found["probabilities"][0].to_list() == pytest.approx([0.9, 0.1])


def test_a_version_answers_once_to_the_same_rows(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, right)
    first, again = ask(prepared), ask(prepared)
    assert (first.cached, again.cached, len(asked.uris)) == (False, True, 1)
    # The same model under another name is the same model.
    assert ask(prepared, version(number="7")).key == first.key
    assert ask(prepared, version("files-2")).key != first.key
    assert len(asked.uris) == 2


def test_versions_of_another_tool_are_told_apart_by_their_name(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(monkeypatch, right)
    keys = {ask(prepared, version(None, number)).key for number in ("3", "4", "3")}
    assert len(keys) == 2


def test_no_answer_is_a_wrong_one_of_which_nothing_is_probable(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(monkeypatch, lambda text: answer(None) if text.endswith(" 7") else right(text))
    row = predictions(prepared, ask(prepared)).row(7, named=True)
    assert (row["truth"], row["prediction"], row["probabilities"]) == ("good", "", [0.5, 0.5])


def test_labels_of_then_stay_as_they_were_answered_without_probabilities(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(monkeypatch, lambda text: answer("fine", ["bad", "fine"]))
    found = predictions(prepared, ask(prepared))
    assert set(found["prediction"]) == {"fine"}
    assert "probabilities" not in found.columns


def test_what_could_not_be_answered_leaves_nothing_behind(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> dict[str, object]:
        raise Fault("a fresh process cannot predict with the logged model")

    Asked(monkeypatch, fail)
    with pytest.raises(Fault):
        ask(prepared)
    Asked(monkeypatch, right)
    assert ask(prepared).cached is False


@pytest.mark.parametrize(("meta", "expected"), [({"labels": ["b", "a"]}, ("b", "a")), ({"max_seq_length": 8}, None)])
def test_a_version_knows_the_labels_that_it_was_trained_on(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: dict[str, object], expected: object
) -> None:
    (tmp_path / "hone.json").write_text(json.dumps(meta))
    monkeypatch.setattr(served, "files_of", lambda home, registered: tmp_path)
    assert served.known_labels(home, version()) == expected
