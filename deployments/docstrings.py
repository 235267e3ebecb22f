"""What functions do, and which parameters they take: rows out of the docstrings of installed packages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}\s*$", re.MULTILINE)
"""Head of a section, as numpydoc has it."""
NAMES = re.compile(r"^(?P<names>\*{0,2}[A-Za-z_]\w*(?:\s*,\s*\*{0,2}[A-Za-z_]\w*)*)\s*(?::.*)?$", re.MULTILINE)
"""The line of a Parameters section that names one parameter or several."""

NOTES = re.compile(r"^\.\. (?:deprecated|versionadded|versionchanged)::.*(?:\n(?:[ \t]+.*)?)*", re.MULTILINE)
"""Notes on versions: they name parameters, and SciPy writes a set of them, in another order in each process."""


def parameters(packages: Sequence[str], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a function or class does, without its Parameters section, and which of these parameters it has.

    Columns text, labels (a list) and package.

    Args:
        packages: Names of installed packages.
        labels: Parameters that count.
    """
    for package, doc in docstrings(packages):
        heads = list(SECTION.finditer(doc))
        place = next((i for i, head in enumerate(heads) if head["title"] == "Parameters"), None)
        if place is None:
            continue
        told = NOTES.sub("", doc[: heads[0].start()]).strip()
        end = heads[place + 1].start() if place + 1 < len(heads) else len(doc)
        taken = {
            name.strip(" *")
            for line in NAMES.finditer(doc[heads[place].end() : end])
            for name in line["names"].split(",")
        }
        if told:
            yield {"text": told, "labels": [label for label in labels if label in taken], "package": package}


def docstrings(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Package and docstring of every public function, class and method, each docstring once."""
    seen: set[str] = set()
    for package in packages:
        for module in _modules(package):
            for thing in _things(module):
                doc = inspect.getdoc(thing) or ""
                if doc and doc not in seen:
                    seen.add(doc)
                    yield package, doc


def _modules(package: str) -> Iterator[ModuleType]:
    """The package and what is in it, but for tests and private modules."""
    root = importlib.import_module(package)
    yield root
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda _: None):
            parts = found.name.split(".")
            if any(part.startswith("_") or part in {"tests", "testing", "conftest", "setup"} for part in parts):
                continue
            try:
                yield importlib.import_module(found.name)
            except (ImportError, RuntimeError):  # it needs what is not installed, or a screen
                continue


def _things(module: ModuleType) -> Iterator[Any]:
    for name in sorted(vars(module)):
        thing = getattr(module, name, None)
        if name.startswith("_") or not callable(thing):
            continue
        yield thing
        if inspect.isclass(thing):
            yield from (
                member for part, member in sorted(vars(thing).items()) if not part.startswith("_") and callable(member)
            )


def summaries(packages: Sequence[str], shortest: int = 120, longest: int = 1_500) -> Iterator[dict[str, Any]]:
    """What functions and classes do at length, and the line that sums it up. Columns text, summary and package.

    Args:
        packages: Names of installed packages.
        shortest: Fewest characters of a text.
        longest: Most.
    """
    for package, doc in docstrings(packages):
        first, _, rest = doc.partition("\n\n")
        heads = SECTION.search(rest)
        told = " ".join(NOTES.sub("", rest[: heads.start()] if heads else rest).split())
        summary = " ".join(first.split())
        if shortest <= len(told) <= longest and 15 <= len(summary) <= 200 and not summary.startswith(".."):
            yield {"text": told, "summary": summary, "package": package}
