"""How a serving file comes by what travels with its model; it runs this file by its path.

This module travels with every model; it imports nothing of ours but its neighbours.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

OWN = "tasks.rules"
"""The package of this file in hone's checkout."""


def beside(serving: str, modules: Sequence[str]) -> list[ModuleType]:
    """Modules that lie beside this one, in a model's code or in hone's checkout.

    Those of a model are a package of their own: two models in one process may have been trained under different
    versions of them.

    Args:
        serving: Name of the serving module that asks, one for each model that is loaded.
        modules: Their names.

    Raises:
        ImportError: There is no package here.
    """
    name, folder = OWN, Path(__file__).parent
    if folder.parts[-2:] != tuple(OWN.split(".")):
        name = f"{serving.replace('.', '_')}_serving"
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder} is no package")
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return [importlib.import_module(f"{name}.{module}") for module in modules]
