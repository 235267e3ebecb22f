"""Fixtures: a home with an embedded MLflow, without waiting for its migrations in every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from tasks import tracking
from tasks.home import Home


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, made once."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("template")
        patch.setenv("HONE_HOME", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home = Home.open(root)
        tracking.prepare(home)
    return root / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh home whose MLflow is ready."""
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Home.open(tmp_path)
    shutil.copyfile(template, made.root / "mlflow.db")
    return made


@pytest.fixture
def recipe() -> Recipe:
    """A small valid recipe."""
    return validate_recipe(
        {
            "name": "tiny",
            "description": "Good or bad?",
            "task": {"family": "text-classification", "labels": ["bad", "good"]},
            "collect": {"source": {"kind": "csv", "path": "/data/tiny.csv"}},
            "tokenize": {"max_seq_length": 16},
            "model": {"base": "/models/tiny"},
            "registry": {"promote": "auto"},
        }
    )
