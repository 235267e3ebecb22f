"""The forms of "Custom run" in the Prefect UI: a JSON schema and default parameters, made for one deployment.

Both UIs draw what a JSON schema says, each with its own gaps. What is done here about them:

- The deployment's values are the defaults of every field at every depth; else a field that is emptied or reset would
  fall back to the recipe's general default.
- References are inlined, so that the same section can have other defaults at another place.
- Fields have positions: a PostgreSQL server forgets the order of a JSON object's keys.
- The UIs tell the members of a union apart by the names of their fields alone, and take the first of several that have
  all of them, however few those are when a tab has just been opened. So members with the same fields share a tab, and
  a member whose fields another one has too comes before it.
- A field that may be empty is an input box that may be empty, not two tabs. None is said by leaving it out: a form made
  here refuses null there.
- A number in whose place a word may stand is two tabs: it stays a number for those who start runs by the API.
- A moment is text: the date pickers would move it to the browser's time zone.

Titles and descriptions are the schemas'. What a JSON schema cannot say, such as rules across fields, the flow checks
when it starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema

from schemas.base import title_of
from schemas.recipe import Recipe

Schema = dict[str, Any]

CHANGED_MOST = ("tune", "train", "model", "evaluate", "gate", "registry", "retrain")
"""Sections that come first: what a person changes for one run; where the rows come from is a matter of the recipe."""
NUMBERS = frozenset({"number", "integer"})
SCALARS = frozenset({"string", "number", "integer", "boolean"})
MOMENT = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
MOMENT_EXAMPLE = "ISO 8601, such as 2026-01-31T08:00:00Z."
TAG = "Which of the tabs above this is."
SHARED_TAG = "Which of those that share this tab it is."
EMPTY = (None, "")
"""General defaults that an emptied field says as well."""
ABSENT: Any = object()
"""Stands for the value of a field that has none; None is one."""


def recipe_form(flow: Flow[..., Any], recipe: Recipe) -> tuple[Schema, dict[str, Any]]:
    """The form of a flow with a parameter `recipe`, for the deployment of one recipe.

    A run does not change when the recipe runs by itself, only `retrain` reads how a retraining begins, and only `tune`
    what is searched: sections that the flow has no use for are in neither, and have the recipe's general defaults in
    its runs.

    Returns:
        The schema of the flow's parameters, and the parameters: valid by the schema, and they make the same recipe.
    """
    unused = {"schedule", *({"retrain", "tune"} - {flow.name})}
    schema = _schema(flow)
    fields = schema["properties"]["recipe"]["properties"]
    order = [*CHANGED_MOST, *(name for name in fields if name not in CHANGED_MOST)]
    schema["properties"]["recipe"]["properties"] = {name: fields[name] for name in order if name not in unused}
    return _form(schema, {"recipe": recipe.model_dump(mode="json", exclude=unused)})


def form_of(
    flow: Flow[..., Any],
    choices: Mapping[str, Sequence[str]] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Schema:
    """The form of any flow.

    Args:
        flow: Its docstring's `Args:` describes the parameters.
        choices: Parameter → what it can be, for a dropdown; where that is nothing, it stays an input box.
        parameters: The deployment's.

    Returns:
        The schema of the flow's parameters.
    """
    schema = _schema(flow)
    for name, known in (choices or {}).items():
        if known and name in schema["properties"]:
            _offer(schema["properties"][name], known)
    return _form(schema, dict(parameters or {}))[0]


def _schema(flow: Flow[..., Any]) -> Schema:
    """The schema of a flow's parameters: without references, with titles, sections after boxes, the recipe last."""
    schema = parameter_schema(flow.fn).model_dump_for_openapi()
    definitions = schema.pop("definitions", {})
    inlined: Schema = _inlined(schema, definitions)
    titled = {name: {**field, "title": title_of(name)} for name, field in inlined["properties"].items()}
    ordered = sorted(titled.items(), key=lambda item: (item[0] == "recipe", "properties" in item[1]))
    return {**inlined, "properties": dict(ordered)}


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """The node with its definition in place of every reference; what stands beside the reference wins."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    beside = {name: _inlined(each, definitions) for name, each in node.items() if name != "$ref"}
    if "$ref" not in node:
        return beside
    return {**_inlined(definitions[node["$ref"].rpartition("/")[2]], definitions), **beside}


def _offer(field: Schema, known: Sequence[str]) -> None:
    """Make a dropdown of a text field."""
    text = next(each for each in (field, *field.get("anyOf", ())) if each.get("type") == "string")
    text["enum"] = list(known)


def _form(schema: Schema, parameters: dict[str, Any]) -> tuple[Schema, dict[str, Any]]:
    """The schema as a form; a parameter that the flow has a default for may be left out of a request."""
    drawn, valid = _drawn(schema, parameters)
    return {**drawn, "required": schema.get("required", [])}, valid


def _drawn(node: Schema, value: Any) -> tuple[Schema, Any]:
    """A node as the UIs draw it well, and the value as it is valid there.

    Args:
        node: A field of a schema without references.
        value: Becomes the default; where it is absent, the node's own default stays.

    Returns:
        The new node, and the value, absent where None is said by leaving the field out.
    """
    own = node.get("default", ABSENT)
    value = own if value is ABSENT else value
    node = {name: each for name, each in node.items() if name != "default"}
    if "anyOf" in node:
        return _union(node, own, value)
    if "properties" in node:
        return _section(node, value)
    if node.get("format") == "date-time":
        described = f"{node.get('description', '')} {MOMENT_EXAMPLE}".strip()
        node = {**node, "pattern": MOMENT, "description": described}
        del node["format"]
    if "properties" in node.get("items", ()):
        value = value if value is ABSENT else [_drawn(node["items"], each)[1] for each in value]
        node = {**node, "items": _drawn(node["items"], ABSENT)[0]}
    return (node if value is ABSENT else {**node, "default": value}), value


def _section(node: Schema, value: Any) -> tuple[Schema, Any]:
    """A section has no default, its fields have; which of them a request must hold follows from that."""
    value = value if isinstance(value, dict) else ABSENT
    fields, values, required = {}, {}, []
    for position, (name, field) in enumerate(node["properties"].items()):
        given = ABSENT if value is ABSENT else value.get(name, ABSENT)
        drawn, valid = _drawn(field, given)
        fields[name] = {**drawn, "position": position}
        if given is not ABSENT and valid is not ABSENT:
            values[name] = valid
        if name in node.get("required", ()) or (field.get("default", ABSENT) not in EMPTY and _stays_filled(drawn)):
            required.append(name)
    return {**node, "properties": fields, "required": required}, value if value is ABSENT else values


def _stays_filled(field: Schema) -> bool:
    """Whether a form without this field is a mistake: emptied, it would have the recipe's general default unseen."""
    if field.get("type") in SCALARS:
        return bool(field.get("default", "") != "")
    return "properties" in field or "anyOf" in field


