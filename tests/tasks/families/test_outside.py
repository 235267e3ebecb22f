"""A task family that another package brings, from its entry point to a registered model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.learning import sentences, tiny_encoder

CHECKOUT = Path(__file__).parents[3]
FAMILY = '''\
"""How loud a text is: the share of its words that shout. Served as any regression is."""

from typing import ClassVar, Literal

import numpy as np
import polars as pl

from schemas.base import TaskSection
from tasks import sequence_model
from tasks.encoding import encode_texts
from tasks.families import regression
from tasks.families.base import Base


class LoudnessTask(TaskSection):
    """The share of good words."""

    metrics: ClassVar[tuple[str, ...]] = ("closeness",)
    family: Literal["loudness"] = "loudness"
    words: tuple[str, ...] = ("good", "fine", "great")
    """Words that count."""

    def columns(self):
        return {"text": "text"}


class Loudness(Base):
    section, target_columns = LoudnessTask, ("text",)
    serving = regression.Regression.serving

    def rejects(self, task):
        return []

    def describe(self, task, rows):
        return {"words": list(task.words)}

    def encode(self, rows, meta, tokenizer):
        return encode_texts(rows["text"].to_list(), self._shares(rows, meta), meta, tokenizer)

    def _shares(self, rows, meta):
        words = pl.col("text").str.split(" ")
        counted = words.list.eval(pl.element().is_in(meta["words"]).cast(pl.Float64)).list.mean()
        return rows.select(counted).to_series().to_list()

    def load_model(self, base, meta, **options):
        model = sequence_model.load(base, meta, None, "regression", **options)
        model.config.value_mean, model.config.value_scale = 0.0, 1.0
        return model

    def loss_sum(self, model, batch, loss):
        return (sequence_model.logits(model, batch)[:, 0] - batch["labels"].float()).square().sum()

    def outputs(self, model, batch, loss):
        return sequence_model.logits(model, batch)[:, 0].cpu().numpy(), self.loss_sum(model, batch, loss)

    def predictions(self, windows, meta):
        return {"truth": windows.of_texts("labels"), "prediction": windows.means().astype(float).tolist()}

    def numbers(self, predictions, meta):
        off = (predictions["truth"] - predictions["prediction"]).abs().to_numpy()
        return np.stack([np.ones(len(off)), np.maximum(0, 1 - off)], axis=1)

    def metrics_of(self, sums, meta):
        return {"closeness": sums[..., 1] / sums[..., 0]}

    def row_scores(self, predictions, meta):
        return pl.Series(self.numbers(predictions, meta)[:, 1])

    def disagreements(self, served, recorded, meta):
        pairs = zip(recorded.iter_rows(named=True), served, strict=True)
        return [(was["id"], "differs") for was, now in pairs if abs(was["prediction"] - now["value"]) > 1e-4]
'''
RECIPE = """\
name: loudness
task: {family: loudness}
collect: {source: {kind: csv, path: rows.csv}}
clean: {max_quarantined: 0.9}
split: {kind: hash, near_duplicates: {search: false}}
tokenize: {max_seq_length: 40}
model: {base: ./base}
train: {epochs: 3, learning_rate: 3e-3, global_batch_size: 16}
evaluate: {bootstrap_resamples: 500}
gate: {thresholds: [{metric: closeness, at_least: 0.85}], beat_baseline: false}
registry: {promote: auto}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package on its own, as pip installs it, beside a project with rows and a tiny base model."""
    package = tmp_path / "site"
    info = package / "loudness_for_hone-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "loudness.py").write_text(FAMILY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudness-for-hone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hone.families]\nloudness = loudness:Loudness\n")
    tiny_encoder(tmp_path / "base")
    (tmp_path / "rows.csv").write_text("text\n" + "\n".join(text for text, _ in sentences(500)) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(project / "site")]),
        "HONE_HOME": str(project / "home"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-P", *arguments], cwd=project, env=clean | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_family_of_another_package_is_in_the_form(project: Path) -> None:
    script = """
import json
from flows.finetune import finetune
from flows.form import recipe_form
from schemas.loading import load_recipe
from pathlib import Path
schema, values = recipe_form(finetune, load_recipe(Path("recipe.yaml"), []))
tabs = schema["properties"]["recipe"]["properties"]["task"]["anyOf"]
print(json.dumps([[tab["title"], tab["properties"].get("words", {}).get("description")] for tab in tabs]))
"""
    done = python(project, "-c", script)
    assert done.returncode == 0, done.stderr
    assert ["Loudness", "Words that count."] in json.loads(done.stdout)


def test_it_takes_less_than_sixty_lines() -> None:
    assert sum(bool(line.strip()) for line in FAMILY.splitlines()) < 60


@pytest.mark.slow
def test_a_family_of_another_package_comes_from_rows_to_a_registered_model(project: Path) -> None:
    done = python(project, "-m", "flows.cli", "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["metrics"]["closeness"] > 0.85
    assert found["model"]["aliases"] == ["champion"]
    assert found["baselines"] == {}
