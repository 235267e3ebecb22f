from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from schemas.data import Clean
from tasks import keys
from tasks.home import Home


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stage in a package of its own: `stagecode.stage` uses `stagecode.helper` inside a function."""
    folder = tmp_path / "stagecode"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "stage.py").write_text("def compute():\n    from stagecode.helper import rule\n    return rule(1)\n")
    (folder / "helper.py").write_text('"""Doc."""\nfrom . import deep\n\n\ndef rule(x):\n    return deep.rule(x)\n')
    (folder / "deep.py").write_text("def rule(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)

    def digest():
        importlib.invalidate_caches()
        keys._module_digest.cache_clear()
        keys._spec.cache_clear()
        keys.code_digest.cache_clear()
        return keys.code_digest("stagecode.stage")

    yield folder, digest
    for name in [n for n in sys.modules if n.startswith("stagecode")]:
        del sys.modules[name]


def test_code_changed_in_a_helpers_helper_changes_the_key(package):
    folder, digest = package
    before = digest()
    (folder / "deep.py").write_text("def rule(x):\n    return x + 1\n")
    assert digest() != before


def test_what_was_read_is_remembered_until_a_file_changes(package, tmp_path, monkeypatch):
    folder, digest = package
    unremembered = digest()
    read = []
    really = keys._read
    monkeypatch.setattr(keys, "_read", lambda path, module: read.append(path.stem) or really(path, module))
    home = Home(tmp_path / "home")
    monkeypatch.setattr(keys, "_memory", keys._Memory())
    keys.remember_code(home)
    assert digest() == unremembered
    assert set(read) >= {"stage", "helper", "deep"}
    for _ in range(2):  # another process, which finds the file
        read.clear()
        monkeypatch.setattr(keys, "_memory", keys._Memory())
        keys.remember_code(home)
        assert digest() == unremembered
        assert read == []
    (folder / "deep.py").write_text("def rule(x):\n    return x + 1\n")
    assert digest() != unremembered
    assert read == ["deep"]
    (home.digests / "code.json").write_text('{"torn')
    monkeypatch.setattr(keys, "_memory", keys._Memory())
    keys.remember_code(home)
    assert digest() != unremembered
    assert "stage" in read


def test_a_module_that_changes_while_it_is_read_is_read_again(package, tmp_path, monkeypatch):
    _, digest = package
    really = keys._read

    def read(path, module):
        found = really(path, module)
        if path.stem == "deep":
            path.write_text("def rule(x):\n    return x + 1\n")
        return found

    monkeypatch.setattr(keys, "_read", read)
    monkeypatch.setattr(keys, "_memory", keys._Memory())
    keys.remember_code(Home(tmp_path / "home"))
    before = digest()
    assert digest() != before


def test_a_module_that_appears_is_followed_though_its_importer_is_remembered(package, tmp_path, monkeypatch):
    folder, digest = package
    (folder / "helper.py").write_text("from stagecode import soon\n\n\ndef rule(x):\n    return x\n")
    monkeypatch.setattr(keys, "_memory", keys._Memory())
    keys.remember_code(Home(tmp_path / "home"))
    before = digest()
    (folder / "soon.py").write_text("VALUE = 1\n")
    assert digest() != before


def test_what_only_type_checkers_import_does_not_change_the_key(package):
    folder, digest = package
    (folder / "helper.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import deep\n\ndef rule(x):\n    return x\n"
    )
    before = digest()
    (folder / "deep.py").write_text("def rule(x):\n    return x + 1\n")
    assert digest() == before


def test_comments_docstrings_and_layout_do_not_change_the_key(package):
    folder, digest = package
    before = digest()
    (folder / "helper.py").write_text(
        '"""Other."""\nfrom . import deep  # why\n\ndef rule(x):\n    """More."""\n    return deep.rule(\n        x)\n'
    )
    assert digest() == before


def test_every_ingredient_changes_the_key():
    def key(**changes):
        parts = {"stage": "clean", "settings": {"rules": Clean()}, "inputs": {"raw": "a"}}
        parts |= {"modules": ["schemas.frames"], "libraries": ["polars"]} | changes
        return keys.stage_key(**parts)[0]

    changed = [
        key(stage="split"), key(settings={"rules": Clean(min_chars=2)}), key(inputs={"raw": "b"}),
        key(modules=["tasks.batches"]), key(libraries=["numpy"]),
    ]  # fmt: skip
    assert key() == key()
    assert len({key(), *changed}) == 6


def test_the_key_does_not_depend_on_the_order_things_are_named_in():
    one = keys.stage_key("s", {"a": 1, "b": {"x": 1, "y": 2}}, {}, modules=[], libraries=["numpy", "polars"])
    other = keys.stage_key("s", {"b": {"y": 2, "x": 1}, "a": 1}, {}, modules=[], libraries=["polars", "numpy"])
    assert one == other


def test_making_a_key_imports_nothing_heavy():
    script = """
import subprocess
import sys
from tasks.keys import code_digest
code_digest("tasks.learner", "tasks.evaluate", "tasks.families.text_classification")
print([m for m in ("torch", "transformers", "polars", "mlflow", "tasks.batches") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_named_as_plumbing_exists():
    assert [name for name in keys.PLUMBING if not keys._is_module(name)] == []


def test_no_stage_reaches_prefect_or_mlflow_plumbing_by_its_code():
    """A change in how runs are tracked must not retrain a model."""
    found = {}
    for module in ("tasks.collect", "tasks.clean", "tasks.split", "tasks.tokenize", "tasks.learner", "tasks.evaluate"):
        waiting, seen = [module], set()
        while waiting:
            name = waiting.pop()
            if name not in seen and name not in keys.PLUMBING:
                seen.add(name)
                waiting += keys._module_digest(keys._source_path(name), name)[1]
        found[module] = seen
    assert {name for seen in found.values() for name in seen} & {
        "tasks.tracking",
        "tasks.register",
        "tasks.child",
    } == set()
    assert "tasks.batches" in found["tasks.learner"]
    assert "tasks.split" not in found["tasks.collect"]
