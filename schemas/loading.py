"""From a YAML file and `--set` overrides to a recipe, or to every problem at once."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.base import CREDENTIALS, TaskSection, family_names, load_family
from schemas.errors import Problem, RecipeError
from schemas.recipe import Recipe

Key = tuple[str | int, ...]

SECTIONS = re.compile(r"(?m)^(task|collect|model):")
"""What a recipe has at the beginning of lines, and other YAML files of a project have not."""
REMEDIES = {
    "missing": "add it",
    "string_pattern_mismatch": "change it to fit",
    "less_than": "lower it",
    "less_than_equal": "lower it",
    "greater_than": "raise it",
    "greater_than_equal": "raise it",
    "bool_parsing": "write true or false",
    "float_parsing": "write a number, such as 0.1 or 3e-5",
    "float_type": "write a number, such as 0.1 or 3e-5",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number",
    "string_type": "write text; quote it if it looks like something else",
    "tuple_type": "write a list: [a, b]",
    "too_short": "add to the list",
    "model_type": "write a section with named fields",
    "model_attributes_type": "write a section with named fields",
}
"""What to do about each kind of error; the rule itself is pydantic's message."""


def find_recipes(project: Path) -> list[Path]:
    """The recipes in a project's `deployments/`, told from other YAML files by their sections."""
    files = sorted(p for p in (project / "deployments").glob("*") if p.suffix in {".yaml", ".yml"})
    return [file for file in files if len(set(SECTIONS.findall(file.read_text(errors="replace")))) == 3]


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file. Relative paths in it are relative to its folder.
        overrides: `dotted.key=value`, values as in YAML.

    Raises:
        RecipeError: With every problem found: dotted key, value, rule, remedy and line.
    """
    document = _parse(path)
    lines = _lines(document)
    data = _plain(document)
    if not isinstance(data, dict):
        raise RecipeError(
            Problem(path.name, data, "is not a recipe", "write name, task, collect and model; see the README")
        )
    for override in overrides:
        _apply(data, override)
    return validate_recipe(data, folder=path.resolve().parent, lines=lines)


def validate_recipe(
    data: Mapping[str, Any], *, folder: Path | None = None, lines: Mapping[Key, int] | None = None
) -> Recipe:
    """Validate parsed values; `load_recipe` says the rest."""
    try:
        return Recipe.model_validate(data, context={"folder": folder} if folder else None)
    except ValidationError as error:
        problems = [_problem(details, data, lines or {}) for details in error.errors(include_url=False)]
        raise RecipeError(sorted(problems, key=lambda problem: problem.line or 0)) from error


def _parse(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        remedy = (
            f"did you mean {path.parent / near[0]}?"
            if near
            else "name a recipe file, such as deployments/sentiment.yaml"
        )
        raise RecipeError(Problem("RECIPE", str(path), "no such file", remedy)) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise RecipeError(Problem("RECIPE", str(path), reason, "name a readable YAML file")) from error
    try:
        return YAML(typ="rt").load(text)  # YAML 1.2: `no` is text and 3e-5 a number; a repeated key is an error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        rule = " ".join((error.problem or str(error)).split())
        line = mark.line + 1 if mark else None
        raise RecipeError(Problem(path.name, "YAML", rule, "repair the line", line)) from error


def _lines(node: Any, key: Key = ()) -> dict[Key, int]:
    """Dotted key → 1-based line, from ruamel's marks."""
    found: dict[Key, int] = {}
    if hasattr(node, "lc") and node.lc.data:
        for name in node if isinstance(node, dict) else range(len(node)):
            position = node.lc.data.get(name) if isinstance(node.lc.data, dict) else None
            if position:
                found[(*key, name)] = position[0] + 1
            found |= _lines(node[name], (*key, name))
    return found


