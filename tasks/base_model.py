"""The pretrained model a recipe starts from: where its files are on this machine, and the digest of their content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from schemas.base import PACKAGE_SCHEME
from schemas.errors import EnvironmentMistake, Fault, Problem
from schemas.recipe import Model
from tasks.digests import content_digest
from tasks.home import Home
from tasks.sources.locations import locate_in_package

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is needed of a model: safetensors only, no pickle."""
CODE = ("*.py",)
"""Fetched only where the recipe says `trust_remote_code`."""


def base_model(model: Model, home: Home) -> tuple[Path, str]:
    """Folder of the base model, fetched from the hub if need be, and the digest of what it holds.

    Raises:
        EnvironmentMistake: There is no such model, or it has no safetensors.
        Fault: The hub cannot be reached.
    """
    is_folder = "://" in model.base or Path(model.base).is_absolute()
    folder = _folder(model.base) if is_folder else _from_hub(model)
    for needed, what in (("config.json", "describes no model"), ("*.safetensors", "has no weights as safetensors")):
        if not any(folder.glob(needed)):
            raise EnvironmentMistake(
                Problem("model.base", model.base, f"{what}: no {needed}", "name a folder saved by save_pretrained")
            )
    patterns = (*FILES, *CODE) if model.trust_remote_code else FILES
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    digests = {path.name: content_digest(path, home) for path in files}
    return folder, hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _folder(base: str) -> Path:
    folder = locate_in_package(base, "model.base") if base.startswith(PACKAGE_SCHEME) else Path(base)
    if not folder.is_dir():
        raise EnvironmentMistake(
            Problem("model.base", base, "is not a folder", "name a folder saved by save_pretrained")
        )
    return folder


def _from_hub(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*FILES, *CODE] if model.trust_remote_code else [*FILES]
    try:
        return Path(snapshot_download(model.base, revision=model.revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        remedy = (
            "check the name and model.revision; for a private model set HF_TOKEN; a local folder starts with ./ or /"
        )
        raise EnvironmentMistake(Problem("model.base", model.base, "the hub has no such model", remedy)) from error
    except LocalEntryNotFoundError as error:
        remedy = "go online once, unset HF_HUB_OFFLINE, or name a local folder (it starts with ./ or /)"
        raise EnvironmentMistake(
            Problem("model.base", model.base, "is not on this machine and the hub is out of reach", remedy)
        ) from error
    except HfHubHTTPError as error:
        raise Fault(f"model.base {model.base}: the hub answered {error}") from error
