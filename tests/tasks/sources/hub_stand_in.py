"""A stand-in for the Hugging Face hub: what its libraries ask about data sets, answered as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """A data set: files of each commit, and which commit a branch or tag means."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = files
        self.refs[ref] = digest
        return digest


@dataclass
class Hub:
    """Where the stand-in listens, what it has, and what it was asked."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False

    def repository(self, name: str, **options: bool) -> Repository:
        return self.repositories.setdefault(name, Repository(**options))

    def asked_for(self, part: str) -> int:
        return sum(part in line for line in self.asked)


@contextmanager
def stand_in_hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            self._dispatch(parts, body)
        except RefusedError as refusal:
            self._send(b"", {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code}, refusal.status)

    def _dispatch(self, parts: list[str], body: bytes) -> None:
        if self.hub.broken:
            raise RefusedError(503, "Unavailable")
        if parts[:2] == ["api", "datasets"]:
            self._send(json.dumps(self._described(parts[2:], body)).encode(), {"Content-Type": "application/json"})
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._send_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            raise RefusedError(404, "NotFound")

    def _found(self, name: str, *, content: bool) -> Repository:
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            # The hub does not tell who has no token whether a name exists.
            raise RefusedError(404 if known else 401, "RepoNotFound")
        if content and repository.gated and not known:
            raise RefusedError(401 if "Authorization" not in self.headers else 403, "GatedRepo")
        return repository

    @staticmethod
    def _commit(repository: Repository, revision: str) -> str:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise RefusedError(404, "RevisionNotFound")
        return commit

    def _described(self, parts: list[str], body: bytes) -> Any:
        name, (verb, *rest) = "/".join(parts[:2]), parts[2:] or ["revision", "main"]
        repository = self._found(name, content=verb in {"tree", "paths-info"})
        commit = self._commit(repository, rest[0])
        files = repository.commits[commit]
        if verb == "revision":
            return {
                "_id": "0", "id": name, "sha": commit, "private": repository.private, "disabled": False,
                "gated": "auto" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": path} for path in files],
            }  # fmt: skip
        if verb == "tree":
            below = "/".join(rest[1:])
            inside = {path: data for path, data in files.items() if not below or path.startswith(f"{below}/")}
            if below and not inside:
                raise RefusedError(404, "EntryNotFound")
            deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            return listing(inside, below, deep=deep)
        if self.headers.get_content_type() == "application/json":
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body.decode())["paths"]
        every = {entry["path"]: entry for entry in listing(files, "", deep=True)}
        return [every[path] for path in wanted if path in every]

    def _send_file(self, name: str, revision: str, path: str) -> None:
        repository = self._found(name, content=True)
        commit = self._commit(repository, revision)
        if path not in repository.commits[commit]:
            raise RefusedError(404, "EntryNotFound")
        data = repository.commits[commit][path]
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            self._send(data[begin : end + 1], headers, 206)
        else:
            self._send(data, headers)

    def _send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def listing(files: dict[str, bytes], below: str, *, deep: bool) -> list[dict[str, Any]]:
    """Entries of the tree as the hub gives them: files, and folders without a size."""
    entries: dict[str, dict[str, Any]] = {}
    depth = len(below.split("/")) if below else 0
    for path, data in files.items():
        parts = path.split("/")
        for end in range(depth + 1, len(parts)):
            folder = "/".join(parts[:end])
            entries[folder] = {"type": "directory", "oid": oid(folder.encode()), "size": 0, "path": folder}
        entries[path] = {"type": "file", "oid": oid(data), "size": len(data), "path": path}
    return [entry for path, entry in entries.items() if deep or path.count("/") == depth]
