"""What every recipe section is built from: strict frozen models, plain unions, locations.

Unions are validated by their discriminator, so that a wrong field gives one precise error, and published as a plain
`anyOf`, because that is what Prefect's forms can draw (a tab per member, named by its title).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schemas.errors import EnvironmentMistake, Problem

if TYPE_CHECKING:
    from schemas.recipe import Recipe

FAMILIES_GROUP = "hone.families"
PACKAGE_SCHEME = "package://"
PYTHON_SCHEME = "python://"
REGISTRY_SCHEME = "models:/"
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[1-9][0-9]*)")
"""A version in the MLflow registry."""
READABLE_SCHEMES = ("package", "s3", "gs", "az", "https", "hf")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SECRET_NAME = re.compile(r"(?i)password|secret|token|signature|^sig$|access_?key|credential")
"""Parameter of a URL that opens a door, signed URLs of the clouds included."""
CREDENTIALS = "credentials"
"""Type of the error for a location that holds some: its value is not shown."""
UNITS = {"ms": "ms", "mb": "MB", "minutes": "minutes"}
"""Last word of a field's name → its unit."""
ABBREVIATIONS = {"id": "ID", "url": "URL"}
CALLABLE = re.compile(r"python://[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def title_of(name: str) -> str:
    """The name of a field, as people read it: `max_latency_ms` is Max latency (ms)."""
    *words, last = name.split("_")
    words += [f"({UNITS[last]})" if words and last in UNITS else last]
    title = " ".join(ABBREVIATIONS.get(word, word) for word in words)
    return title[:1].upper() + title[1:]


def _section_title(section: type) -> str:
    """The name of a section, as people read it: `TextClassificationTask` is Text classification."""
    return title_of("_".join(re.findall(r"[A-Z][a-z0-9]*", section.__name__.removesuffix("Task"))).lower())


def _field_title(name: str, field: object) -> str:
    del field
    return title_of(name)


class Section(BaseModel):
    """A recipe section: frozen, and an unknown field is an error. Titles are what forms show."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        model_title_generator=_section_title,
        field_title_generator=_field_title,
    )


class TaskSection(Section):
    """What a task family asks of a recipe's `task`. A family's own section derives from it.

    Attributes:
        metrics: Names the family can compare two models by, all better when higher; the first is the default.
        measures: Further names the gate can bound, higher or lower being better.
        abstains: Whether the family takes `evaluate.abstain_precision`.
        heeds: Which of `sampling`, `class_weights`, `label_smoothing`, `focal_gamma`, `packing` in `train`, and `shots`
            in `evaluate`, it goes by.
        word_lists: Roles whose columns may hold lists: the words of a text, and what belongs to each of them.
        learning_rates: Method → peak learning rate where the recipe names none, for tasks of other needs than most.
        learns_by: The metric that picks the best checkpoint, where the recipe's cannot be had while a model learns.
        late: Fields that matter only once there is a model, when it answers and is measured: no row, no token and no
            weight depends on them, so that another value retrains nothing.
    """

    metrics: ClassVar[tuple[str, ...]]
    measures: ClassVar[tuple[str, ...]] = ()
    heeds: ClassVar[tuple[str, ...]] = ()
    word_lists: ClassVar[tuple[str, ...]] = ()
    abstains: ClassVar[bool] = False
    learning_rates: ClassVar[Mapping[str, float]] = {}
    learns_by: ClassVar[str | None] = None
    late: ClassVar[tuple[str, ...]] = ()
    family: str

    @property
    def taught(self) -> Self:
        """The section as far as rows, tokens and weights depend on it: what is `late` is left out."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in self.late})

    def notes(self) -> dict[str, Any]:
        """What `late` adds to the meta once there is a model, as JSON values."""
        return {}

    def columns(self) -> dict[str, str]:
        """Role → name of the source's column, for every column the family reads."""
        raise NotImplementedError

    def parts(self) -> dict[str, str]:
        """Part → name of the source's column, where the columns of `columns` are composed of others when collected."""
        return {}

    def misfits(self, recipe: Recipe) -> list[str]:
        """What else of the recipe does not fit the task: the field, why, and what to set it to, each in a sentence."""
        if recipe.evaluate.abstain_precision is not None and not self.abstains:
            return [f"evaluate.abstain_precision is not for {self.family}: leave it out"]
        return []


class PlainUnion:
    """Annotation: publish a discriminated union as `anyOf`, and accept the bare tag for a member with defaults."""

    def __init__(self, discriminator: str) -> None:
        self.discriminator = discriminator

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._from_tag, handler(source))

    def _from_tag(self, value: object) -> object:
        return {self.discriminator: value} if isinstance(value, str) else value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        published = handler(schema)
        published.pop("discriminator", None)
        if "oneOf" in published:
            published["anyOf"] = published.pop("oneOf")
        return published


class OrWord:
    """Annotation: a number, or one word in its place, so that a wrong value gives the error of the number alone."""

    def __init__(self, word: str, number: Any) -> None:
        self.word, self.number = word, number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._validated, handler.generate_schema(self.number))

    def _validated(self, value: object, number: Callable[[object], object]) -> object:
        return value if value == self.word else number(value)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"const": self.word, "type": "string"}, handler(schema)]}


