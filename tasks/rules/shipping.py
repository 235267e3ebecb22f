"""What travels with a model: the rules that its texts were put right by, and what serving files share."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.rules.redaction import owners
from tasks.rules.repair import TextRules, redactor_names

PACKAGE = "hone_serving"
"""Folder in a model's code; serving files look for it there."""
NAMES = (
    "alignment", "chat", "generation", "loading", "personal_data", "quick", "repair", "serving", "spans", "tagging",
    "text", "writing",
)  # fmt: skip
SHIPPED = tuple(Path(__file__).with_name(f"{name}.py") for name in NAMES)
"""Modules that import nothing of ours but each other."""


def write_package(folder: Path) -> Path:
    """Write the shipped modules below `folder` as one package, and say where."""
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""What serves a model, and the rules that the texts of its training were put right by."""\n'
    )
    for module in SHIPPED:
        shutil.copyfile(module, package / module.name)
    return package


def libraries(text_rules: TextRules) -> list[str]:
    """Distributions that following these rules needs."""
    rules = {step["rule"] for step in text_rules.get("steps", ())}
    needed = ["polars"] if rules else []
    if "fix_text" in rules:
        needed.append("ftfy")
    return needed + owners(redactor_names(text_rules))
