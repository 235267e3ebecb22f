"""Register: a model that serves what was measured becomes a version in the MLflow registry, and perhaps champion.

A model is known by the digest of its files, so none is registered twice. Before the registry is touched a fresh process
loads the logged model and must predict what the evaluation recorded. Moves of the champion are `tasks.registry`'s.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from schemas.errors import Fault, Mistake, Problem
from schemas.recipe import Recipe
from schemas.records import Artifact, Interval, ModelVersion, Verdict
from tasks.context import Context
from tasks.digests import content_digest
from tasks.families import Family
from tasks.held_out import training_hashes
from tasks.home import Home
from tasks.model_card import lineage_of, model_card
from tasks.outbox import patiently
from tasks.registry import CHALLENGER, CHAMPION, Registered, aliases_of, files_of, promote, version_of
from tasks.stage import stage_task
from tasks.tracking import client

if TYPE_CHECKING:
    import polars as pl
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

log = logging.getLogger(__name__)

CHECKED_ROWS = 512
"""Test rows, evenly spread, that the fresh process must reproduce."""
TOLERANCE = 1e-4
"""Largest difference of a probability. Float32 sums in another order differ by 1e-6, a wrong token by over 1e-3."""
VERIFY_S = 600.0
"""Longest the fresh process may take."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz"})
"""Suffixes of files that can run code when they are loaded."""
TRAINING_HASHES = "training_hashes.txt.gz"
"""File of the logged model: what its training rows are known by, one a line."""
CARD_LENGTH = 5_000
"""Characters of a version's description that MLflow keeps."""
WARM_MODULES = {
    "transformers": (
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.modeling_utils",
    ),
}
"""Library → what a serving file takes from it, where importing the library alone loads nothing."""


def register_model(
    home: Home,
    run_id: str,
    recipe: Recipe,
    family: Family,
    *,
    model: Path,
    predictions: Path,
    samples: pl.DataFrame,
    training_hashes: Iterable[str],
    verdict: Verdict,
    lineage: Mapping[str, str],
    model_card: str,
    verifier: Verifier | None = None,
) -> ModelVersion:
    """The model's version in the registry: the one it has, or a new one.

    A new version becomes `challenger`; one that passed the gate becomes champion at once where the recipe promotes
    automatically, unless another champion serves by now or it was rolled back before.

    Args:
        home: Whose MLflow it is.
        run_id: MLflow run that the model belongs to.
        recipe: What was run.
        family: Its task family.
        model: Folder of the train artifact; the model is in `model/` below it.
        predictions: Parquet file with what the evaluation recorded on the test rows.
        samples: The test rows, with `id` and the family's text columns.
        training_hashes: What its training rows are known by, for the next comparison with it.
        verdict: What the gate decided.
        lineage: Kept as tags `hone.<key>`.
        model_card: Markdown; the version's description.
        verifier: A process started early by `start_verifier`; default: one is started.

    Raises:
        Mistake: The folder holds something else than safetensors.
        Fault: The fresh process predicts something else, or MLflow is away.
    """
    from filelock import FileLock

    began = time.monotonic()
    folder, name = model / "model", recipe.model_name
    identity = identity_of(home, model, family)
    mlflow = client(home)
    with FileLock(home.locks / f"register-{name}.lock"):
        found = patiently(lambda: _version_with(mlflow, name, identity), home)
        cached = found is not None
        if found is None:
            _refuse_pickle(folder)
            tags = {
                "hone.identity": identity,
                "hone.recipe": recipe.name,
                "hone.family": recipe.task.family,
                "hone.recipe_digest": recipe_digest(recipe),
                "hone.gate": "passed" if verdict.passed else "failed",
                **{f"hone.{key}": value for key, value in lineage.items()},
            }
            candidate = _Candidate(run_id, family, folder, samples, predictions, training_hashes, model_card, tags)
            model_id = _log_model(home, mlflow, candidate, verifier)
            found = patiently(lambda: _create_version(mlflow, name, model_id, candidate), home)
        _propose(home, mlflow, found, passed=verdict.passed)
    if verdict.passed and recipe.registry.promote == "auto" and not found.rolled_back:
        _promote_unless_refused(home, found, verdict, f"MLflow run {run_id}")
    now = patiently(lambda: version_of(mlflow, name, found.version), home)
    return ModelVersion(
        stage="register",
        key=identity,
        cached=cached,
        why="" if cached else "new model",
        seconds=time.monotonic() - began,
        run_id=now.run_id,
        name=name,
        version=now.version,
        aliases=now.aliases,
    )


