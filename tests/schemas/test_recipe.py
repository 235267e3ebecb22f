from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from pydantic import ValidationError

from schemas import base
from schemas.errors import EnvironmentMistake, Mistake, Problem, RecipeError
from schemas.recipe import LEARNING_RATES, Recipe, Train
from schemas.stages import STAGES, Stage
from tasks.families.text_classification import TextClassificationTask


@pytest.fixture(scope="module")
def schema():
    return Recipe.model_json_schema()


def sections(schema):
    return [schema, *schema["$defs"].values()]


def test_unions_are_published_as_plain_any_of_for_the_form(schema):
    published = json.dumps(schema)
    assert "discriminator" not in published
    assert "oneOf" not in published
    assert [
        len(schema["$defs"]["Train"]["properties"]["method"]["anyOf"]),
        "anyOf" in schema["properties"]["task"],
    ] == [8, True]


def test_every_field_has_a_description_for_the_form(schema):
    bare = [
        f"{section.get('title')}.{name}"
        for section in sections(schema)
        for name, field in section.get("properties", {}).items()
        if "description" not in field and name not in {"kind", "family"} and "$ref" not in field
    ]
    assert bare == []


def test_the_stages_are_said_once():
    from typing import get_args

    assert get_args(Stage) == STAGES


def test_a_recipe_survives_json_and_comes_back_equal(tmp_path):
    recipe = minimal(
        train={"method": {"kind": "lora", "r": 4}}, task={"family": "text-classification", "labels": ["a", "b"]}
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_warm_up_is_given_one_way_and_a_recipe_of_it_survives_json():
    for warm_up in ({}, {"warmup_ratio": 0.1}, {"warmup_steps": 5}):
        recipe = minimal(train=warm_up)
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_balanced_sampling_needs_no_word_about_class_weights():
    assert minimal(train={"sampling": "balanced"}).train.class_weights == "auto"
    assert minimal(train={"sampling": "balanced", "class_weights": "none"}).train.sampling == "balanced"


@pytest.mark.parametrize(
    ("name", "value"),
    [("sampling", "balanced"), ("class_weights", "sqrt"), ("label_smoothing", 0.1), ("focal_gamma", 2.0)],
)
def test_what_a_family_does_not_heed_is_refused(monkeypatch, name, value):
    assert getattr(minimal(train={name: value}).train, name) == value
    monkeypatch.setattr(TextClassificationTask, "heeds", ())
    with pytest.raises(ValidationError, match=f"train.{name} is {value!r}: text-classification has no classes"):
        minimal(train={name: value})
    assert minimal(train={"class_weights": "none"}).train.class_weights == "none"


def test_packing_and_examples_are_for_models_that_write():
    with pytest.raises(ValidationError, match=r"train\.packing is True: text-classification writes no texts"):
        minimal(train={"packing": True})
    with pytest.raises(ValidationError, match=r"evaluate\.shots is 3: text-classification writes no texts"):
        minimal(evaluate={"shots": 3})
    assert minimal(train={"packing": False}).train.packing is False


@pytest.mark.parametrize(
    ("task", "method", "rate"),
    [
        ("causal-lm", None, 2e-5), ("causal-lm", "lora", 5e-4), ("preference", {"kind": "lora", "r": 4}, 5e-5),
        ("text-classification", "lora", 1.5e-3), ("text-classification", None, 5e-5),
    ],
)  # fmt: skip
def test_a_rate_that_is_not_named_fits_the_task_and_the_method(task, method, rate):
    train = {} if method is None else {"method": method}
    clean = {"collapse_whitespace": False}
    made = minimal(task={"family": task}, train=train, clean=clean)
    assert made.train.learning_rate == rate
    assert Recipe.model_validate(made.model_dump(mode="json")) == made
    assert (
        minimal(task={"family": task}, train=train | {"learning_rate": 7e-3}, clean=clean).train.learning_rate == 7e-3
    )


def test_a_stride_is_no_matter_where_no_windows_are_made():
    assert minimal(tokenize={"max_seq_length": 8}).tokenize.stride == 32
    assert minimal(tokenize={"max_seq_length": 8, "overlong": "window", "stride": 5}).tokenize.stride == 5


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        minimal().train.epochs = 3
    assert Train().epochs is None


def minimal(**sections):
    return Recipe.model_validate(
        {"name": "r", "task": {"family": "text-classification"}, "model": {"base": "b"},
         "collect": {"source": {"kind": "csv", "path": "x.csv"}}} | sections
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"split": {"kind": "official"}}, "split.kind 'official' needs"),
        ({"collect": {"source": {"kind": "csv", "path": "x", "test_path": "y"}}}, "brings its own test rows"),
        ({"split": {"kind": "hash", "test": 0.5, "validation": 0.5}}, "at least 0.1 must be left to train"),
        ({"gate": {"thresholds": [{"metric": "rouge", "at_least": 0.1}]}}, "gate.thresholds.0.metric is 'rouge'"),
        ({"train": {"method": "dora", "layer_decay": 0.9}}, r"method 'dora' changes none of it: .* use full, freeze"),
        (
            {"task": {"family": "regression"}, "evaluate": {"abstain_precision": 0.9}},
            "evaluate.abstain_precision is not for regression: leave it out",
        ),
        ({"tokenize": {"overlong": "window", "max_seq_length": 34}}, r"stride \(32\) must be less than 32"),
        (
            {"train": {"warmup_ratio": 0.1, "warmup_steps": 5}},
            r"warmup_ratio \(0.1\) and warmup_steps \(5\) exclude each",
        ),
        (
            {"train": {"schedule": "warmup-stable-decay", "warmup_ratio": 0.9}},
            "are 1.1 of the steps together: at most 1",
        ),
        ({"train": {"sampling": "balanced", "class_weights": "sqrt"}}, "'balanced' and class_weights 'sqrt' make up"),
    ],
)
def test_rules_across_fields(sections, message):
    with pytest.raises(ValidationError, match=message):
        minimal(**sections)


