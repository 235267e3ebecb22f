"""A language model from conversations to answers over HTTP: recipe, run, registered version, MLflow's server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.e2e.conftest import Hone, free_port, quiet_environment, wait_for
from tests.learning import BAD, GOOD, WORDS, tiny_decoder

pytestmark = pytest.mark.e2e

RECIPE = """\
name: echo
task: {family: causal-lm, max_new_tokens: 8}
collect: {source: {kind: jsonl, path: rows.jsonl}}
clean: {collapse_whitespace: false, min_chars: 1, max_quarantined: 0.5}
split: {kind: hash, near_duplicates: {search: false}}
tokenize: {max_seq_length: 32}
model: {base: ./base}
train: {max_steps: 120, learning_rate: 5e-3, global_batch_size: 32}
evaluate: {bootstrap_resamples: 500}
registry: {promote: auto}
"""


@pytest.fixture
def hone(tmp_path: Path) -> Hone:
    """A project with conversations, half of them OpenAI's way and half ShareGPT's."""
    tiny_decoder(tmp_path / "base")
    draw = random.Random(0)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for place in range(300):
            asked = " ".join(draw.choices(WORDS, k=draw.randint(2, 5)))
            answer = asked.split()[0]
            if place % 2:
                row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            else:
                row = {"messages": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "pyproject.toml").write_text("")
    return Hone(tmp_path)


def test_conversations_become_a_model_that_answers_over_http(hone: Hone, tmp_path: Path) -> None:
    done = hone("run", "recipe.yaml")
    assert done.code == 0, done.errors
    metrics, base = done.result["metrics"], done.result["baselines"]["base"]
    assert metrics["likelihood"] > 3 * base["likelihood"]
    assert metrics["chrf"] > base["chrf"]
    version = done.result["model"]
    assert version["aliases"] == ["champion"]

    # Writing otherwise teaches nothing anew: the same weights answer, are measured, and serve as another version.
    shorter_ones = hone("run", "recipe.yaml", "--set", "task.max_new_tokens=2", "--set", "task.num_beams=2")
    assert shorter_ones.code == 0, shorter_ones.errors
    assert shorter_ones.computed == ["evaluate", "gate", "register"]
    assert shorter_ones.result["train"]["weights_sha256"] == done.result["train"]["weights_sha256"]
    assert shorter_ones.result["model"]["version"] == "2"

    tracking = f"sqlite:///{hone.home}/mlflow.db"
    mlflow.set_tracking_uri(tracking)
    uri = f"models:/echo/{version['version']}"
    question = [{"role": "user", "content": "good film"}]
    loaded = mlflow.pyfunc.load_model(uri)
    (answer,) = loaded.predict({"messages": question}).to_dict("records")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": answer["text"]}
    assert answer["choices"][0]["finish_reason"] in {"stop", "length"}
    assert answer["usage"]["prompt_tokens"] == 5
    (shorter,) = loaded.predict({"messages": question}, params={"max_new_tokens": 1}).to_dict("records")
    assert shorter["usage"]["completion_tokens"] == 1
    (brief,) = mlflow.pyfunc.load_model("models:/echo/2").predict({"messages": question}).to_dict("records")
    assert brief["usage"]["completion_tokens"] <= 2

    address, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "serve.log"
    environment = quiet_environment(MLFLOW_TRACKING_URI=tracking)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd="/",
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(f"{address}/health", log)
        request = urllib.request.Request(
            f"{address}/invocations",
            data=json.dumps({"messages": question, "temperature": 0.0}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            (told,) = json.load(reply)
        assert told == answer
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.terminate()
        server.wait(30)


PREFERENCES = """\
name: polite
task: {family: preference, max_new_tokens: 4}
collect: {source: {kind: jsonl, path: pairs.jsonl}}
clean: {collapse_whitespace: false, min_chars: 1, max_quarantined: 0.5}
split: {kind: hash, near_duplicates: {search: false}}
tokenize: {max_seq_length: 32}
model: {base: ./base}
train: {max_steps: 30, learning_rate: 3e-3, global_batch_size: 16}
evaluate: {bootstrap_resamples: 500, slices: {weak: false}}
registry: {promote: auto}
"""


def test_what_is_preferred_is_learnt_and_compared_with_the_champion_by_its_weights(hone: Hone, tmp_path: Path) -> None:
    draw = random.Random(1)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for _ in range(240):
            asked = " ".join(draw.choices(WORDS[6:], k=4))
            row = {"prompt": asked, "chosen": draw.choice(GOOD), "rejected": draw.choice(BAD)}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "pairs.yaml").write_text(PREFERENCES)
    first = hone("run", "pairs.yaml")
    assert first.code == 0, first.errors
    assert first.result["metrics"]["preference_accuracy"] > first.result["baselines"]["base"]["preference_accuracy"]
    assert first.result["model"]["aliases"] == ["champion"]

    again = hone("run", "pairs.yaml", "--set", "train.seed=1")
    assert again.code == 0, again.errors
    gate = again.result["gate"]
    assert gate["champion"] == "1"
    assert gate["decision"] in {"promote", "challenger", "undecidable"}, gate
