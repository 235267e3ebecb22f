"""Cache keys: a stage's output is found again only while everything that shaped it is the same.

A key covers the stage's name, the settings its function is called with, the keys of its inputs, the code of every
module of ours that the stage is made of, and the versions of the libraries that shape its output.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.digests import write_atomically
from tasks.home import Home

ROOMS = ("tasks", "schemas")

# Modules that move or describe results without shaping them. A change here reruns nothing.
PLUMBING = frozenset(
    {
        "schemas", "schemas.base", "schemas.data", "schemas.errors", "schemas.loading", "schemas.recipe",
        "schemas.records", "schemas.sources",
        "tasks", "tasks.base_model", "tasks.child", "tasks.context", "tasks.digests", "tasks.families", "tasks.home",
        "tasks.keys", "tasks.predict_job", "tasks.register", "tasks.registry", "tasks.sources.locations",
        "tasks.sources.remote", "tasks.stage", "tasks.store", "tasks.tracking", "tasks.worker",
    }
)  # fmt: skip


def stage_key(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | list[str]],
    *,
    modules: Iterable[str],
    libraries: Iterable[str],
    apart_from: Iterable[str] = (),
) -> tuple[str, dict[str, Any]]:
    """The key of a stage's output, and the ingredients it was made of.

    Args:
        stage: Name of the stage.
        settings: Every value the stage's function is given; pydantic models, and JSON values.
        inputs: Name → key of each input artifact, or of several.
        modules: Modules the stage starts from; what they import of ours is followed.
        libraries: Distributions whose version shapes the output.
        apart_from: Modules that those reach, but that this stage does not run.

    Returns:
        32 hexadecimal digits, and the ingredients for the manifest.
    """
    ingredients = {
        "stage": stage,
        "settings": {name: _plain(value) for name, value in sorted(settings.items())},
        "inputs": dict(sorted(inputs.items())),
        "code": code_digest(*modules, apart_from=tuple(apart_from)),
        "libraries": {name: _version(name) for name in sorted(libraries)},
    }
    return key_of(ingredients), ingredients


def remember_code(home: Home) -> None:
    """Keep what is read of modules in the home's cache, and read again only those that have changed."""
    _memory.open(home.digests / "code.json")


def key_of(ingredients: Mapping[str, Any]) -> str:
    """The key that these ingredients make."""
    canonical = json.dumps(ingredients, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@cache
def _version(library: str) -> str:
    return version(library)


@cache
def code_digest(*modules: str, apart_from: tuple[str, ...] = ()) -> str:
    """Digest of the meaning of `modules` and all they import of ours: comments and docstrings do not count."""
    found: dict[str, str] = {}
    ignored = PLUMBING.union(apart_from)
    waiting = [name for name in modules if name not in ignored]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        digest, imported = _module_digest(_source_path(name), name)
        found[name] = digest
        waiting += [other for other in imported if other not in ignored]
    _memory.save()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


def _source_path(module: str) -> Path:
    spec = _spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source for module {module!r}")
    return Path(spec.origin)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, found without importing anything: `importlib.util.find_spec` would import what is above it."""
    package = module.rpartition(".")[0]
    if not package:
        return importlib.util.find_spec(module)
    above = _spec(package)
    if above is None or above.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(module, above.submodule_search_locations)


@cache
def _module_digest(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's meaning, and what it imports of ours."""
    stamp = _stamp(path)  # before it is read: a change in between makes it be read again
    digest, named = _memory.find(path, stamp) or _memory.keep(path, stamp, *_read(path, module))
    return digest, tuple(name for name in named if _is_module(name))


def _read(path: Path, module: str) -> tuple[str, list[str]]:
    tree = ast.parse(path.read_bytes())
    named = sorted(_named(tree, module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _strip_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), named


class _Memory:
    """What was read of modules before, by size and modification time: reading all of them takes a quarter second."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._known: dict[str, dict[str, Any]] = {}
        self._news = False

    def open(self, file: Path) -> None:
        """Remember what a file holds, and what is read from now on."""
        if file == self._file:
            return
        self._file, self._known = file, {}
        with suppress(OSError, ValueError):  # before the first time
            found = json.loads(file.read_text())
            self._known = found["modules"] if found["python"] == sys.version else {}

    def find(self, path: Path, stamp: list[int]) -> tuple[str, list[str]] | None:
        """Digest and names of a module that has not changed since."""
        known = self._known.get(str(path))
        return (known["digest"], known["named"]) if known and known["stamp"] == stamp else None

    def keep(self, path: Path, stamp: list[int], digest: str, named: list[str]) -> tuple[str, list[str]]:
        """Remember them; returns them."""
        self._known[str(path)] = {"stamp": stamp, "digest": digest, "named": named}
        self._news = True
        return digest, named

    def save(self) -> None:
        """Write what is new, where a file is open."""
        if self._news and self._file is not None:
            write_atomically(self._file, json.dumps({"python": sys.version, "modules": dict(self._known)}))
            self._news = False


_memory = _Memory()


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _strip_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    node.body = [
        statement
        for statement in node.body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]


def _named(tree: ast.Module, module: str) -> set[str]:
    """What it imports of ours or of its own package when it runs, in functions included: modules, and names in them."""
    own = module.split(".", 1)[0]
    found: set[str] = set()
    for node in _running(tree):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            candidates = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in candidates:
            if name.split(".", 1)[0] in {*ROOMS, own}:
                found.add(name)
    return found


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node`, without what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def _is_module(name: str) -> bool:
    spec = _spec(name)
    return spec is not None and spec.origin is not None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
