"""Sentences from the documentation of installed libraries, for the recipe `code-names`: which words are of the code?

Who writes numpydoc marks parameters, values and the names of other things as code. The marks are taken off, and are
what has to be found again: `parameter` (one of this function), `value` (a literal), `name` (of another function, class
or attribute) and `code` (any other expression). Sentences of docstrings that mark nothing teach nothing and are left
out. The docstrings are read from the source files, without importing the libraries.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("numpy", "scipy", "pandas", "sklearn", "matplotlib")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
UNDERLINE = re.compile(r"^[^\n]+\n[-=~]{3,}$", re.MULTILINE)
NO_PROSE = re.compile(r">>>|^\.\. |\.\. math|::$|:math:|\|\||^[*+-] |^\[?\d+[.\]] |^[=-]{3,}", re.MULTILINE)
"""What is in a paragraph of examples, directives, formulas, lists and tables."""
MARK = re.compile(
    r"(?::[\w:]+:)?`(?!`)~?(?P<role>[^`<]+?)(?:\s*<[^`]*>)?`(?!`)_{0,2}"  # `name`, :func:`~module.name`
    r"|``(?P<literal>[^`]+)``"
    r"|(?<![\w*])\*(?P<emphasis>\w+)\*(?![\w*])"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*:])")
WORD = re.compile(r"\w+(?:[.'-]\w+)*|[^\w\s]")
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")
FEWEST_WORDS, MOST_WORDS = 5, 60


def rows(libraries: Sequence[str] = LIBRARIES) -> Iterator[dict[str, object]]:
    """One row for each sentence: words, tags, module, library."""
    for library in libraries:
        spec = find_spec(library)
        for folder in spec.submodule_search_locations or () if spec else ():
            for file in sorted(Path(folder).rglob("*.py")):
                path = file.relative_to(folder)
                if not {"tests", "_vendored", "externals"} & {*path.parts}:
                    module = ".".join([library, *path.with_suffix("").parts])
                    yield from _of_module(file, {"module": module, "library": library})


def versions(libraries: Sequence[str] = LIBRARIES) -> list[str]:
    """What the rows depend on."""
    return [version(DISTRIBUTIONS.get(library, library)) for library in libraries]


def _of_module(file: Path, about: dict[str, object]) -> Iterator[dict[str, object]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            document = inspect.cleandoc(ast.get_docstring(node) or "")
            for sentence in _sentences(document):
                words, tags = _tagged(sentence, _parameters(node, document))
                if FEWEST_WORDS <= len(words) <= MOST_WORDS:
                    yield {"words": words, "tags": tags, **about}


def _sentences(document: str) -> Iterator[str]:
    """The sentences of paragraphs of which some are marked."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\S[^\n]* : )|(?<= : )[^\n]+\n", UNDERLINE.sub("\n\n", document)):
        text = inspect.cleandoc(paragraph)
        if not NO_PROSE.search(text) and MARK.search(text):
            yield from SENTENCE_END.split(" ".join(text.split()))


def _parameters(node: ast.FunctionDef | ast.ClassDef, document: str) -> set[str]:
    """Names of the function's parameters; those of a class are in its docstring."""
    named = re.findall(r"^\*{0,2}(\w+) ?: \S", document, re.MULTILINE)
    if isinstance(node, ast.ClassDef):
        return set(named)
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {argument.arg for argument in every if argument} | set(named)


def _tagged(sentence: str, parameters: set[str]) -> tuple[list[str], list[str]]:
    """Words without marks, and the tag of each."""
    words: list[str] = []
    tags: list[str] = []
    place = 0
    for mark in MARK.finditer(sentence):
        _add(words, tags, sentence[place : mark.start()], None)
        inside = next(text for text in mark.groups() if text).strip()
        _add(words, tags, inside, _kind(inside, parameters))
        place = mark.end()
    _add(words, tags, sentence[place:], None)
    return words, tags


def _add(words: list[str], tags: list[str], text: str, kind: str | None) -> None:
    found = WORD.findall(text)
    words += found
    tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(found))]


def _kind(text: str, parameters: set[str]) -> str:
    if text.lstrip("*") in parameters:
        return "parameter"
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError):
        return "name" if NAME.fullmatch(text) else "code"
    return "value"
