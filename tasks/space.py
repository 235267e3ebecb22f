"""The space of a search: what of a recipe is tried, and the recipe that a point of it stands for.

What fits a task and a method is tried around what the recipe says, since that is where somebody, or a measurement, has
put it. Does not cover the search itself (`tasks.study`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from schemas.errors import Problem, RecipeError
from schemas.loading import validate_recipe
from schemas.recipe import BitFit, Freeze, FullFineTuning, Ia3, LowRank, Recipe, usual_learning_rate
from schemas.tune import Dimension, Range, Space
from tasks.course import EPOCHS, LEAST_STEPS, WARMUP_RATIO, course

AROUND = 4.0
"""Times the recipe's learning rate, up and down, that is tried."""
LEAST_SHARE = 0.25
"""Of the training rows, that trials learn from where the recipe does not say."""
METHOD, LEARNING_RATE = "train.method", "train.learning_rate"


def space_of(recipe: Recipe, rows: int) -> Space:
    """What is searched: the recipe's own space, or what fits its task and method; every value of it checked.

    Args:
        recipe: The job.
        rows: Training rows.

    Raises:
        RecipeError: A field is none of the recipe's, or a value is none of the field's.
    """
    space = recipe.tune.space or default_space(recipe, rows)
    problems = [problem for field in space for problem in _problems(recipe, field, space)]
    if problems:
        raise RecipeError(problems)
    return space


