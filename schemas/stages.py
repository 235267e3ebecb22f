"""The stages of the pipeline, in order."""

from __future__ import annotations

from typing import Literal

Stage = Literal["collect", "clean", "split", "tokenize", "train", "evaluate", "gate", "register"]
STAGES: tuple[Stage, ...] = ("collect", "clean", "split", "tokenize", "train", "evaluate", "gate", "register")
