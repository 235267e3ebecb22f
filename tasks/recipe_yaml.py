"""Recipes written out as YAML for people: what is not said is the default, and what was changed has a comment."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from schemas.errors import Problem, RecipeError
from schemas.recipe import Recipe
from tasks.space import LEARNING_RATE, METHOD, kind_of, said

TAGS = ("kind", "family")
"""Fields that say which section of several this is; written even where they are the default."""
WIDTH = 120
Changes = Mapping[str, tuple[Any, Any]]
"""Field → value before and after."""


def written(recipe: Recipe, changes: Changes, head: str) -> str:
    """The whole recipe, in its own order; paths are absolute.

    Args:
        recipe: With the changes.
        changes: Commented with what was there before.
        head: Comment above all.
    """
    from ruamel.yaml.comments import CommentedMap

    document = _commented(_said_of(recipe), CommentedMap)
    for field, (before, _) in changes.items():
        _comment(document, field, before)
    document.yaml_set_start_comment(head)
    return _dumped(document)


def edited(file: Path, changes: Changes) -> str:
    """A recipe's file with other values of some fields; its comments and its order stay.

    Args:
        file: The recipe.
        changes: Commented with what was there before.

    Raises:
        RecipeError: The file has changed so much that a field's section is none any more.
    """
    from ruamel.yaml.comments import CommentedMap

    document = _yaml().load(file.read_text(encoding="utf-8-sig"))
    for field, (before, after) in changes.items():
        *sections, last = field.split(".")
        here = document
        for name in sections:
            inside = here.get(name)
            if isinstance(inside, str):  # the bare tag of a section
                inside = CommentedMap({"kind": inside})
            if inside is None:
                inside = CommentedMap()
            if not isinstance(inside, CommentedMap):
                raise RecipeError(Problem(field, str(inside), f"{name} in {file.name} is no section", "write one"))
            here[name] = inside
            here = inside
        here[last] = after
        if field == METHOD and kind_of(before) != kind_of(after) and LEARNING_RATE not in changes:
            here.pop("learning_rate", None)  # it was the other method's
        _comment(document, field, before)
    return _dumped(document)


def _said_of(section: BaseModel) -> dict[str, Any]:
    """What differs from the defaults, and tags."""
    found: dict[str, Any] = {}
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name in TAGS:
            found[name] = value
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            inside = _inside(value, plain[name])
            found[name] = inside if inside != {} else plain[name]
    return found


def _inside(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return _said_of(value)
    return [_inside(item, plain[place]) for place, item in enumerate(value)] if isinstance(value, tuple) else plain


def _commented(value: Any, kind: type) -> Any:
    """The same in ruamel's mappings, which comments hang on."""
    if isinstance(value, dict):
        made = kind()
        for name, inside in value.items():
            made[name] = _commented(inside, kind)
        return made
    return [_commented(item, kind) for item in value] if isinstance(value, list) else value


def _comment(document: Any, field: str, before: Any) -> None:
    """Say beside a field what was there before; beside the nearest section where it is written in one line."""
    names = field.split(".")
    here, levels = document, []
    for depth, name in enumerate(names):
        levels.append((here, name, ".".join(names[depth + 1 :])))
        here = here[name]
    above, name, inside = next((level for level in reversed(levels) if not _in_one_line(level[0])), levels[0])
    told = f"tuned; {inside} was {said(before)}" if inside else f"tuned; was {said(before)}"
    tokens = above.ca.items.get(name)
    after = tokens[2].value if tokens and tokens[2] else "\n"
    own, line_end, rest = after.partition("\n")  # blank lines and comments below hang on this line as well
    own = own.lstrip("# ")
    above.yaml_add_eol_comment(f"{told}; {own}" if own else told, name)
    above.ca.items[name][2].value += line_end + rest if rest else ""


def _in_one_line(node: Any) -> bool:
    return bool(node.fa.flow_style())


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.width = WIDTH
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _dumped(document: Any) -> str:
    stream = StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()