class FamilyUnion:
    """Annotation: the union of the sections of all installed task families, told apart by `family`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        sections = {name: load_family(name).section for name in family_names()}
        return core_schema.tagged_union_schema(
            {name: handler.generate_schema(section) for name, section in sections.items()}, discriminator="family"
        )


@cache
def _family_entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=FAMILIES_GROUP), key=lambda p: p.name)}


def family_names() -> tuple[str, ...]:
    """Names of all installed task families, sorted."""
    return tuple(_family_entry_points())


@cache
def load_family(name: str) -> Any:
    """The family registered under `name` by this or another package; `tasks.families.Family` says what it offers.

    Raises:
        EnvironmentMistake: The package that registered it does not import.
    """
    point = _family_entry_points()[name]
    try:
        return point.load()()
    except (ImportError, AttributeError, TypeError) as error:
        owner = point.dist.name if point.dist else "an installed package"
        raise EnvironmentMistake(
            Problem(
                f"entry point {FAMILIES_GROUP}", name, f"{owner} does not load: {error}", f"repair or remove {owner}"
            )
        ) from error


def _resolve(value: str, info: ValidationInfo) -> str:
    """A relative path is relative to the recipe's folder, which the loader passes as context."""
    folder = (info.context or {}).get("folder")
    if "://" in value or folder is None:
        return value
    return str((Path(folder) / Path(value).expanduser()).resolve())


def _registered_version(value: str) -> str:
    """A registered model is named with its version: a recipe means the same model tomorrow."""
    if not value.startswith(REGISTRY_SCHEME) or REGISTERED.fullmatch(value):
        return value
    name, at, _ = value.removeprefix(REGISTRY_SCHEME).partition("@")
    if at:
        raise ValueError(f"an alias moves: name a version, such as {REGISTRY_SCHEME}{name}/3")
    raise ValueError(f"must be {REGISTRY_SCHEME}<name>/<version>, the version a whole number")


def _resolve_model(value: str, info: ValidationInfo) -> str:
    """A base model is a path when it looks like one or exists beside the recipe; else it is a hub name."""
    folder = (info.context or {}).get("folder")
    looks_local = value.startswith((".", "/", "~")) or (folder is not None and (Path(folder) / value).exists())
    return _resolve(value, info) if looks_local else value


def _readable_scheme(value: str) -> str:
    scheme = value.split("://", 1)[0] if "://" in value else ""
    if scheme == "http" and urlsplit(value).hostname not in LOOPBACK:
        raise ValueError("must be https://, or what was read may not be what was sent")
    if scheme not in {"", "http", *READABLE_SCHEMES}:
        known = ", ".join(f"{name}://" for name in READABLE_SCHEMES)
        raise ValueError(f"must be a local path or one of {known}, not {scheme}://")
    return value


def _no_credentials(value: str) -> str:
    """A recipe is shown, logged and committed: what opens a door does not belong into it."""
    if "://" not in value:
        return value
    parts = urlsplit(value)
    secret = sorted(name for name, _ in parse_qsl(parts.query) if SECRET_NAME.search(name))
    if parts.password is not None or ("@" in parts.netloc and parts.scheme in READABLE_SCHEMES) or secret:
        raise PydanticCustomError(CREDENTIALS, "holds credentials")
    return value


def _database_scheme(value: str) -> str:
    if "://" not in value:
        raise ValueError("must be a SQLAlchemy URL, such as postgresql+psycopg://host/database or sqlite:///rows.db")
    return value


def _resolve_database(value: str, info: ValidationInfo) -> str:
    """The file of an SQLite URL is relative to the recipe's folder."""
    prefix = "sqlite:///"
    if not value.startswith(prefix) or value in {prefix, prefix + ":memory:"}:
        return value
    return prefix + _resolve(value.removeprefix(prefix), info)


def _python_scheme(value: str) -> str:
    if not CALLABLE.fullmatch(value):
        raise ValueError(f"must be {PYTHON_SCHEME}<module>:<function>")
    return value


def _one_or_several(value: object) -> object:
    """One location needs no list around it."""
    return (value,) if isinstance(value, str) else value


def _numbers_as_text(value: object) -> object:
    """A label written as a bare YAML number is meant as its text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Location = Annotated[str, AfterValidator(_readable_scheme), AfterValidator(_no_credentials), AfterValidator(_resolve)]
Locations = Annotated[tuple[Location, ...], BeforeValidator(_one_or_several)]
DatabaseUrl = Annotated[
    str, AfterValidator(_database_scheme), AfterValidator(_no_credentials), AfterValidator(_resolve_database)
]
CallableLocation = Annotated[str, AfterValidator(_python_scheme)]
ModelLocation = Annotated[str, AfterValidator(_registered_version), AfterValidator(_resolve_model)]
Label = Annotated[str, BeforeValidator(_numbers_as_text)]
