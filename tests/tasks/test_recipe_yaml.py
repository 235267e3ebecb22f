from __future__ import annotations

from pathlib import Path

import pytest

from schemas.loading import load_recipe
from tasks.recipe_yaml import edited, written
from tasks.space import value_of, with_values

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "deployments").glob("*.yaml"))
RECIPES = [file for file in SHIPPED if file.name != "prefect.yaml"]
TEXT = """\
# On top.
name: tickets # of the shop
task: {family: text-classification}
collect: {source: {kind: csv, path: rows.csv}}
model: {base: ./base}

train:
  method: lora
  # Why so small?
  learning_rate: 1.0e-4 # measured

  epochs: 2

# Below.
gate: {beat_baseline: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tickets.yaml").write_text(TEXT)
    return tmp_path / "tickets.yaml"


def test_a_file_keeps_its_comments_and_says_what_was_there_before(file: Path) -> None:
    found = edited(file, {"train.learning_rate": (1e-4, 3e-4), "train.epochs": (2, 3)})
    assert "  learning_rate: 0.0003 # tuned; was 0.0001; measured\n\n" in found
    assert "  epochs: 3 # tuned; was 2\n\n# Below.\n" in found
    unchanged = [line for line in TEXT.splitlines() if "learning_rate" not in line and "epochs" not in line]
    assert [line for line in found.splitlines() if line in unchanged] == unchanged
    file.write_text(found)
    assert load_recipe(file).train.learning_rate == 3e-4


def test_sections_are_made_where_there_is_none_and_a_bare_method_becomes_one(file: Path) -> None:
    found = edited(file, {"train.method.r": (16, 32), "tokenize.max_seq_length": (512, 64)})
    file.write_text(found)
    recipe = load_recipe(file)
    assert recipe.train.method.model_dump()["r"] == 32
    assert recipe.tokenize.max_seq_length == 64
    assert "max_seq_length: 64 # tuned; was 512" in " ".join(found.split())


def test_another_method_does_not_keep_the_learning_rate_of_the_one_before(file: Path) -> None:
    file.write_text(edited(file, {"train.method": ("lora", "bitfit")}))
    assert load_recipe(file).train.learning_rate == 3e-3


def test_a_section_in_one_line_is_commented_as_a_whole(file: Path) -> None:
    found = edited(file, {"gate.beat_baseline": (False, True)})
    assert "gate: {beat_baseline: true} # tuned; beat_baseline was false" in " ".join(found.split())


@pytest.mark.parametrize("shipped", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_is_written_out_is_the_same_recipe(shipped: Path, tmp_path: Path) -> None:
    recipe = load_recipe(shipped)
    rate = recipe.train.learning_rate
    changes = {"train.learning_rate": (rate, 2 * rate), "train.schedule": (recipe.train.schedule, "cosine")}
    wanted = with_values(recipe, {field: after for field, (_, after) in changes.items()})
    file = tmp_path / "written.yaml"
    file.write_text(written(wanted, changes, "Found."))
    assert load_recipe(file) == wanted
    text = file.read_text()
    assert text.startswith("# Found.\n")
    assert text.count("# tuned; was") == len(changes)
    assert "weight_decay" not in text or value_of(recipe, "train.weight_decay") != 0.01, "defaults are left out"