def default_space(recipe: Recipe, rows: int) -> Space:
    """What is worth trying of a recipe that does not say."""
    train, method = recipe.train, recipe.train.method
    batch = train.global_batch_size
    rate = usual_learning_rate(recipe.task, train) if train.learning_rate == "auto" else train.learning_rate
    space: Space = {
        LEARNING_RATE: Range(low=_rounded(rate / AROUND), high=_rounded(min(rate * AROUND, 1.0)), log=True),
        "train.global_batch_size": tuple(sorted({max(4, batch // 2), batch, 2 * batch})),
        "train.schedule": ("linear", "cosine"),
        "train.weight_decay": Range(low=0.001, high=0.1, log=True),
    }
    if train.max_steps is None:
        epochs = resolved(recipe, "train.epochs", rows)
        space["train.epochs"] = tuple(sorted({max(1.0, epochs / 2), epochs, 1.5 * epochs, 2 * epochs}))
    if train.warmup_steps is None:
        space["train.warmup_ratio"] = Range(low=0.0, high=0.2)
    return space | dict(_of_method(method, train.layer_decay)) | dict(_of_task(recipe))


def _of_method(method: object, layer_decay: float) -> Iterator[tuple[str, Dimension]]:
    if isinstance(method, FullFineTuning):
        yield "train.layer_decay", tuple(sorted({0.8, 0.9, 1.0, layer_decay}))
    elif isinstance(method, LowRank):
        yield "train.method.r", tuple(sorted({max(2, method.r // 2), method.r, 2 * method.r, 4 * method.r}))
        yield "train.method.dropout", tuple(sorted({0.0, 0.1, method.dropout}))
    elif isinstance(method, Freeze):
        yield "train.method.layers", tuple(sorted({1, 2, 3, 4, method.layers}))
    else:
        assert isinstance(method, Ia3 | BitFit), "every method has what fits it, or nothing"


def _of_task(recipe: Recipe) -> Iterator[tuple[str, Dimension]]:
    task, train = recipe.task, recipe.train
    if "class_weights" in task.heeds and train.sampling == "shuffled":
        yield "train.class_weights", ("none", "sqrt", "balanced")
    if "label_smoothing" in task.heeds:
        yield "train.label_smoothing", tuple(sorted({0.0, 0.1, train.label_smoothing}))
    if task.learns_by is None:  # models that write have no dropout, most of them
        rates = sorted({0.0, 0.1} | ({recipe.model.dropout} if recipe.model.dropout is not None else set()))
        yield "model.dropout", tuple(rates)


def share_of(recipe: Recipe, rows: int) -> float:
    """Share of the training rows that trials learn from: enough of them for `LEAST_STEPS` optimiser steps."""
    if recipe.tune.share is not None:
        return recipe.tune.share
    train = recipe.train
    wanted = LEAST_STEPS * train.global_batch_size / (train.epochs or EPOCHS) / max(1, rows)
    return min(1.0, max(LEAST_SHARE, round(wanted, 2)))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of some fields.

    Another method has its own learning rate, unless the values name one.

    Args:
        recipe: Stays as it is.
        values: Field, such as `train.method.r` → value, as YAML has it.

    Raises:
        RecipeError: They do not go together.
    """
    data = recipe.model_dump(mode="json")
    for field in sorted(values, key=lambda name: name != METHOD):  # a method first, then what is in it
        *sections, last = field.split(".")
        here = data
        for name in sections:
            here = here[name]
        here[last] = values[field]
    changed = METHOD in values and kind_of(values[METHOD]) != recipe.train.method.kind
    if changed and LEARNING_RATE not in values:
        del data["train"]["learning_rate"]
    return validate_recipe(data)


def kind_of(method: Any) -> Any:
    """Which method it is: written out, or by its name alone."""
    return method.get("kind") if isinstance(method, Mapping) else method


def value_of(recipe: Recipe, field: str) -> Any:
    """What the recipe says of a field, as YAML has it.

    Raises:
        KeyError: It has no such field.
    """
    here: Any = recipe.model_dump(mode="json")
    for name in field.split("."):
        if not isinstance(here, Mapping):
            raise KeyError(field)
        here = here[name]
    return here


def resolved(recipe: Recipe, field: str, rows: int) -> Any:
    """What a field comes to where the recipe leaves it to hone; what only the machine decides stays None."""
    value = value_of(recipe, field)
    if value is None and field == "train.epochs":
        steps = course(recipe.train, rows).steps
        return round(steps * recipe.train.global_batch_size / max(1, rows), 2)
    return WARMUP_RATIO if value is None and field == "train.warmup_ratio" else value


def applies(recipe: Recipe, field: str) -> bool:
    """Whether the recipe has this field: rank is nothing to full fine-tuning."""
    try:
        value_of(recipe, field)
    except KeyError:
        return False
    return True


def is_whole(recipe: Recipe, field: str) -> bool:
    """Whether a field takes whole numbers alone."""
    return float not in _types_of(recipe, field)


def methods_in(space: Space) -> tuple[Any, ...]:
    """The methods that a space tries, if it tries some."""
    tried = space.get(METHOD, ())
    return () if isinstance(tried, Range) else tried


def _types_of(recipe: Recipe, field: str) -> set[Any]:
    """The types that a field takes."""
    *sections, last = field.split(".")
    here: Any = recipe
    for name in sections:
        here = getattr(here, name)
    return _types_in(type(here).model_fields[last].annotation)


def _types_in(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return {annotation} if not inner else {found for part in inner for found in _types_in(part)}


def _problems(recipe: Recipe, field: str, space: Space) -> Iterator[Problem]:
    """What is wrong with a dimension: each of its values is put into the recipe, of each method that has the field."""
    key = f"tune.space.{field}"
    recipes = [recipe, *(with_values(recipe, {METHOD: method}) for method in methods_in(space) if _is_method(method))]
    having = [one for one in recipes if applies(one, field)]
    if not having:
        yield Problem(key, None, "is not a field of the recipe", "see docs/tuning.md for what can be searched")
        return
    dimension = space[field]
    if isinstance(dimension, Range) and not _is_number(value_of(having[0], field), having[0], field):
        yield Problem(key, str(dimension), "is no number", "list its values instead")
        return
    tried = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension
    for value in tried:
        try:
            with_values(having[0], {field: value})
        except RecipeError as error:
            yield Problem(key, value, error.problems[0].rule, error.problems[0].remedy)


def _is_method(method: Any) -> bool:
    """Whether it names a method; what does not is told of `train.method` itself."""
    return kind_of(method) in {section.model_fields["kind"].default for section in _method_sections()}


def _method_sections() -> tuple[type[BaseModel], ...]:
    from schemas.recipe import Method

    union, *_ = get_args(Method)
    return get_args(union)


def _is_number(value: Any, recipe: Recipe, field: str) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) or (value is None and bool({int, float} & _types_of(recipe, field)))


def said(value: Any) -> str:
    """A value of a field, in a word."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _rounded(value: float) -> float:
    """To two digits that count: a space is read by people."""
    return float(f"{value:.1e}")