def _plain(node: Any) -> Any:
    """Built-in values instead of ruamel's, which remember how they were written."""
    if isinstance(node, dict):
        return {str(name): _plain(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one value by its dotted key, making sections on the way; list items by their number."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    dotted, equals, written = override.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError(
            Problem("--set", override, "must be KEY=VALUE", "write for example --set train.learning_rate=3e-5")
        )
    try:
        value = _plain(YAML(typ="rt").load(written)) if written.strip() else None
    except YAMLError as error:
        raise RecipeError(Problem(f"--set {dotted}", written, "is not a YAML value", "quote it")) from error
    *sections, last = dotted.strip().split(".")
    here: Any = data
    for name in sections:
        if isinstance(here, list):
            here = here[_index(dotted, name, here)]
        elif isinstance(here.get(name), dict | list):
            here = here[name]
        else:
            here[name] = {"kind": here[name]} if isinstance(here.get(name), str) else {}
            here = here[name]
    if isinstance(here, list):
        here[_index(dotted, last, here)] = value
    else:
        here[last] = value


def _index(dotted: str, name: str, items: list[Any]) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise RecipeError(Problem("--set", dotted, f"{name!r} is not one of the {len(items)} items", "count from 0"))
    return int(name)


def _problem(details: ErrorDetails, data: Mapping[str, Any], lines: Mapping[Key, int]) -> Problem:
    key = _without_tags(details["loc"], data)
    kind, rule, value = details["type"], details["msg"], details["input"]
    remedy = REMEDIES.get(kind, "change it to fit")
    if kind == "extra_forbidden":
        rule = "is not a field of the recipe"
        remedy = _did_you_mean(str(key[-1]), _fields_at(details["loc"][:-1]), "remove it")
    elif kind == "missing":
        rule, value = "is required", None
    elif kind == "literal_error":
        expected = details["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        rule = f"must be one of {expected}"
        remedy = _did_you_mean(str(value), expected.split(", "), "choose one of these")
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        name = details["ctx"]["discriminator"].strip("'")
        key = (*key, name)
        value = value.get(name) if isinstance(value, Mapping) else value
        tags = (
            family_names() if name == "family" else details["ctx"].get("expected_tags", "").replace("'", "").split(", ")
        )
        rule = f"must be one of {', '.join(tags)}" if any(tags) else "is required"
        remedy = _did_you_mean(str(value), tags, "choose one of these" if any(tags) else "add it")
    elif kind == CREDENTIALS:
        value, remedy = None, "name the place alone and put them into the environment"
    elif kind == "value_error":
        rule = str(details["ctx"]["error"])
        if isinstance(value, Mapping | BaseModel):  # a rule across fields names them and their values itself
            value, remedy = None, "change one of them"
    dotted = ".".join(str(part) for part in key) or "recipe"
    return Problem(dotted, value, rule[:1].lower() + rule[1:] if rule[:2] != "A " else rule, remedy, _line(key, lines))


def _line(key: Key, lines: Mapping[Key, int]) -> int | None:
    """Line of the key, or of the nearest section around it."""
    while key:
        if key in lines:
            return lines[key]
        key = key[:-1]
    return None


def _without_tags(location: Key, data: Any) -> Key:
    """The location as the user wrote it: pydantic puts the tag of a union member between a field and its parts."""
    key: list[str | int] = []
    here = data
    for part in location:
        if isinstance(here, Mapping) and part not in here and part in (here.get("kind"), here.get("family")):
            continue
        if isinstance(here, str) and (part == here or isinstance(part, int)):
            continue  # the bare tag stood for its section, or the only item for its list
        key.append(part)
        if isinstance(here, Mapping):
            here = here.get(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None
    return tuple(key)


def _did_you_mean(written: str, offered: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(written, list(offered), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else otherwise


def _fields_at(location: Key) -> tuple[str, ...]:
    """Names of the fields of the section at a location of a pydantic error, tags included."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        following: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                following += _models_in(model.model_fields[str(part)].annotation)
            elif part in {f.default for f in model.model_fields.values()}:
                following.append(model)
        models = following or models
    return tuple(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    if annotation is TaskSection:
        return tuple(load_family(name).section for name in family_names())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) in {Union, types.UnionType, Annotated, tuple}:
        return tuple(model for part in get_args(annotation) for model in _models_in(part))
    return ()
