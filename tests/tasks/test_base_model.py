from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schemas.errors import EnvironmentMistake, RecipeError
from schemas.loading import validate_recipe
from schemas.recipe import Model, Recipe
from tasks import base_model as module
from tasks.base_model import base_model, known_digest, labels_of, refuse_other_labels, registered_base
from tasks.home import Home
from tasks.registry import Registered
from tests.tiny_classifier import tiny_model

pytest_plugins = ("tests.mlflow_home",)

THIRD = Registered(name="tiny", version="3", run_id="r", model_id="m")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the labels bad and good."""
    return tiny_model(tmp_path_factory.mktemp("saved"), seed=1) / "model"


@pytest.fixture
def registered(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(module, "wanted", lambda home, name, version: THIRD)
    monkeypatch.setattr(module, "files_of", lambda home, version: saved)
    return Model(base="models:/tiny/3")


def test_a_registered_version_is_a_base_model_by_its_number(home: Home, saved: Path, registered: Model) -> None:
    assert registered_base(registered, home) == THIRD
    folder, digest = base_model(registered, home)
    assert folder == saved
    assert digest == base_model(Model(base=str(saved)), home)[1] == known_digest(registered, home)
    assert registered_base(Model(base=str(saved)), home) is None


def test_what_only_serving_reads_is_no_matter(home: Home, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    (other / "hone.json").write_text("{}")
    assert base_model(Model(base=str(other)), home)[1] == base_model(Model(base=str(saved)), home)[1]
    (other / "config.json").write_text("{}")
    assert base_model(Model(base=str(other)), home)[1] != base_model(Model(base=str(saved)), home)[1]


def test_a_hub_model_is_not_fetched_for_its_digest(home: Home) -> None:
    assert known_digest(Model(base="someone/something"), home) is None


def test_a_version_that_is_not_there_is_named(home: Home) -> None:
    with pytest.raises(
        EnvironmentMistake, match=r"model\.base = 'models:/tiny/3': nothing of that name is registered; "
    ):
        base_model(Model(base="models:/tiny/3"), home)


def test_files_that_are_gone_are_named(home: Home, registered: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(home: Home, version: Registered) -> Path:
        raise FileNotFoundError("tiny version 3 has no artifacts/model")

    monkeypatch.setattr(module, "files_of", gone)
    with pytest.raises(EnvironmentMistake, match=r"tiny version 3 has no artifacts/model: .*; name another version"):
        base_model(registered, home)


@pytest.mark.parametrize(("labels", "fits"), [(["bad", "good"], True), (["good", "bad"], False), (["bad"], False)])
def test_the_head_is_kept_for_the_same_labels_in_the_same_order(
    home: Home, saved: Path, registered: Model, tmp_path: Path, labels: list[str], fits: bool
) -> None:
    assert labels_of(saved) == ["bad", "good"]
    (tmp_path / "meta.json").write_text(json.dumps({"labels": labels}))
    refuse_other_labels(Model(base=str(saved)), home, lambda: tmp_path)
    if fits:
        refuse_other_labels(registered, home, lambda: tmp_path)
        return
    with pytest.raises(EnvironmentMistake, match="its head knows the labels bad, good; the rows have"):
        refuse_other_labels(registered, home, lambda: tmp_path)


def test_the_head_of_a_registered_model_learns_on(saved: Path) -> None:
    from safetensors.torch import load_file

    from tasks.families.text_classification import TextClassification

    model = TextClassification().load_model(str(saved), {"labels": ["bad", "good"], "pad_token_id": 0})
    kept = load_file(saved / "model.safetensors")
    assert all((value == kept[name]).all() for name, value in model.state_dict().items() if name in kept)
    assert "classifier.weight" in kept


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        ("models:/tiny@champion", "an alias moves: name a version, such as models:/tiny/3"),
        ("models:/tiny/latest", "must be models:/<name>/<version>, the version a whole number"),
        ("models:/tiny", "must be models:/<name>/<version>, the version a whole number"),
        ("models:/tiny/0", "must be models:/<name>/<version>, the version a whole number"),
    ],
)
def test_a_registered_model_without_a_version_is_refused(recipe: Recipe, base: str, rule: str) -> None:
    values = recipe.model_dump(mode="json")
    with pytest.raises(RecipeError) as refused:
        validate_recipe(values | {"model": {"base": base}})
    assert [str(problem) for problem in refused.value.problems] == [f"model.base = {base!r}: {rule}; change it to fit"]
    assert validate_recipe(values | {"model": {"base": "models:/tiny/12"}}).model.base == "models:/tiny/12"
