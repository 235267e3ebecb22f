from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prefect import flow
from prefect.utilities.schema_tools import validation
from pydantic import ValidationError

from flows.finetune import finetune
from flows.form import form_of, recipe_form
from flows.learning_curve import curve
from schemas.curve import MOST_SEEDS, SHARES
from schemas.loading import find_recipes, load_recipe, validate_recipe
from schemas.recipe import Recipe
from schemas.stages import STAGES, Stage
from schemas.tune import Tune

SHIPPED = find_recipes(Path(__file__).parents[2])
RICH: dict[str, Any] = {
    "name": "tickets",
    "task": {"family": "text-classification"},
    "collect": {
        "source": {
            "kind": "python",
            "callable": "python://shop.rows:tickets",
            "arguments": {"since": 2024, "deep": {"a": [1, None, "x"]}},
        },
        "time_column": "at",
        "keep": ["shop"],
        "corrections": "fixed.csv",
    },
    "clean": {"label_aliases": {"Pos": "positive"}, "expect": {"max_missing": {"text": 0.1}, "min_rows": 9}},
    "split": {
        "kind": "time",
        "validation_from": "2026-01-01T00:00:00",
        "test_from": "2026-02-01T00:00:00Z",
        "near_duplicates": {"threshold": 0.7},
    },
    "model": {"base": "./base", "dropout": 0.0},
    "train": {"method": {"kind": "lora", "r": 4}, "early_stopping_patience": None, "eval_steps": 7},
    "evaluate": {"slices": {"columns": ["shop"], "min_rows": 12}},
    "gate": {"thresholds": [{"metric": "accuracy", "at_least": 0.7}]},
    "registry": {"environments": [{"name": "staging", "gate": {"max_latency_ms": 20}}]},
    "retrain": {"start_from": "champion"},
    "schedule": {"retrain": {"cron": "0 3 * * 1"}},
}


@flow(name="retrain")
def retrain(recipe: Recipe, refresh: Stage | None = None) -> None:
    """Stands for the flow of that name.

    Args:
        recipe: The job.
        refresh: From where.
    """


