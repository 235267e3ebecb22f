from __future__ import annotations

import json
import os

import pytest

from schemas.errors import EnvironmentMistake
from tasks.digests import content_digest
from tasks.home import Home


@pytest.fixture(autouse=True)
def no_named_home(monkeypatch):
    monkeypatch.delenv("HONE_HOME", raising=False)


def test_the_home_lies_at_the_root_of_the_recipes_project(tmp_path):
    (tmp_path / "project" / "deployments").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").write_text("")
    recipe = tmp_path / "project" / "deployments" / "r.yaml"
    recipe.write_text("")
    assert Home.locate(recipe) == tmp_path / "project" / ".hone"


def test_hone_home_names_it_and_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HONE_HOME", "here")
    assert Home.open(tmp_path).root == tmp_path / "here"
    assert json.loads((tmp_path / "here" / "home.json").read_text()) == {"format": 1}


def test_a_home_of_a_newer_hone_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path))
    (tmp_path / "home.json").write_text('{"format": 99}')
    with pytest.raises(EnvironmentMistake, match="99: this hone reads homes up to format 1; use the newer hone"):
        Home.open(tmp_path)


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(EnvironmentMistake, match=r"HONE_HOME = .*Not a directory; name a folder that can be written"):
        Home.open(tmp_path)


def test_a_changed_file_is_noticed_and_an_unchanged_one_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    home, file = Home.open(tmp_path), tmp_path / "data.csv"
    file.write_text("a")
    first = content_digest(file, home)
    reads = []
    monkeypatch.setattr("tasks.digests.file_sha256", lambda path: reads.append(path) or "read")
    assert content_digest(file, home) == first
    assert reads == []
    file.write_text("b")
    os.utime(file, ns=(1, 1))
    assert content_digest(file, home) == "read"


def test_a_folders_digest_covers_names_and_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    home, folder = Home.open(tmp_path), tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("1")
    digests = {content_digest(folder, home)}
    (folder / "a").rename(folder / "b")
    digests.add(content_digest(folder, home))
    (folder / "b").write_text("22")
    digests.add(content_digest(folder, home))
    assert len(digests) == 3
