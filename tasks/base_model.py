"""The model a recipe starts from: where its files are on this machine, and the digest of their content.

A version of the registry (`models:/<name>/<version>`) starts with its head as well, so its labels must be the recipe's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from schemas.base import PACKAGE_SCHEME, REGISTERED
from schemas.errors import EnvironmentMistake, Fault, Mistake, Problem
from schemas.recipe import Model
from tasks import gguf
from tasks.digests import content_digest
from tasks.home import Home
from tasks.registry import Registered, files_of, wanted
from tasks.sources.locations import locate_in_package
from tasks.tracking import prepare

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is needed of a model: safetensors only, no pickle."""
CODE = ("*.py",)
"""Fetched only where the recipe says `trust_remote_code`."""
SERVING = ("hone.json",)
"""What serving alone reads of a model that hone has trained: nothing is learnt from it."""


def base_model(model: Model, home: Home) -> tuple[Path, str]:
    """Folder of the base model, fetched from the hub or the registry if need be, and the digest of what it holds.

    Raises:
        EnvironmentMistake: There is no such model, or it has no safetensors.
        Fault: The hub or MLflow cannot be reached.
    """
    folder = _located(model, home)
    for needed, what in (("config.json", "describes no model"), ("*.safetensors", "has no weights as safetensors")):
        if not any(folder.glob(needed)):
            raise EnvironmentMistake(
                Problem("model.base", model.base, f"{what}: no {needed}", "name a folder saved by save_pretrained")
            )
    patterns = (*FILES, *CODE) if model.trust_remote_code else FILES
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.name not in SERVING})
    digests = {path.name: content_digest(path, home) for path in files}
    return folder, hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def registered_base(model: Model, home: Home) -> Registered | None:
    """The registered version that a recipe starts from; none where it starts from any other model.

    Raises:
        EnvironmentMistake: The registry has no such version.
        Fault: MLflow is away.
    """
    named = REGISTERED.fullmatch(model.base)
    if named is None:
        return None
    prepare(home)
    try:
        return wanted(home, named["name"], named["version"])
    except Mistake as mistake:
        found = mistake.problems[0]
        raise EnvironmentMistake(Problem("model.base", model.base, found.rule, found.remedy)) from mistake


def known_digest(model: Model, home: Home) -> str | None:
    """Digest of a base model that is here already; none for one of the hub, which would have to be asked.

    Raises:
        EnvironmentMistake: There is no such model.
        Fault: MLflow is away.
    """
    return None if _on_hub(model) else base_model(model, home)[1]


def labels_of(folder: Path) -> list[str]:
    """The labels of a saved model's head, in its order; empty where it has no names for them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [str(label) for _, label in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]


def refuse_other_labels(model: Model, home: Home, tokens: Callable[[], Path]) -> None:
    """A registered version's head is kept, so it must be one of the same labels in the same order.

    Args:
        model: The recipe's section.
        home: Whose registry it is.
        tokens: Folder of the tokenize artifact, asked when needed.

    Raises:
        EnvironmentMistake: It knows other labels than the rows have, or the registry has no such version.
        Fault: MLflow is away.
    """
    if registered_base(model, home) is None:
        return
    asked = json.loads((tokens() / "meta.json").read_text()).get("labels")
    known = labels_of(base_model(model, home)[0])
    if asked is not None and known != asked:
        rule = f"its head knows the labels {', '.join(known)}; the rows have {', '.join(asked)}"
        raise EnvironmentMistake(Problem("model.base", model.base, rule, "name the model that it was made from"))


def _on_hub(model: Model) -> bool:
    return "://" not in model.base and not Path(model.base).is_absolute() and not REGISTERED.fullmatch(model.base)


def _located(model: Model, home: Home) -> Path:
    version = registered_base(model, home)
    if version is None:
        return _from_hub(model) if _on_hub(model) else _folder(model.base, home)
    try:
        return files_of(home, version)
    except FileNotFoundError as error:
        rule = f"{error}: hone did not register it, or its files were deleted"
        raise EnvironmentMistake(Problem("model.base", model.base, rule, "name another version")) from error


def _folder(base: str, home: Home) -> Path:
    folder = locate_in_package(base, "model.base") if base.startswith(PACKAGE_SCHEME) else Path(base)
    if folder.suffix == gguf.SUFFIX and folder.is_file():
        return gguf.unpacked(folder, home)
    if not folder.is_dir():
        raise EnvironmentMistake(
            Problem("model.base", base, "is not a folder", "name a folder saved by save_pretrained, or a .gguf file")
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