@pytest.mark.parametrize("kind", ["full", "lora", "rslora", "dora", "qlora", "ia3", "freeze", "bitfit"])
def test_a_method_is_named_by_its_tag_alone_and_brings_a_learning_rate_that_fits(kind):
    train = minimal(train={"method": kind}).train
    assert [train.method.kind, train.learning_rate] == [kind, {"full": 5e-5, **LEARNING_RATES}[kind]]
    assert minimal(train={"method": {"kind": kind}}).train == train
    assert minimal(train={"method": kind, "learning_rate": 3e-4}).train.learning_rate == 3e-4
    assert Train.model_validate(train.model_dump(mode="json")) == train


@pytest.mark.parametrize("kind", ["full", "freeze", "bitfit"])
def test_layers_of_pretrained_weights_may_learn_at_their_own_rates(kind):
    assert minimal(train={"method": kind, "layer_decay": 0.9}).train.layer_decay == 0.9


FAMILY = """
from typing import ClassVar, Literal
from schemas.base import TaskSection

class EchoTask(TaskSection):
    \"\"\"Says it again.\"\"\"
    metrics: ClassVar[tuple[str, ...]] = ("exact",)
    family: Literal["echo"] = "echo"
    loudness: int = 3
    \"\"\"In decibels.\"\"\"
    def columns(self):
        return {"text": "text"}

class Echo:
    section = EchoTask
"""


def test_another_package_adds_a_family_by_an_entry_point_and_the_form_offers_it(tmp_path):
    (tmp_path / "echo_family.py").write_text(FAMILY)
    info = tmp_path / "echo_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hone.families]\necho = echo_family:Echo\n")
    script = f"""
import sys, json
sys.path.insert(0, {str(tmp_path)!r})
from schemas.recipe import Recipe
from schemas.loading import validate_recipe
titles = [ref["$ref"].rsplit("/")[-1] for ref in Recipe.model_json_schema()["properties"]["task"]["anyOf"]]
recipe = validate_recipe({{"name": "r", "task": {{"family": "echo", "loudness": 5}}, "model": {{"base": "b"}},
                          "collect": {{"source": {{"kind": "csv", "path": "x.csv"}}}}}})
print(json.dumps([titles, recipe.task.loudness, recipe.metric]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    titles, loudness, metric = json.loads(done.stdout)
    assert {"EchoTask", "TextClassificationTask"} <= {*titles}
    assert (loudness, metric) == (5, "exact")


def test_a_family_that_does_not_import_is_named(monkeypatch):
    broken = EntryPoint("broken", "no_such_module:Family", "hone.families")
    monkeypatch.setattr(base, "_family_entry_points", lambda: {"broken": broken})
    base.load_family.cache_clear()
    with pytest.raises(EnvironmentMistake, match=r"hone\.families = 'broken': .*No module named 'no_such_module'"):
        base.load_family("broken")
    base.load_family.cache_clear()


def test_a_mistake_crosses_a_process_border_with_its_kind_and_problems():
    mistake = RecipeError(
        [Problem("a.b", {1, 2}, "is wrong", "mend it", 3), Problem("c", None, "is missing", "add it")]
    )
    there = Mistake.from_dict(json.loads(json.dumps(mistake.as_dict())))
    assert type(there) is RecipeError
    assert str(there) == "line 3: a.b = '{1, 2}': is wrong; mend it\nc: is missing; add it"
