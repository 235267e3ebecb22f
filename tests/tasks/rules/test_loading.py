"""What serving files share, found in a model's code or in hone's checkout."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.rules import chat, shipping, writing

SERVING = sorted((Path(__file__).parents[3] / "tasks" / "families").glob("serve_*.py"))


def loaded(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", SERVING, ids=lambda file: file.stem)
def test_in_the_checkout_it_is_hone_s_own(file):
    assert loaded(file, file.stem)._shared("chat", "writing") == [chat, writing]


@pytest.mark.parametrize("file", SERVING, ids=lambda file: file.stem)
def test_each_model_in_a_process_has_the_version_that_it_came_with(file, tmp_path):
    found = []
    for version in "ab":
        folder = tmp_path / version
        (folder / "code").mkdir(parents=True)
        shutil.copy(file, folder)
        package = shipping.write_package(folder / "code")
        with (package / "chat.py").open("a") as source:
            source.write(f"\nVERSION = {version!r}\n")
        model = loaded(folder / file.name, f"model_{file.stem}_{version}")
        (shared, generation) = model._shared("chat", "writing")
        found.append(shared.VERSION)
        assert generation.chat is shared
    assert found == ["a", "b"]


def test_a_model_needs_nothing_of_hone(tmp_path):
    (tmp_path / "code").mkdir()
    shipping.write_package(tmp_path / "code")
    shutil.copy(Path("tasks/families/serve_rewriting.py").resolve(), tmp_path)
    script = (
        "import sys; import serve_rewriting as served\n"
        "served._shared('serving', 'writing')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tasks', 'schemas', 'flows')])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, env={}, capture_output=True, text=True
    )
    assert told.stdout.strip() == "[]", told.stderr
