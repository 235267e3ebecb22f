"""The redactors that a recipe names: those of `tasks.rules.personal_data`, and what other packages register.

Another package adds a redactor by a function from text to text under the entry point `hone.redactors`. It is looked up
again where the model serves, so its module must import nothing of hone.
"""

from __future__ import annotations

from collections.abc import Iterable

from schemas.errors import EnvironmentMistake, Problem, RecipeError
from tasks.rules.personal_data import BUILT_IN, GROUP, Redactor, redactor_of, registered


def redactors(names: Iterable[str]) -> dict[str, Redactor]:
    """Name → redactor, for every name in the recipe's `clean.redact`.

    Raises:
        RecipeError: No redactor has one of the names.
        EnvironmentMistake: The package that registered it does not import.
    """
    names, known = list(names), {*BUILT_IN, *registered()}
    unknown = [name for name in names if name not in known]
    if unknown:
        remedy = f"name some of {', '.join(sorted(known))}, or install the package that registers it under {GROUP}"
        raise RecipeError([Problem("clean.redact", name, "no redactor of this name", remedy) for name in unknown])
    return {name: _loaded(name) for name in names}


def owners(names: Iterable[str]) -> list[str]:
    """Distributions that bring these redactors, sorted; hone's own come with the model."""
    others = set(names) - BUILT_IN.keys()
    points = registered() if others else {}
    return sorted({point.dist.name for name, point in points.items() if name in others and point.dist})


def _loaded(name: str) -> Redactor:
    try:
        return redactor_of(name)
    except (ImportError, AttributeError) as error:
        owner = next(iter(owners([name])), "an installed package")
        raise EnvironmentMistake(
            Problem(f"entry point {GROUP}", name, f"{owner} does not load: {error}", f"repair or remove {owner}")
        ) from error
