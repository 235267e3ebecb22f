"""Rows from a Python function named in the recipe, for what no other source covers.

The function is called with the recipe's arguments and returns an iterable of dictionaries. Its code is no part of the
digest: what it yields is, or what `version` says.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.base import PYTHON_SCHEME
from schemas.errors import DataError, Fault, HoneError, Problem
from schemas.sources import PythonSource
from tasks.home import Home
from tasks.rows import BATCH_ROWS
from tasks.sources import Batch, Piece, Wanted
from tasks.sources.snapshot import as_text, read, snapshot, text_frame

if TYPE_CHECKING:
    import polars as pl

FIELD = "collect.source.callable"
RECIPES = "deployments"
"""Folder of a project's recipes."""
VERSION_FIELD = "collect.source.version"


def pieces(source: PythonSource, home: Home) -> list[Piece]:
    """The rows of the function as one piece; with `version` they are read only when what it says is new.

    Raises:
        DataError: A function cannot be imported or called, raised an error, or yields something else than rows.
        Fault: It lost a connection.
    """
    _make_importable(home.project)
    function = _function(FIELD, source.callable)
    _check_arguments(FIELD, function, source)
    name = source.shown()
    if source.version is None:
        path, digest = snapshot(home, _frames(function, source))
        return [Piece(name, digest, FIELD, None, partial(read, path, name))]

    version = _function(VERSION_FIELD, source.version)
    _check_arguments(VERSION_FIELD, version, source)
    try:
        said = as_text(version(**source.arguments), "version", VERSION_FIELD)
    except Exception as error:
        raise _raised(VERSION_FIELD, source.version, error) from error
    known_by = json.dumps([source.callable, source.arguments, said], sort_keys=True)

    def read_now(wanted: Wanted) -> Iterator[Batch]:
        return read(snapshot(home, _frames(function, source))[0], name, wanted)

    return [Piece(name, hashlib.sha256(known_by.encode()).hexdigest()[:32], FIELD, None, read_now)]


def _make_importable(project: Path) -> None:
    """A module may lie beside the recipes or in the project's folder: searched last, so that it hides no other."""
    for folder in (project / RECIPES, project):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _function(field: str, location: str) -> Callable[..., Any]:
    module_name, _, name = location.removeprefix(PYTHON_SCHEME).partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            remedy = "put it beside the recipe, install it where hone runs, or put its folder on PYTHONPATH"
            raise _mistake(field, location, f"there is no module {error.name!r}", remedy) from error
        raise _raised(field, location, error) from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        rule = f"{module_name} has no {name!r}" if function is None else f"{name!r} is no function"
        raise _mistake(field, location, rule, f"name a function of {module_name}")
    return function


def _check_arguments(field: str, function: Callable[..., Any], source: PythonSource) -> None:
    try:
        inspect.signature(function).bind(**source.arguments)
    except TypeError as error:
        remedy = f"give what {getattr(function, '__name__', field)} takes"
        raise _mistake("collect.source.arguments", dict(source.arguments), str(error), remedy) from error
    except ValueError:
        return  # of a function written in C the arguments cannot be told


def _frames(function: Callable[..., Any], source: PythonSource) -> Iterator[pl.DataFrame]:
    rows = _rows(function, source)
    while batch := list(islice(rows, BATCH_ROWS)):
        columns = list(dict.fromkeys(name for row in batch for name in row))
        yield text_frame([[row.get(name) for name in columns] for row in batch], columns, FIELD)


def _rows(function: Callable[..., Any], source: PythonSource) -> Iterator[Mapping[str, Any]]:
    """What the function yields; an error of its own tells where it was raised."""
    try:
        returned = function(**source.arguments)
        rows = iter(returned) if hasattr(returned, "__iter__") else None
    except Exception as error:
        raise _raised(FIELD, source.callable, error) from error
    if rows is None:
        rule = f"returned {type(returned).__name__}, which has no rows"
        raise _mistake(FIELD, source.callable, rule, "yield dictionaries")
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _raised(FIELD, source.callable, error) from error
        number += 1
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            rule = f"row {number} is a {type(row).__name__}, not a dictionary of named columns"
            raise _mistake(FIELD, source.callable, rule, "yield dictionaries of column and value")
        yield row


def _raised(field: str, location: str, error: Exception) -> HoneError:
    """What the user's code raised, in one line; a lost connection is worth another try."""
    if isinstance(error, HoneError):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    message = " ".join(str(error).split())
    if isinstance(error, ConnectionError | TimeoutError):
        return Fault(f"{location} raised {type(error).__name__}{where}: {message}")
    return _mistake(field, location, f"raised {type(error).__name__}{where}: {message}", "repair the function")


def _is_ours(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen importlib") or Path(filename).parent.name == "importlib"


def _mistake(field: str, value: object, rule: str, remedy: str) -> DataError:
    return DataError(Problem(field, value, rule, remedy))
