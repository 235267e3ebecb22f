"""Files behind fsspec URLs: s3://, gs://, az://, https://, hf://.

A file is known by its URL, its size and what the server says of its content (`MARKS`: ETag, checksum, generation or
version; only where it says none of these, the time of the last change). Where a server says nothing, the content is
downloaded each time, and its SHA-256 is the digest. Else a file is downloaded once per digest, to `cache/sources/` of
the home. Nothing there, or no right to it, is a user's mistake; whatever else a server or the network does is a fault.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import EnvironmentMistake, Fault, Problem
from tasks.digests import file_sha256
from tasks.home import Home
from tasks.sources import refusal

EXTRA_OF = {"s3": "s3", "gs": "gs", "az": "az"}
"""Scheme of a URL → the extra of hone that brings its driver; those of the others come with hone."""
MARKS = (
    "ETag", "etag", "md5Hash", "generation", "VersionId", "content_md5", "blob_id", "Content-MD5", "Digest", "crc32c",
)  # fmt: skip
"""What fsspec's drivers report that changes with the content."""
TIMES = ("Last-Modified", "LastModified", "last_modified", "updated")
"""What they report that changes when the file is written."""
DRIVER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("httpx", "HTTPError"),
)
"""Errors of fsspec's drivers that are no OSError: module and name."""
NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}
HTTP = ("http://", "https://")


@dataclass(frozen=True)
class RemoteFile:
    """One file, and how it is asked for.

    Attributes:
        fs: fsspec's file system.
        path: Its path there.
        url: Where it is, in full.
        name: Its path below the folder, or the fixed part of the glob, that it was found by; else its own name.
        field: The recipe field it is named by, for errors.
        home: Where downloads are kept.
    """

    fs: Any
    path: str
    url: str
    name: str
    field: str
    home: Home

    def digest(self) -> str:
        """What its content is known by, asked anew."""
        return self._marks() or self._download(None)

    def fetch(self, digest: str) -> Path:
        """Its content of that digest on this machine.

        Raises:
            Fault: The content is another one by now.
        """
        target = self._cached(digest)
        if not target.exists():
            self._download(digest)
            if (self._marks() or digest) != digest:
                target.unlink()
                raise Fault(f"{self.url} changed while it was read")
        return target

    def _marks(self) -> str | None:
        with asking(self.url, self.field):
            self.fs.invalidate_cache()
            info = self.fs.info(self.path)
        said = {mark: str(info[mark]) for mark in MARKS if info.get(mark)}
        said = said or {mark: str(info[mark]) for mark in TIMES if info.get(mark)}
        if not said:
            return None
        described = json.dumps([self.url, info.get("size"), said], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()

    def _cached(self, digest: str) -> Path:
        """Where the download is kept: with its last folders, of which a catalog's language is one."""
        parts = [part for part in PurePosixPath(urlsplit(self.url).path).parts[-3:] if part not in {"/", "..", "."}]
        return self.home.root.joinpath("cache", "sources", digest, *(parts or ["file"]))

    def _download(self, digest: str | None) -> str:
        """Download under `digest`, by default that of the content; returns it."""
        draft = self.home.root / "cache" / "sources" / f".{uuid.uuid4().hex}"
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            with asking(self.url, self.field):
                self.fs.get_file(self.path, str(draft))
            digest = digest or file_sha256(draft)
            target = self._cached(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return digest


def find_remote(location: str, fits: Sequence[str], field: str, home: Home) -> Iterator[RemoteFile]:
    """The files that a URL means: one, a folder's whose names end as `fits` says, or a glob's.

    Raises:
        DataError: There is none, or this user may not read it.
        EnvironmentMistake: The driver is not installed.
        Fault: The server did not answer.
    """
    import fsspec

    scheme = location.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        remedy = f'pip install "hone[{EXTRA_OF[scheme]}]"' if scheme in EXTRA_OF else "install hone anew"
        raise EnvironmentMistake(Problem(field, location, f"the driver of {scheme}:// is missing", remedy)) from error
    with asking(location, field):
        fs.invalidate_cache()
        paths, named = _paths(fs, path, location, fits, field)
    for found in paths:
        url = found if found.startswith(HTTP) else f"{scheme}://{found}"
        name = PurePosixPath(urlsplit(found).path).name if named else found.removeprefix(_base(path)).lstrip("/")
        yield RemoteFile(fs, found, url, name, field, home)


def _paths(fs: Any, path: str, location: str, fits: Sequence[str], field: str) -> tuple[list[str], bool]:
    """Paths of the files, and whether the location names just one."""
    if _is_glob(location):
        found = sorted(p for p, info in fs.glob(path, detail=True).items() if info["type"] == "file")
        if location.startswith(HTTP):  # a page may link to anywhere
            found = [p for p in found if urlsplit(p)[:2] == urlsplit(location)[:2]]
        if not found:
            raise refusal(field, location, "matches no file", "name files that are there")
        return found, False
    # Over HTTP nothing tells a folder from a page with links.
    if not location.startswith(HTTP) and fs.isdir(path):
        found = sorted(p for p in fs.find(path) if _fits(p.removeprefix(path), fits))
        if not found:
            raise refusal(field, location, "is a folder without a file of this kind", "name files that are there")
        return found, False
    return [path], True


def _fits(name: str, fits: Sequence[str]) -> bool:
    return "/." not in f"/{name}" and name.lower().endswith(tuple(fits))


def _is_glob(location: str) -> bool:
    """In an HTTP URL the question mark begins the query."""
    return glob.has_magic(location.replace("?", "") if location.startswith(HTTP) else location)


def _base(path: str) -> str:
    """What is above everything that a glob matches; a folder itself."""
    fixed = path.split("/")
    while glob.has_magic("/".join(fixed)):
        fixed.pop()
    return "/".join(fixed)


@contextmanager
def asking(url: str, field: str) -> Iterator[None]:
    """Tell a user's mistake (nothing there, no right to it) from a fault of the network."""
    try:
        yield
    except _driver_errors() as error:
        causes = _causes(error)
        status = next((status for status in map(_status, causes) if status), None)
        if any(type(cause).__name__ in NO_CREDENTIALS for cause in causes):
            raise refusal(field, url, "needs credentials", "put them into the environment") from error
        if status in {401, 403} or isinstance(causes[-1], PermissionError):
            raise refusal(field, url, "may not be read", "put credentials that may into the environment") from error
        if status in {404, 410} or isinstance(causes[-1], FileNotFoundError):
            raise refusal(field, url, "is not there", "name a file that is") from error
        raise Fault(f"{url} cannot be read now: {type(causes[-1]).__name__}: {causes[-1]}") from error


def _driver_errors() -> tuple[type[Exception], ...]:
    """A driver that is not loaded cannot have failed."""
    loaded = [getattr(sys.modules[module], name, None) for module, name in DRIVER_ERRORS if module in sys.modules]
    return (OSError, *(error for error in loaded if error is not None))


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from: fsspec calls whatever went wrong with a web server a missing file."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _status(error: BaseException) -> int | None:
    """HTTP status behind an error, wherever its library keeps it; botocore's response is a dictionary."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status
    for owner in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None