@flow
def promote(model: str, version: int | None = None, to: str | None = None, override: bool = False) -> None:
    """Flat.

    Args:
        model: Which model.
        version: Which version.
        to: Which environment.
        override: Whatever the gate said.
    """


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return validate_recipe(RICH, folder=tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module", params=[*SHIPPED, "rich"], ids=lambda p: getattr(p, "stem", p))
def recipe(request: pytest.FixtureRequest, rich: Recipe) -> Recipe:
    return rich if request.param == "rich" else load_recipe(request.param)


@pytest.fixture(scope="module")
def form(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    return recipe_form(finetune, recipe)


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a schema, with its path."""
    for name, field in node.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    for tab in node.get("anyOf", ()):
        yield from fields(tab, f"{path}<{tab['title']}>")
    if isinstance(node.get("items"), dict):
        yield from fields(node["items"], f"{path}[]")


def tab_of(tabs: list[dict[str, Any]], value: dict[str, Any]) -> int:
    """The tab that both UIs open for a value: most field names in common, and of several the first."""
    common = [len(value.keys() & tab.get("properties", {}).keys()) for tab in tabs]
    return common.index(max(common))


def shown(node: dict[str, Any], value: Any, path: str = "recipe") -> Iterator[tuple[str, Any, Any]]:
    """Path, default and value of every field that has a value and no fields of its own."""
    if isinstance(value, dict) and "anyOf" in node:
        node = node["anyOf"][tab_of(node["anyOf"], value)]
    if "properties" in node:
        for name, each in value.items():
            yield from shown(node["properties"][name], each, f"{path}.{name}")
    else:
        yield path, node.get("default", "nothing"), value


def test_the_parameters_are_valid_and_make_the_same_recipe(form, recipe):
    schema, parameters = form
    jsonschema.validate(parameters, schema)
    validation.validate(parameters, schema, raise_on_error=True)  # what the server does
    back = Recipe.model_validate(json.loads(json.dumps(parameters))["recipe"])
    unread = {"schedule": back.schedule, "retrain": back.retrain, "tune": back.tune}
    assert back == recipe.model_copy(update=unread)


def test_a_number_in_whose_place_a_word_may_stand_is_a_tab_for_each_and_stays_a_number(form):
    schema, parameters = form
    field = schema["properties"]["recipe"]["properties"]["train"]["properties"]["learning_rate"]
    assert [each["title"] for each in field["anyOf"]] == ["Number", "Auto"]
    assert field["default"] == parameters["recipe"]["train"]["learning_rate"]
    assert isinstance(field["default"], float)
    for good in ("auto", 1e-4, 1):
        jsonschema.validate(good, field)
    for bad in ("automatic", "1e-4", "", None, 0, 5):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, field)


def test_what_is_searched_is_asked_where_a_search_is_and_nowhere_else(rich):
    from flows.tuning import tune

    searched = rich.model_copy(
        update={"tune": Tune.model_validate({"trials": 7, "space": {"train.weight_decay": {"low": 0, "high": 0.1}}})}
    )
    schema, parameters = recipe_form(tune, searched)
    jsonschema.validate(parameters, schema)
    assert Recipe.model_validate(json.loads(json.dumps(parameters))["recipe"]).tune == searched.tune
    assert "tune" not in recipe_form(finetune, searched)[1]["recipe"]
    assert next(iter(schema["properties"]["recipe"]["properties"])) == "tune"


def test_what_is_compared_is_asked_before_the_recipe_which_is_long(rich):
    from flows.comparing import compare

    schema, parameters = recipe_form(compare, rich)
    assert list(schema["properties"]) == ["then_run", "candidates", "recipe"]
    positions = [field["position"] for field in schema["properties"].values()]
    assert positions == sorted(positions), "a server that forgets the order of keys goes by these"
    jsonschema.validate(
        parameters | {"candidates": {"bases": ["./other"], "methods": ["full"], "share": 0.5, "seeds": 1}}, schema
    )


def test_every_field_at_every_depth_defaults_to_what_the_recipe_says(form):
    schema, parameters = form
    found = list(shown(schema["properties"]["recipe"], parameters["recipe"]))
    assert len(found) > 60
    assert [(path, default, value) for path, default, value in found if default != value] == []


def test_a_section_has_no_default_of_its_own(form):
    schema, _ = form
    assert [path for path, field in fields(schema) if "properties" in field and "default" in field] == []


def test_a_curve_asks_for_shares_and_seeds_beside_the_recipe(recipe):
    schema, parameters = recipe_form(curve, recipe)
    validation.validate({**parameters, "shares": [0.5, 1], "seeds": 2}, schema, raise_on_error=True)
    fields_of = schema["properties"]
    assert fields_of["shares"]["default"] == list(SHARES)
    assert (fields_of["seeds"]["default"], fields_of["seeds"]["maximum"]) == (1, MOST_SEEDS)
    with pytest.raises(validation.ValidationError):
        validation.validate({**parameters, "shares": [2]}, schema, raise_on_error=True)


def test_when_a_recipe_runs_by_itself_is_no_part_of_a_run(rich):
    sections = {f: recipe_form(f, rich)[0]["properties"]["recipe"]["properties"].keys() for f in (finetune, retrain)}
    assert sections[retrain] - sections[finetune] == {"retrain"}
    assert "schedule" not in sections[retrain]
    assert recipe_form(retrain, rich)[1]["recipe"]["retrain"]["start_from"] == "champion"
    assert recipe_form(finetune, rich)[1]["recipe"].keys().isdisjoint({"retrain", "schedule"})


def test_what_is_changed_most_comes_first_then_the_rest_in_the_order_of_the_pipeline(form):
    schema, _ = form
    at = {name: field["position"] for name, field in schema["properties"]["recipe"]["properties"].items()}
    order = ["train", "model", "evaluate", "gate", "registry", "name", "task", "collect", "clean", "split", "tokenize"]
    assert sorted(order, key=at.__getitem__) == order
    assert schema["properties"]["refresh"]["position"] < schema["properties"]["recipe"]["position"]


def test_positions_do_not_rest_on_the_order_of_keys(form):
    schema, _ = form
    sections = [section["properties"].values() for _, section in fields(schema) if "properties" in section]
    positions = [[field["position"] for field in section] for section in sections]
    assert positions == [[*range(len(section))] for section in sections]


def test_every_field_has_a_title_and_a_description(form):
    schema, _ = form
    bare = [p for p, f in fields(schema) if not f.get("title") or not f.get("description") or "_" in f["title"]]
    assert bare == []


def test_choices_are_dropdowns(form):
    schema, _ = form
    assert schema["properties"]["refresh"]["enum"] == list(STAGES)
    train = schema["properties"]["recipe"]["properties"]["train"]["properties"]
    assert train["schedule"]["enum"] == ["linear", "cosine", "polynomial", "warmup-stable-decay", "constant"]


def test_both_uis_find_the_tab_of_what_was_opened_and_of_what_was_filled_in(form):
    schema, _ = form
    unions = [(p, f["anyOf"]) for p, f in fields(schema) if "properties" in f.get("anyOf", [{}])[0]]
    assert {p.rpartition(".")[2] for p, _ in unions} == {"task", "source", "split", "method"}
    for path, tabs in unions:
        for place, tab in enumerate(tabs):
            opened = {n: 0 for n, f in tab["properties"].items() if {"default", "properties"} & f.keys()}
            assert [path, tab_of(tabs, opened), tab_of(tabs, tab["properties"])] == [path, place, place]


def test_sources_with_the_same_fields_share_a_tab(rich):
    schema, parameters = recipe_form(finetune, rich)
    tabs = schema["properties"]["recipe"]["properties"]["collect"]["properties"]["source"]["anyOf"]
    (files,) = (tab for tab in tabs if "parquet" in tab["properties"]["kind"]["enum"])
    assert [files["title"], files["properties"]["kind"]["enum"]] == [
        "JSON lines, Parquet, SQuAD, gettext",
        ["jsonl", "parquet", "squad", "gettext"],
    ]
    for kind in ("jsonl", "parquet", "gettext"):
        changed = json.loads(json.dumps(parameters))
        changed["recipe"]["collect"]["source"] = {"kind": kind, "path": ["rows"]}
        jsonschema.validate(changed, schema)
        assert Recipe.model_validate(changed["recipe"]).collect.source.kind == kind


def test_methods_with_the_same_fields_share_a_tab(rich):
    schema, parameters = recipe_form(finetune, rich)
    tabs = schema["properties"]["recipe"]["properties"]["train"]["properties"]["method"]["anyOf"]
    assert {tab["title"]: tab["properties"]["kind"]["enum"] for tab in tabs} == {
        "Full, IA3, BitFit": ["full", "ia3", "bitfit"],
        "Freeze": ["freeze"],
        "LoRA, rsLoRA, DoRA, QLoRA": ["lora", "rslora", "dora", "qlora"],
    }
    for kind in ("dora", "bitfit", "freeze"):
        changed = json.loads(json.dumps(parameters))
        changed["recipe"]["train"]["method"] = {"kind": kind, **({"layers": 3} if kind == "freeze" else {})}
        if kind == "dora":
            changed["recipe"]["train"]["method"] |= {"r": 8, "alpha": 16, "dropout": 0.1}
        jsonschema.validate(changed, schema)
        assert Recipe.model_validate(changed["recipe"]).train.method.kind == kind


@pytest.mark.parametrize(
    ("section", "field", "wrong"),
    [
        ("train", "epochs", -1),
        ("train", "learning_rate", 5),
        ("train", "schedule", "quadratic"),
        ("model", "base", None),
        ("clean", "max_chars", "many"),
        ("split", "validation_from", "tomorrow"),
        ("train", "learning_rat", 0.1),
    ],
)
def test_a_wrong_value_is_refused_before_there_is_a_run(rich, section, field, wrong):
    schema, parameters = recipe_form(finetune, rich)
    changed = {**parameters["recipe"], section: {**parameters["recipe"][section], field: wrong}}
    with pytest.raises(validation.ValidationError):
        validation.validate({"recipe": changed}, schema, raise_on_error=True)
    with pytest.raises(ValidationError):
        Recipe.model_validate(changed)


def test_an_emptied_field_is_refused_where_it_would_have_another_value_unseen(rich):
    schema, _ = recipe_form(finetune, rich.model_copy(update={"description": "Which team?"}))
    sections = schema["properties"]["recipe"]["properties"]
    assert {"decay_ratio", "learning_rate", "early_stopping_patience", "method"} <= {*sections["train"]["required"]}
    assert {"max_steps", "eval_steps"}.isdisjoint(sections["train"]["required"])
    assert sections["model"]["required"] == ["base", "trust_remote_code"]
    assert "description" not in schema["properties"]["recipe"]["required"]


def test_an_optional_field_is_one_box_and_left_out_means_none(rich):
    schema, parameters = recipe_form(finetune, rich)
    dropout = schema["properties"]["recipe"]["properties"]["model"]["properties"]["dropout"]
    assert [dropout["type"], dropout["default"], "anyOf" in dropout] == ["number", 0.0, False]
    del parameters["recipe"]["model"]["dropout"]
    jsonschema.validate(parameters, schema)
    assert Recipe.model_validate(parameters["recipe"]).model.dropout is None


def test_none_that_is_not_the_general_default_is_a_tab(rich):
    schema, parameters = recipe_form(finetune, rich)
    patience = schema["properties"]["recipe"]["properties"]["train"]["properties"]["early_stopping_patience"]
    assert [tab["title"] for tab in patience["anyOf"]] == ["Value", "None"]
    assert [patience["default"], parameters["recipe"]["train"]["early_stopping_patience"]] == [None, None]


def test_moments_dicts_and_paths_come_back_as_they_were(rich):
    schema, parameters = recipe_form(finetune, rich)
    values = parameters["recipe"]
    assert values["split"]["validation_from"] == "2026-01-01T00:00:00"
    assert values["collect"]["source"]["arguments"] == RICH["collect"]["source"]["arguments"]
    assert Path(values["model"]["base"]).is_absolute()
    assert Path(values["collect"]["corrections"][0]).is_absolute()
    assert "date-time" not in json.dumps(schema)


def test_a_flat_form_offers_what_is_known():
    schema = form_of(promote, choices={"model": ["sentiment", "tickets"], "to": ["prod"], "unheard": ["of"]})
    model, to = schema["properties"]["model"], schema["properties"]["to"]
    assert [model["enum"], to["enum"], to["type"]] == [["sentiment", "tickets"], ["prod"], "string"]
    assert [model["title"], model["description"]] == ["Model", "Which model."]
    assert schema["required"] == ["model"]
    validation.validate({"model": "tickets"}, schema, raise_on_error=True)
    with pytest.raises(validation.ValidationError):
        validation.validate({"model": "other"}, schema, raise_on_error=True)


def test_a_flat_form_without_anything_known_is_a_box():
    schema = form_of(promote, choices={"model": []}, parameters={"model": "sentiment"})
    assert "enum" not in schema["properties"]["model"]
    assert schema["properties"]["model"]["default"] == "sentiment"
