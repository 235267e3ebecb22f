from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.base import family_names
from schemas.errors import RecipeError
from schemas.loading import find_recipes, load_recipe

SHIPPED = find_recipes(Path())
VALID = """\
name: demo
task:
  family: text-classification
  labels: [a, b]
collect:
  source: {kind: csv, path: rows.csv}
model:
  base: ./model
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).splitlines()


def is_recipe(path):
    return path.read_text().lstrip().startswith(("#", "name:")) and "task:" in path.read_text()


@pytest.mark.parametrize("path", [p for p in SHIPPED if is_recipe(p)], ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path):
    assert load_recipe(path).name == path.stem


BROKEN = {
    "an unknown family": (
        VALID.replace("text-classification", "text-clasification"),
        [f"line 3: task.family = 'text-clasification': must be one of {', '.join(family_names())}; "
         "did you mean text-classification?"],
    ),
    "a misspelt field": (
        VALID + "train: {learnign_rate: 0.1}\n",
        ["line 9: train.learnign_rate = 0.1: is not a field of the recipe; did you mean learning_rate?"],
    ),
    "a missing section": (
        VALID.replace("model:\n  base: ./model\n", ""),
        ["model: is required; add it"],
    ),
    "text for a number": (
        VALID + "train:\n  epochs: many\n",
        ["line 10: train.epochs = 'many': input should be a valid number, unable to parse string as a number; "
         "write a number, such as 0.1 or 3e-5"],
    ),
    "a number out of bounds": (
        VALID + "train:\n  warmup_ratio: 1.5\n",
        ["line 10: train.warmup_ratio = 1.5: input should be less than 1; lower it"],
    ),
    "a method that does not exist": (
        VALID + "train:\n  method: lorra\n",
        ["line 10: train.method.kind = 'lorra': must be one of full, lora, rslora, dora, qlora, ia3, freeze, bitfit; "
         "did you mean lora?"],
    ),
    "a field of another method": (
        VALID + "train:\n  method: {kind: full, r: 8}\n",
        ["line 10: train.method.r = 8: is not a field of the recipe; remove it"],
    ),
    "a metric of another task": (
        VALID + "evaluate: {metric: bleu}\n",
        ["recipe: evaluate.metric is 'bleu': text-classification has macro_f1, micro_f1, accuracy, precision, recall, "
         "mcc, balanced_accuracy, weighted_f1; change one of them"],
    ),
    "a threshold with two bounds": (
        VALID + "gate: {thresholds: [{metric: accuracy, at_least: 0.5, at_most: 0.9}]}\n",
        ["line 9: gate.thresholds.0: the bound of accuracy must be at_least or at_most; change one of them"],
    ),
    "a cost that no model can be chosen by": (
        VALID + "evaluate: {metric: ece}\n",
        ["recipe: evaluate.metric is 'ece': text-classification has macro_f1, micro_f1, accuracy, precision, recall, "
         "mcc, balanced_accuracy, weighted_f1; change one of them"],
    ),
    "abstaining without calibration": (
        VALID + "evaluate: {calibrate: false, abstain_precision: 0.9}\n",
        ["line 9: evaluate: abstain_precision needs calibrate: true; change one of them"],
    ),
    "slices by a column that is not kept": (
        VALID + "evaluate: {slices: {columns: [channel]}}\n",
        ["recipe: evaluate.slices.columns names channel, which collect.keep does not; change one of them"],
    ),
    "two environments of one name": (
        VALID + "registry: {environments: [{name: prod}, {name: prod}]}\n",
        ["line 9: registry: environments names prod more than once; change one of them"],
    ),
    "a metric unknown to the gate of an environment": (
        VALID + "registry: {environments: [{name: prod, gate: {thresholds: [{metric: bleu, at_least: 1}]}}]}\n",
        ["recipe: registry.environments.prod.gate.thresholds.0.metric is 'bleu': text-classification has macro_f1, "
         "micro_f1, accuracy, precision, recall, mcc, balanced_accuracy, weighted_f1, auroc, auprc, log_loss, brier, "
         "ece; change one of them"],
    ),
    "bounds in the wrong order": (
        VALID + "clean: {min_chars: 9, max_chars: 3}\n",
        ["line 9: clean: min_chars (9) must not exceed max_chars (3); change one of them"],
    ),
    "a repeated label": (
        VALID.replace("[a, b]", "[a, b, a]"),
        ["line 2: task: labels names a more than once; change one of them"],
    ),
    "a repeated key": (
        VALID + "name: again\n",
        ["line 9: recipe.yaml = 'YAML': found duplicate key \"name\" with value \"again\" (original value: \"demo\"); "
         "repair the line"],
    ),
    "no YAML": (
        "name: [demo\n",
        ["line 2: recipe.yaml = 'YAML': expected ',' or ']', but got '<stream end>'; repair the line"],
    ),
    "a source behind an unknown scheme": (
        VALID.replace("rows.csv", "ftp://host/rows.csv"),
        ["line 6: collect.source.path = 'ftp://host/rows.csv': must be a local path or one of package://, s3://, "
         "gs://, az://, https://, hf://, not ftp://; change it to fit"],
    ),
    "a password in a location, which is not repeated": (
        VALID.replace("rows.csv", "s3://key:hush@bucket/rows.csv"),
        ["line 6: collect.source.path: holds credentials; name the place alone and put them into the environment"],
    ),
    "a token in the second location": (
        VALID.replace("path: rows.csv", "path: [a.csv, 'https://host/b.csv?token=hush']"),
        ["line 6: collect.source.path.1: holds credentials; name the place alone and put them into the environment"],
    ),
    "a password in a database's address": (
        VALID.replace("kind: csv, path: rows.csv", "kind: sql, query: select 1, url: 'postgresql://me:hush@host/db'"),
        ["line 6: collect.source.url: holds credentials; name the place alone and put them into the environment"],
    ),
    "a split by time without times": (
        VALID + "split: {kind: time, validation_from: 2026-01-01, test_from: 2026-02-01}\n",
        ["recipe: split.kind 'time' needs collect.time_column; change one of them"],
    ),
    "a list": (
        "- name\n",
        ["recipe.yaml = ['name']: is not a recipe; write name, task, collect and model; see the README"],
    ),
    "nothing": ("", ["recipe.yaml: is not a recipe; write name, task, collect and model; see the README"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_gets_one_clear_line(write, name):
    text, expected = BROKEN[name]
    assert refusal(write(text)) == expected


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(write):
    path = write(
        VALID.replace("name: demo", "name: A B")
        + "train: {epochs: 0, learning_rate: x}\nsplit: {kind: hash, test: 2}\n"
    )
    found = [line.split(" = ")[0] for line in refusal(path)]
    assert found == ["line 1: name", "line 9: train.epochs", "line 9: train.learning_rate", "line 10: split.test"]


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write(VALID)
    assert refusal(tmp_path / "recipes.yaml") == [
        f"RECIPE = {str(tmp_path / 'recipes.yaml')!r}: no such file; did you mean {tmp_path / 'recipe.yaml'}?"
    ]


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.learning_rate=3e-5", lambda r: r.train.learning_rate, 3e-5),
        ("train.max_steps=7", lambda r: r.train.max_steps, 7),
        ("train.save_steps=2", lambda r: r.train.save_steps, 2),
        ("train.method=lora", lambda r: r.train.method.kind, "lora"),
        ("train.early_stopping_patience=null", lambda r: r.train.early_stopping_patience, None),
        ("task.labels=[x, y]", lambda r: r.task.labels, ("x", "y")),
        ("registry.promote=auto", lambda r: r.registry.promote, "auto"),
        ("gate.thresholds=[{metric: accuracy, at_least: 0.5}]", lambda r: r.gate.thresholds[0].at_least, 0.5),
    ],
)
def test_set_overrides_any_field(write, override, field, value):
    assert field(load_recipe(write(VALID), [override])) == value


def test_set_reaches_into_a_method_named_by_its_tag_and_into_lists(write):
    path = write(VALID + "train: {method: lora}\ngate: {thresholds: [{metric: accuracy, at_least: 0.1}]}\n")
    recipe = load_recipe(path, ["train.method.r=4", "gate.thresholds.0.at_least=0.9"])
    assert (recipe.train.method.r, recipe.gate.thresholds[0].at_least) == (4, 0.9)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.learning_rate",
            "--set = 'train.learning_rate': must be KEY=VALUE; write for example --set train.learning_rate=3e-5",
        ),
        ("train.foo=1", "train.foo = 1: is not a field of the recipe; remove it"),
        ("train.epochs=[1", "--set train.epochs = '[1': is not a YAML value; quote it"),
    ],
)
def test_a_wrong_override_gets_one_clear_line(write, override, expected):
    assert refusal(write(VALID), override) == [expected]


def test_labels_that_look_like_other_things_stay_what_they_look_like(write):
    recipe = load_recipe(write(VALID.replace("[a, b]", "[no, yes, 1]")))
    assert recipe.task.labels == ("no", "yes", "1")


def test_relative_paths_are_relative_to_the_recipe(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    recipe = load_recipe(write(VALID))
    assert recipe.collect.source.path == (str(tmp_path / "rows.csv"),)
    assert recipe.model.base == str(tmp_path / "model")


def test_a_hub_name_stays_a_hub_name(write):
    assert load_recipe(write(VALID.replace("./model", "org/encoder"))).model.base == "org/encoder"


@pytest.mark.timed
def test_a_bad_recipe_is_refused_in_under_a_second_without_loading_anything_heavy(write):
    script = f"""
import sys, time
began = time.monotonic()
from flows.cli import main
code = main(["check", {str(write(VALID + "train: {epochs: 0}"))!r}])
heavy = [m for m in ("torch", "transformers", "mlflow", "datasets", "prefect", "pandera", "polars") if m in sys.modules]
print(code, heavy, time.monotonic() - began < 1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 [] True"
    assert done.stderr.strip() == "hone: line 9: train.epochs = 0: input should be greater than 0; raise it"
