"""Conversations of the package chatterbot-corpus: short questions and their answers, by topic."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PACKAGE = "chatterbot_corpus"


def rows(language: str = "english") -> Iterator[dict[str, Any]]:
    """One row for each conversation: messages and topic."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"pip install {PACKAGE.replace('_', '-')}", name=PACKAGE)
    for file in sorted((Path(spec.origin).parent / "data" / language).glob("*.yml")):
        for turns in YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn) for turn in turns]
            messages = [
                {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
            ]
            yield {"messages": messages, "topic": file.stem}


def versions(language: str = "english") -> str:
    """What the rows depend on."""
    del language
    return version(PACKAGE.replace("_", "-"))
