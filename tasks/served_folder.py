"""A trained model's folder as it is served: with what the recipe says of answering, which no weight depends on.

Training writes `hone.json`, what it knew of the task. How texts are written, say, is added once the model answers, so
that another temperature does not train it anew.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.families import Meta
from tasks.store import link

NOTES = "hone.json"


@contextmanager
def as_served(model: Path, notes: Meta, beside: Path) -> Iterator[Path]:
    """The folder of a model with these notes in its `hone.json`, for a while; the model's own where there are none.

    Args:
        model: Folder that `tasks.learner.save_model` wrote, or of a registered version.
        notes: See `schemas.base.TaskSection.notes`.
        beside: Where to make another folder, on the model's file system: weights need no copy there. MLflow takes no
            symbolic links.
    """
    if not notes:
        yield model
        return
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        folder = Path(scratch) / model.name
        folder.mkdir()
        for file in model.iterdir():
            if file.name != NOTES and file.is_file():
                link(file, folder / file.name)
        known = json.loads((model / NOTES).read_text(encoding="utf-8"))
        (folder / NOTES).write_text(json.dumps({**known, **notes}, ensure_ascii=False), encoding="utf-8")
        yield folder