def identity_of(home: Home, model: Path, family: Family) -> str:
    """What a model is known by: digest of the files it is served from, and of the code that serves it.

    Args:
        home: Remembers digests of files.
        model: Folder of the train artifact; the model is in `model/` below it.
        family: Whose serving file it is.
    """
    parts = [content_digest(model / "model", home), content_digest(family.serving, home)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def recipe_digest(recipe: Recipe) -> str:
    """Digest of everything a recipe says."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def training_hashes_of(home: Home, registered: Registered) -> frozenset[str] | None:
    """What the version's training rows are known by; none for a version that hone did not register."""
    if registered.identity is None:
        return None
    return frozenset(gzip.decompress(files_of(home, registered, TRAINING_HASHES).read_bytes()).decode().split())


class Verifier:
    """A fresh process that loads a logged model and predicts with it; `tasks/verify.py` is its side.

    Args:
        modules: What it imports before the job comes.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        # -P: neither the current folder nor the script's own can shadow a library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("verify.py")), *modules],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it still waits for its job."""
        return self._process.poll() is None

    def predict(self, tracking_uri: str, model_uri: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the logged model predicts for these rows. Ends the process.

        Raises:
            Fault: It cannot be loaded there, or does not predict.
        """
        with tempfile.TemporaryDirectory() as scratch:
            asked, out = Path(scratch) / "rows.json", Path(scratch) / "out.json"
            asked.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
            into = scratch if tracking_uri.startswith("http") else None
            job = {
                "tracking_uri": tracking_uri,
                "model_uri": model_uri,
                "into": into,
                "rows": str(asked),
                "out": str(out),
            }
            try:
                self._process.communicate(json.dumps(job) + "\n", timeout=VERIFY_S)
            except subprocess.TimeoutExpired as error:
                raise Fault(f"a fresh process did not predict within {VERIFY_S:.0f} s") from error
            finally:
                said = self.close()
            if self._process.returncode != 0 or not out.exists():
                raise Fault(f"a fresh process cannot predict with the logged model\n{said}")
            served: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return served

    def close(self) -> str:
        """End the process; returns the last lines it wrote."""
        if self._log.closed:
            return ""
        if self.alive:
            self._process.kill()
        if self._process.stdin and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-15:])
        self._log.close()
        return tail


def start_verifier(family: Family) -> Verifier:
    """Start the fresh process early: its imports take seconds, which other work can overlap."""
    modules = [m for library in family.serving_libraries for m in (library, *WARM_MODULES.get(library, ()))]
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        modules.append("mlflow.store.tracking.sqlalchemy_store")
    return Verifier([module for module in modules if importlib.util.find_spec(module.split(".")[0])])


def disagreements(
    served: Sequence[Mapping[str, Any]], recorded: pl.DataFrame, labels: Sequence[str]
) -> list[tuple[str, str]]:
    """(id, what differs) of every row that is served with another label or other probabilities than were recorded.

    Another label counts where the recorded best two probabilities are further apart than the tolerance allows.

    Args:
        served: What the fresh process predicted, in the order of `recorded`.
        recorded: `id`, `prediction`, `probabilities`.
        labels: What each probability is of.
    """
    found = []
    for was, now in zip(recorded.iter_rows(named=True), served, strict=True):
        if now["probabilities"] is None:
            found.append((was["id"], f"{was['prediction']} was recorded, nothing is served"))
            continue
        named = dict(zip(labels, was["probabilities"], strict=True))
        apart = max(abs(named.get(label, 2.0) - p) for label, p in now["probabilities"].items())
        best, second = sorted(was["probabilities"])[-1:-3:-1]
        if now["label"] != was["prediction"] and best - second > 2 * TOLERANCE:
            found.append((was["id"], f"{was['prediction']} was recorded, {now['label']} is served"))
        elif not apart <= TOLERANCE:  # NaN is a disagreement, too
            found.append((was["id"], f"a probability differs by {apart:.2g}"))
    return found


@dataclass(frozen=True)
class _Candidate:
    """A model on its way into the registry; see `register_model`."""

    run_id: str
    family: Family
    folder: Path
    samples: pl.DataFrame
    predictions: Path
    training_hashes: Iterable[str]
    card: str
    tags: Mapping[str, str]


def _log_model(home: Home, mlflow: MlflowClient, candidate: _Candidate, verifier: Verifier | None) -> str:
    """Id of the logged model, READY only once the fresh process has reproduced what was recorded."""
    from mlflow.entities import LoggedModelOutput

    if verifier is None or not verifier.alive:
        verifier = start_verifier(candidate.family)
    try:
        logged = patiently(lambda: _begin(mlflow, candidate), home)
        model_id = str(logged.model_id)
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(scratch) / "model"
            _save(files, logged, candidate)
            patiently(lambda: mlflow.log_model_artifacts(model_id, str(files)), home)
        try:
            _verify(home, verifier, f"models:/{model_id}", candidate)
        except Fault:
            patiently(lambda: mlflow.finalize_logged_model(model_id, "FAILED"), home)
            raise
    finally:
        verifier.close()
    patiently(lambda: mlflow.finalize_logged_model(model_id, "READY"), home)
    patiently(lambda: mlflow.log_outputs(candidate.run_id, [LoggedModelOutput(model_id, step=0)]), home)
    return model_id


def _begin(mlflow: MlflowClient, candidate: _Candidate) -> LoggedModel:
    """A logged model without files. `Model.log` would need a global tracking URI, and finds runs by the active one."""
    return mlflow.create_logged_model(
        mlflow.get_run(candidate.run_id).info.experiment_id,
        name="model",
        source_run_id=candidate.run_id,
        model_type=candidate.tags["hone.family"],
        tags=dict(candidate.tags),
    )


def _save(files: Path, logged: LoggedModel, candidate: _Candidate) -> None:
    """Write the MLflow model: serving file, model folder, pinned requirements, signature, example, hashes, card."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    example = candidate.samples.select(candidate.family.text_columns).head(3)
    mlflow.pyfunc.save_model(
        path=str(files),
        python_model=str(candidate.family.serving),
        artifacts={"model": str(candidate.folder)},
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=candidate.run_id,
            model_id=logged.model_id,
        ),
        pip_requirements=requirements(candidate.family),
        signature=_signature(candidate.family.serving),
        input_example=pd.DataFrame(example.to_dict(as_series=False)),
    )
    hashes = "".join(f"{known_by}\n" for known_by in sorted(set(candidate.training_hashes)))
    (files / TRAINING_HASHES).write_bytes(gzip.compress(hashes.encode(), mtime=0))
    (files / "model_card.md").write_text(candidate.card, encoding="utf-8")


def requirements(family: Family) -> list[str]:
    """Pins of what the serving file needs, as installed here; a build's local label (`+cpu`) is on no index."""
    return [f"{library}=={version(library).split('+')[0]}" for library in ("mlflow", *family.serving_libraries)]


def _signature(serving: Path) -> ModelSignature:
    """The serving file says itself what it takes and gives."""
    spec = importlib.util.spec_from_file_location(f"serving_{serving.stem}", serving)
    if spec is None or spec.loader is None:
        raise ImportError(f"{serving} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature: ModelSignature = module.SIGNATURE
    return signature


def _verify(home: Home, verifier: Verifier, uri: str, candidate: _Candidate) -> None:
    """Compare what a fresh process predicts with what was recorded, on evenly spread test rows.

    Raises:
        Fault: They differ.
    """
    import polars as pl

    texts = candidate.family.text_columns
    recorded = pl.read_parquet(candidate.predictions, columns=["id", "prediction", "probabilities"])
    rows = recorded.join(candidate.samples.select("id", *texts), on="id", how="inner", maintain_order="left")
    if rows.is_empty():
        raise Fault("no recorded prediction belongs to a test row")
    step = max(1.0, rows.height / CHECKED_ROWS)
    rows = rows[sorted({int(i * step) for i in range(min(rows.height, CHECKED_ROWS))})]
    served = verifier.predict(home.mlflow_uri, uri, rows.select(texts).to_dicts())
    labels = json.loads((candidate.folder / "hone.json").read_text(encoding="utf-8"))["labels"]
    found = disagreements(served, rows, labels)
    if found:
        row, difference = found[0]
        raise Fault(
            f"a fresh process predicts {len(found)} of {rows.height} test rows otherwise than recorded,"
            f" row {row} for one: {difference}"
        )
    log.info("a fresh process reproduced %d recorded predictions", rows.height)


def _refuse_pickle(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    pickled = [p.relative_to(folder).as_posix() for p in files if p.suffix.lower() in PICKLES]
    if pickled or not any(p.suffix == ".safetensors" for p in files):
        raise Mistake(
            Problem(
                "model", pickled or folder.name, "only safetensors are registered: others can run code when loaded",
                "save the weights as safetensors and remove the rest",
            )
        )  # fmt: skip


def _version_with(mlflow: MlflowClient, name: str, identity: str) -> Registered | None:
    found = mlflow.search_model_versions(f"name = '{name}' and tags.`hone.identity` = '{identity}'")
    return version_of(mlflow, name, str(found[0].version)) if found else None


def _create_version(mlflow: MlflowClient, name: str, model_id: str, candidate: _Candidate) -> Registered:
    """Make the version, unless the last try did so and only its answer got lost."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name, tags={"hone.recipe": candidate.tags["hone.recipe"]})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = _version_with(mlflow, name, candidate.tags["hone.identity"])
    if made is not None:
        return made
    created = mlflow.create_model_version(
        name,
        # Not models:/<id>: an SQL registry looks that up in the process's default MLflow, which may be another one.
        mlflow.get_logged_model(model_id).artifact_location,
        candidate.run_id,
        tags={**candidate.tags, "hone.model_id": model_id},  # an SQL registry keeps no model_id
        description=_fitting(candidate.card),
        model_id=model_id,
    )
    return version_of(mlflow, name, str(created.version))


def _propose(home: Home, mlflow: MlflowClient, found: Registered, *, passed: bool) -> None:
    """Keep the gate's latest word, and make the version challenger unless it serves or was taken back."""
    gate = "passed" if passed else "failed"
    if found.tags.get("hone.gate") != gate:
        patiently(lambda: mlflow.set_model_version_tag(found.name, found.version, "hone.gate", gate), home)
    serving = patiently(lambda: aliases_of(mlflow, found.name).get(CHAMPION), home)
    if serving != found.version and not found.rolled_back and CHALLENGER not in found.aliases:
        patiently(lambda: mlflow.set_registered_model_alias(found.name, CHALLENGER, found.version), home)


def _promote_unless_refused(home: Home, found: Registered, verdict: Verdict, by: str) -> None:
    reason = "passed the gate: " + ", ".join(check.name for check in verdict.checks)
    try:
        promote(home, found.name, found.version, expected_champion=verdict.champion, by=by, reason=reason)
    except Mistake as refusal:
        # The model is registered and waits as challenger: nothing is lost, and the next run measures it anew.
        log.warning("%s version %s is not promoted: %s", found.name, found.version, refusal)


def _fitting(card: str) -> str:
    """What MLflow keeps of a card; the whole is in the logged model."""
    if len(card) <= CARD_LENGTH:
        return card
    marker = "\n\n… whole card: `model_card.md` of the logged model"
    return card[: CARD_LENGTH - len(marker)] + marker


class Verifiers:
    """The verifier of this process: started while the model is still being measured, and used once."""

    def __init__(self) -> None:
        self._verifier: Verifier | None = None

    def warm(self, family: Family) -> None:
        """Start one, unless one waits already."""
        if self._verifier is None or not self._verifier.alive:
            self._verifier = start_verifier(family)

    def take(self) -> Verifier | None:
        """The one that waits, if any; whoever takes it closes it."""
        taken, self._verifier = self._verifier, None
        return taken

    def stop(self) -> None:
        """Close the one that waits: there is nothing to verify."""
        taken = self.take()
        if taken is not None:
            taken.close()


verifiers = Verifiers()


@stage_task
def register(
    context: Context, *, cleaned: Artifact, sides: Artifact, model: Artifact, scores: Artifact, verdict: Verdict
) -> ModelVersion:
    """Make the model a version in the registry, once; promote it where the recipe says so and the gate is open."""
    import polars as pl

    recipe, split = context.recipe, context.path(sides)
    lineage = lineage_of(
        context.home.project,
        flow_run_id=context.flow_run_id,
        train_key=model.key,
        data_digest=sides.key,
        weights_sha256=model.summary["weights_sha256"],
    )
    card = model_card(
        recipe,
        rows={
            "kept by cleaning": cleaned.summary["rows"],
            "quarantined": cleaned.summary["quarantined"],
            **{side: sides.summary[side] for side in ("train", "validation", "test")},
        },
        train={
            name: model.summary[name]
            for name in ("steps", "tokens", "seconds", "trainable_parameters", "peak_memory_bytes")
        },
        metrics=_intervals(scores.summary["metrics"]),
        baselines=scores.summary["baselines"],
        verdict=verdict,
        lineage=lineage,
    )
    try:
        return register_model(
            context.home,
            context.run_id,
            recipe,
            context.family,
            model=context.path(model),
            predictions=context.path(scores) / "predictions.parquet",
            samples=pl.read_parquet(split / "test.parquet", glob=False),
            training_hashes=training_hashes(split),
            verdict=verdict,
            lineage=lineage,
            model_card=card,
            verifier=verifiers.take(),
        )
    finally:
        verifiers.stop()


def _intervals(metrics: Mapping[str, float]) -> dict[str, Interval]:
    """The metrics that have bounds, out of the evaluation's flat summary."""
    return {
        name: Interval(value=value, low=metrics[f"{name}_low"], high=metrics[f"{name}_high"])
        for name, value in metrics.items()
        if f"{name}_low" in metrics
    }