def _union(node: Schema, own: Any, value: Any) -> tuple[Schema, Any]:
    """Tabs; or an input box: that may be empty, where the other member is null and the own default, or takes a word."""
    if all("const" in each or each.get("type") in NUMBERS for each in node["anyOf"]):
        return _number_or_word(node, value)
    members = [each for each in node["anyOf"] if each.get("type") != "null"]
    if len(members) > 1 or members == node["anyOf"]:
        return _tabs(node, value)
    (member,) = members
    given = ABSENT if value is None else value
    if own is None and member.get("type") in SCALARS:
        beside = {name: each for name, each in node.items() if name != "anyOf"}
        return _drawn({**member, **beside}, given)
    drawn, valid = _drawn({**member, "title": "Value"}, given)
    valid = None if value is None else valid
    node = {**node, "anyOf": [drawn, {"type": "null", "title": "None"}]}
    return (node if valid is ABSENT else {**node, "default": valid}), valid


def _number_or_word(node: Schema, value: Any) -> tuple[Schema, Any]:
    """A tab for the number and one for each word, a dropdown: V1 leaves a constant empty when its tab is opened."""
    words = [each["const"] for each in node["anyOf"] if "const" in each]
    beside = {name: each for name, each in node.items() if name != "anyOf"}
    if not words:
        return _drawn({**beside, "type": "number"}, value)
    tabs = [{"title": title_of(word), "type": "string", "enum": [word], "default": word} for word in words]
    bounds = next(each for each in node["anyOf"] if "const" not in each)
    node = {**beside, "anyOf": [{**bounds, "title": "Number", "type": "number"}, *tabs]}
    return (node if value is ABSENT else {**node, "default": value}), value


def _tabs(node: Schema, value: Any) -> tuple[Schema, Any]:
    if not all("properties" in each for each in node["anyOf"]):
        return (node if value is ABSENT else {**node, "default": value}), value
    tabs, valid = [], value
    for section in _told_apart(node["anyOf"]):
        drawn, _ = _drawn(section, ABSENT)
        filled = sum(_starts_filled(field) for field in drawn["properties"].values())
        if _fits(section, value):
            drawn, valid = _drawn(section, value)
        tabs.append((filled, drawn))
    tabs.sort(key=lambda tab: tab[0])
    return {**node, "anyOf": [drawn for _, drawn in tabs]}, valid


def _told_apart(members: Sequence[Schema]) -> list[Schema]:
    """Sections without two of the same fields: such are made one, and their tag is a dropdown."""
    alike: dict[str, list[Schema]] = {}
    for member in members:
        fields = {name: field for name, field in member["properties"].items() if "const" not in field}
        alike.setdefault(json.dumps(fields), []).append(member)
    return [_together(group) for group in alike.values()]


def _together(group: Sequence[Schema]) -> Schema:
    """The section that these are but for their tags; tags come first."""
    first, several = group[0], len(group) > 1
    tags, fields = {}, {}
    for name, field in first["properties"].items():
        if "const" not in field:
            fields[name] = field
            continue
        known = [each["properties"][name]["const"] for each in group]
        tags[name] = {"description": SHARED_TAG if several else TAG, **field, "enum": known}
        if several:
            del tags[name]["const"]
    titles, descriptions = ([each.get(what, "") for each in group] for what in ("title", "description"))
    joined = {"title": ", ".join(titles), "description": " ".join(descriptions)}
    return {**first, **joined, "properties": {**tags, **fields}}


def _starts_filled(field: Schema) -> bool:
    """Whether the UIs give the field a value by themselves, when its tab is opened."""
    return "default" in field or "properties" in field or "anyOf" in field


def _fits(section: Schema, value: Any) -> bool:
    """Whether the value has what this section has for tags."""
    if not isinstance(value, dict):
        return False
    known = {name: field["enum"] for name, field in section["properties"].items() if "enum" in field}
    return all(each in known[name] for name, each in value.items() if name in known)
