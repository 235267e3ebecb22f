"""Answers that a model wrote, kept as they come: whoever is interrupted goes on with the rows that are left."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tasks.rules.writing import Answer


class KeptAnswers(dict[int, Answer]):
    """Place of a row → its answer; each is a line of a file as soon as it is set.

    Args:
        path: The file; answers in it are there from the beginning.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):  # cut off with the process that wrote it
                    break
                place, answer = json.loads(line)
                super().__setitem__(place, Answer(**answer))
                whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def __setitem__(self, place: int, answer: Answer) -> None:
        super().__setitem__(place, answer)
        self._file.write(json.dumps([place, asdict(answer)]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """No more answers."""
        self._file.close()
