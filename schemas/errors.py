"""Every error hone raises on purpose.

HoneError
├── Mistake              what the user asked for cannot be done; exit code 2, never retried
│   ├── RecipeError      the recipe
│   ├── DataError        the rows
│   └── EnvironmentMistake  the machine, the home, the servers
└── Fault                something broke on the way; retried, resumed, recorded
    ├── DamagedArtifact  a file in the store is not what its manifest says
    ├── ChildDied        the training process ended without an answer
    └── OutOfMemory      ... because memory ran out

A mistake carries `Problem`s: which field, which value, which rule, what to do. Nothing else is shown to the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LONGEST_SHOWN = 160
"""Characters of a value that an error shows."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the four parts a person needs to put it right; the value may be none."""

    field: str
    value: object
    rule: str
    remedy: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        if self.value is None:
            return f"{where}{self.field}: {self.rule}; {self.remedy}"
        shown = repr(self.value)
        if len(shown) > LONGEST_SHOWN:
            shown = f"{shown[: LONGEST_SHOWN - 3]}..."
        return f"{where}{self.field} = {shown}: {self.rule}; {self.remedy}"


class HoneError(Exception):
    """Base of all errors raised on purpose."""


class Mistake(HoneError):  # noqa: N818  the project's word
    """What was asked for cannot be done. Never retried; the command ends with exit code 2.

    Args:
        problems: One problem, or all that were found; each becomes one line.
    """

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def as_dict(self) -> dict[str, Any]:
        """The mistake as JSON values, to cross a process border."""
        return {
            "type": type(self).__name__,
            "problems": [asdict(p) | {"value": _jsonable(p.value)} for p in self.problems],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Mistake:
        """The mistake that `as_dict` described."""
        kind = {cls.__name__: cls for cls in (RecipeError, DataError, EnvironmentMistake)}.get(data["type"], Mistake)
        return kind([Problem(**problem) for problem in data["problems"]])


class RecipeError(Mistake):
    """The recipe asks for something that cannot be."""


class DataError(Mistake):
    """The rows cannot be used as the recipe says."""


class EnvironmentMistake(Mistake):
    """The machine, the home or a server is not as this command needs it."""


class Fault(HoneError):  # noqa: N818  the project's word
    """Something broke on the way. Worth another try."""


class DamagedArtifact(Fault):
    """A file in the store is missing, or its size or digest is not what the manifest says."""


class ChildDied(Fault):
    """The child process ended without an answer.

    Args:
        message: What it was doing.
        log_tail: The last lines it wrote.
    """

    def __init__(self, message: str, log_tail: str = "") -> None:
        self.log_tail = log_tail
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)


class OutOfMemory(ChildDied):
    """The child ran out of memory: its own allocator said so, or the kernel killed it."""


def _jsonable(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
