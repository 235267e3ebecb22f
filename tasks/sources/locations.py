"""Files that a recipe's locations mean: on this machine, inside an installed package, or behind a URL.

A location is a file, a folder (all files in it that fit, hidden ones left out) or a glob (`*`, `?`, `[…]`, `**`).

The digest of a file here or in a package is the SHA-256 of its content, remembered by size, modification time and
inode. `tasks.sources.remote` says what that of a URL is made of.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from schemas.base import PACKAGE_SCHEME
from schemas.errors import DataError, Problem
from tasks.digests import content_digest
from tasks.home import Home
from tasks.sources import listed, refusal


@dataclass(frozen=True)
class File:
    """A file that a location means.

    Attributes:
        place: Where it really is; two of one place are the same file.
        shown: Its path or URL, as errors show it.
        name: Its path below the folder, or the fixed part of the glob, that it was found by; else its own name.
        digest: What its content is known by, found out anew.
        fetch: Its content of a digest on this machine.
    """

    place: str
    shown: str
    name: str
    digest: Callable[[], str]
    fetch: Callable[[str], Path]


def find(locations: Sequence[str], suffixes: Sequence[str], field: str, home: Home) -> list[File]:
    """The files that `locations` mean, sorted within each location, none twice.

    Args:
        locations: Local paths, `package://…`, URLs; folders and globs among them.
        suffixes: Ends of the names of the files that are taken from a folder.
        field: The recipe field the locations stand in, for errors.
        home: Where digests and downloads are kept.

    Raises:
        DataError: A location means no file, or a file cannot be read; of all locations the problems are named.
        EnvironmentMistake: The driver of a URL is not installed.
        Fault: A server did not answer.
    """
    found: dict[str, File] = {}
    problems: list[Problem] = []
    for location in locations:
        remote = "://" in location and not location.startswith(PACKAGE_SCHEME)
        expand = _find_remote if remote else _find_local
        try:
            for file in expand(location, suffixes, field, home):
                found.setdefault(file.place, file)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return list(found.values())


def locate_in_package(location: str, field: str) -> Path:
    """Where `package://<package>/<path>` would be, there or not; nothing outside the package's folder.

    Raises:
        DataError: The package is not installed, or the path leaves it.
    """
    candidates = _in_package(location, field)
    return next((path for path in candidates if path.exists()), candidates[0])


def _in_package(location: str, field: str) -> list[Path]:
    """Where it may be: a namespace package has several folders."""
    package, _, inside = location.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package.isidentifier():
        remedy = f"write {PACKAGE_SCHEME}{package.replace('-', '_')}/{inside}, the name it is imported by"
        raise refusal(field, location, f"{package!r} is not the name of a Python package", remedy)
    parts = PurePosixPath(inside).parts
    if not parts or ".." in parts or inside.startswith("/"):
        remedy = f"write {PACKAGE_SCHEME}{package}/<path below the package's folder>"
        raise refusal(field, location, "leaves the package's folder", remedy)
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        rule = f"package {package!r} {'has no folder' if spec else 'is not installed'}"
        raise refusal(field, location, rule, f"pip install {package.replace('_', '-')}")
    return [folder.joinpath(*parts) for folder in folders]


def _find_local(location: str, suffixes: Sequence[str], field: str, home: Home) -> Iterator[File]:
    inside = location.startswith(PACKAGE_SCHEME)
    candidates = _in_package(location, field) if inside else [Path(location).expanduser()]
    path = next((path for path in candidates if path.exists()), candidates[0])
    if path.is_dir():
        yield from _local_files(_walk(path, location, suffixes, field), path, field, home)
    elif not path.exists() and glob.has_magic(str(path)):
        matches = False
        for candidate in candidates:
            for file in _local_files(_expand(candidate), _fixed_part(candidate), field, home):
                matches = True
                yield file
        if not matches:
            raise refusal(field, location, "matches no file", _what_is_near_glob(candidates[0]))
    else:
        if _check_readable(path, location, field) == 0:
            raise refusal(field, location, "is empty", "name a file with rows")
        yield _local(path, path.name, home)


def _local_files(paths: Iterable[Path], base: Path, field: str, home: Home) -> Iterator[File]:
    for path in paths:
        _check_readable(path, str(path), field)
        yield _local(path, path.relative_to(base).as_posix(), home)


def _local(path: Path, name: str, home: Home) -> File:
    return File(os.path.realpath(path), str(path), name, partial(content_digest, path, home), lambda _: path)


def _find_remote(location: str, suffixes: Sequence[str], field: str, home: Home) -> Iterator[File]:
    from tasks.sources.remote import find_remote

    for file in find_remote(location, suffixes, field, home):
        yield File(file.url, file.url, file.name, file.digest, file.fetch)


def _walk(folder: Path, location: str, suffixes: Sequence[str], field: str) -> list[Path]:
    def unreadable(error: OSError) -> None:
        reason = error.strerror or str(error)
        raise refusal(field, str(error.filename or folder), f"cannot be read: {reason}", "let this user read it")

    found = []
    for above, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(above, name) for name in names if _fits(name, suffixes)]
    if not found:
        raise refusal(
            field, location, f"is a folder without a {_either(suffixes)} file", f"name a file{_some_of(folder)}"
        )
    return sorted(found)


def _expand(pattern: Path) -> list[Path]:
    paths = (Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # Path.glob shows hidden files
    return sorted(path for path in paths if not path.is_dir())


def _fixed_part(pattern: Path) -> Path:
    """The folder above everything that a glob matches."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _fits(name: str, suffixes: Sequence[str]) -> bool:
    return not name.startswith(".") and name.lower().endswith(tuple(suffixes))


def _check_readable(path: Path, location: str, field: str) -> int:
    """Check that `path` is a file that this user may read, and that it is no pipe, which would be waited for.

    Returns:
        Its size in bytes.
    """
    try:
        if path.is_dir():
            raise refusal(field, location, "is a folder", f"name a file in it{_some_of(path)}")
        if not path.exists():
            dangling = "is a link to nothing" if path.is_symlink() else "is not there"
            raise refusal(field, location, dangling, _what_is_near(path))
        if not path.is_file():
            raise refusal(field, location, "is not a regular file", "name a file")
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(field, location, f"cannot be read: {reason}", "let this user read it") from error


def _what_is_near(path: Path) -> str:
    folder = next(parent for parent in path.parents if parent.is_dir())
    if folder != path.parent:
        return f"the folder {path.parent} is not there either: name an existing file"
    close = difflib.get_close_matches(path.name, [other.name for other in folder.iterdir()], n=1)
    if close and close[0] != path.name:
        return f"did you mean {close[0]!r}?"
    return f"name a file in {folder}{_some_of(folder)}"


def _what_is_near_glob(pattern: Path) -> str:
    folder = _fixed_part(pattern)
    if not folder.is_dir():
        return f"the folder {folder} is not there: name an existing one"
    return f"name files in {folder}{_some_of(folder)}"


def _some_of(folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f", such as {listed(files)}" if files else ""


def _either(suffixes: Sequence[str]) -> str:
    return " or ".join(suffix for suffix in suffixes if suffix.count(".") == 1)
