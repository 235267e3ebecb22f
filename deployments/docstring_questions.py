"""Questions on the documentation of installed libraries, for the recipe `parameters`: what type is a parameter of?

The contexts are the Parameters sections of numpydoc docstrings, read from the libraries' source files without importing
them; long sections in several parts. The answers are what the docstring says of a parameter's type. Every fifth
question or so is for a parameter that the function does not have.
"""

from __future__ import annotations

import ast
import inspect
import random
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("numpy", "scipy", "pandas", "sklearn", "matplotlib")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
SECTION = re.compile(r"^Parameters\n-{3,}\n(.*?)(?=^[^\n]+\n-{3,}$|\Z)", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^(?P<name>\*{0,2}\w+) : (?P<type>\S.*?)\s*$", re.MULTILINE)
PART_CHARS = 700
"""About how long a part of a section is."""
ASKED = 2
"""Parameters of a part that are asked for, at most."""
OTHERS = 4
"""One of so many answerable questions has a twin that is not."""


class Parameter(NamedTuple):
    """An entry of a section: its name, and from where to where its type is written."""

    name: str
    begin: int
    end: int


def rows(libraries: Sequence[str] = LIBRARIES) -> Iterator[dict[str, Any]]:
    """One row for each question: context, question, answers, function, library."""
    for library in libraries:
        found = list(_sections(library))
        names = sorted({parameter.name for _, section in found for parameter in _parameters(section)})
        for function, section in found:
            own = {parameter.name for parameter in _parameters(section)}
            for part in _parts(section):
                yield from _questions(library, function, part, [name for name in names if name not in own])


def versions(libraries: Sequence[str] = LIBRARIES) -> list[str]:
    """What the rows depend on."""
    return [version(DISTRIBUTIONS.get(library, library)) for library in libraries]


def _questions(library: str, function: str, part: str, others: Sequence[str]) -> Iterator[dict[str, Any]]:
    drawn = random.Random(part)  # noqa: S311  the same questions every time
    about = {"context": part, "function": function, "library": library}
    parameters = _parameters(part)
    for parameter in drawn.sample(parameters, min(ASKED, len(parameters))):
        answer = {"text": part[parameter.begin : parameter.end], "start": parameter.begin}
        yield {**about, "question": _question(parameter.name, function), "answers": [answer]}
        if others and drawn.randrange(OTHERS) == 0:
            yield {**about, "question": _question(drawn.choice(others), function), "answers": []}


def _question(parameter: str, function: str) -> str:
    return f"What type is parameter {parameter} of {function}?"


def _parameters(section: str) -> list[Parameter]:
    return [Parameter(found["name"], found.start("type"), found.end("type")) for found in ENTRY.finditer(section)]


def _parts(section: str) -> Iterator[str]:
    """Whole entries, as many as make up a part; one that is longer is cut."""
    starts = [found.start() for found in ENTRY.finditer(section)]
    begin = starts[0]
    for start, end in zip(starts, [*starts[1:], len(section)], strict=True):
        if end - begin > PART_CHARS and start > begin:
            yield section[begin:start].rstrip()[:PART_CHARS]
            begin = start
    yield section[begin:].rstrip()[:PART_CHARS]


def _sections(library: str) -> Iterator[tuple[str, str]]:
    """Name and Parameters section of every public function and class of a module that has one with types."""
    spec = find_spec(library)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).rglob("*.py")):
            path = file.relative_to(folder)
            if "tests" not in path.parts:
                yield from _documented(library, ast.parse(file.read_text(encoding="utf-8")))


def _documented(library: str, module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found = SECTION.search(inspect.cleandoc(ast.get_docstring(node) or ""))
            if found and ENTRY.search(found[1]):
                yield f"{library} {node.name}", found[1]
