"""The store: content-addressed artifacts at `<root>/<stage>/<key>/`, on a local disk or behind any fsspec URL.

An artifact exists from the moment its manifest does. Locally a finished draft is renamed into place; on an object store
the manifest is the last PUT. Sizes are checked when an artifact is found, digests when it is opened.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import DamagedArtifact
from tasks.digests import file_sha256

FORMAT = 1
"""Version of the manifest."""
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself.

    Attributes:
        ingredients: What the key was made of.
        summary: Counts and measures for reports.
        run_id: MLflow run that made it.
        files: Relative name → size in bytes and SHA-256.
    """

    stage: str
    key: str
    ingredients: dict[str, Any]
    summary: dict[str, Any]
    run_id: str
    created: str
    files: dict[str, dict[str, Any]]
    format: int = FORMAT


def link(file: Path, target: Path) -> None:
    """Give a file of one artifact to another, without a copy where the file system can."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)


class Store:
    """Artifacts below one root.

    Args:
        root: Local folder or fsspec URL.
        materialised: Local folder for copies of a remote store's artifacts.
    """

    def __init__(self, root: str, materialised: Path) -> None:
        import fsspec

        self._fs, self._root = fsspec.core.url_to_fs(root)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._materialised = materialised
        self._verified: dict[tuple[str, str], Path] = {}

    def location(self, stage: str, key: str) -> str:
        """Where an artifact is, or would be."""
        return f"{self._root}/{stage}/{key}"

    def find(self, stage: str, key: str) -> Manifest | None:
        """The artifact's manifest, when it is there.

        Raises:
            DamagedArtifact: The manifest cannot be read, or a file is missing or of another size.
        """
        folder = self.location(stage, key)
        if not self._fs.exists(f"{folder}/{MANIFEST}"):
            return None
        try:
            manifest = Manifest(**json.loads(self._fs.cat_file(f"{folder}/{MANIFEST}")))
        except (ValueError, TypeError) as error:
            raise DamagedArtifact(f"{folder}/{MANIFEST} cannot be read: {error}") from error
        for name, expected in manifest.files.items():
            try:
                size = self._fs.size(f"{folder}/{name}")
            except FileNotFoundError as error:
                raise DamagedArtifact(f"{name} is missing") from error
            if size != expected["size"]:
                raise DamagedArtifact(f"{name} has {size} bytes, not {expected['size']}")
        return manifest

    def open(self, stage: str, key: str) -> Path:
        """A local folder with the artifact's files, their digests checked once per process.

        Raises:
            DamagedArtifact: It is gone, or a file is not what the manifest says.
        """
        if (stage, key) in self._verified:
            return self._verified[stage, key]
        manifest = self.find(stage, key)
        if manifest is None:
            raise DamagedArtifact(f"{self.location(stage, key)} is gone")
        folder = Path(self.location(stage, key)) if self._local else self._download(manifest)
        for name, expected in manifest.files.items():
            if file_sha256(folder / name) != expected["sha256"]:
                raise DamagedArtifact(f"{name} has another digest than its manifest says")
        self._verified[stage, key] = folder
        return folder

    def usage(self) -> dict[str, tuple[int, int]]:
        """Stage → number of its artifacts, and bytes of their files; a file that two artifacts share counts twice."""
        if not self._fs.exists(self._root):
            return {}
        found: dict[str, tuple[int, int]] = {}
        for path, info in sorted(self._fs.find(self._root, detail=True).items()):
            stage, key, *below = path.removeprefix(self._root).strip("/").split("/")
            if below and not key.startswith("."):
                artifacts, size = found.get(stage, (0, 0))
                found[stage] = (artifacts + (below == [MANIFEST]), size + info["size"])
        return found

    @contextmanager
    def draft(self, stage: str, key: str) -> Iterator[Path]:
        """An empty local folder to write an artifact's files into; gone afterwards unless it was published."""
        above = Path(self._root) / stage if self._local else self._materialised / stage
        folder = above / f".{key}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self, draft: Path, stage: str, key: str, *, ingredients: dict[str, Any], summary: dict[str, Any], run_id: str
    ) -> Manifest:
        """Make a finished draft the artifact `stage/key`, in place of whatever was there."""
        files = sorted(p for p in draft.rglob("*") if p.is_file())
        manifest = Manifest(
            stage=stage,
            key=key,
            ingredients=ingredients,
            summary=summary,
            run_id=run_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={
                p.relative_to(draft).as_posix(): {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in files
            },
        )
        text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False)
        self.discard(stage, key)
        if self._local:
            self._publish_locally(draft, stage, key, text)
        else:
            self._upload(draft, stage, key, text, list(manifest.files))
        return manifest

    def discard(self, stage: str, key: str) -> None:
        """Forget an artifact: its manifest first, so that no reader takes what is left for whole."""
        self._verified.pop((stage, key), None)
        folder = self.location(stage, key)
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)
        if not self._local:
            shutil.rmtree(self._materialised / stage / key, ignore_errors=True)

    def _publish_locally(self, draft: Path, stage: str, key: str, manifest: str) -> None:
        with (draft / MANIFEST).open("w") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.location(stage, key))

    def _upload(self, draft: Path, stage: str, key: str, manifest: str, names: list[str]) -> None:
        folder = self.location(stage, key)
        for name in names:
            self._fs.makedirs(f"{folder}/{name}".rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(draft / name), f"{folder}/{name}")
        self._fs.pipe_file(f"{folder}/{MANIFEST}", manifest.encode())

    def _download(self, manifest: Manifest) -> Path:
        folder = self._materialised / manifest.stage / manifest.key
        if folder.exists():
            return folder
        with self.draft(manifest.stage, manifest.key) as draft:
            for name in manifest.files:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self.location(manifest.stage, manifest.key)}/{name}", str(draft / name))
            draft.rename(folder)
        return folder
