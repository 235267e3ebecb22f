"""Register: a model that serves what was measured becomes a version in the MLflow registry, and perhaps champion.

A model is known by the digest of its files, so none is registered twice. Before the registry is touched a fresh process
loads the logged model, is given rows as they were collected, and must predict what the evaluation recorded. Moves of
the champion are `tasks.registry`'s.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from schemas.errors import Fault, Mistake, Problem
from schemas.recipe import Recipe
from schemas.records import Artifact, Decision, Interval, ModelVersion, SliceScore, Verdict
from tasks.base_model import registered_base
from tasks.context import Context
from tasks.digests import content_digest
from tasks.families import Family, Meta
from tasks.held_out import read_hashes, training_hashes, write_hashes
from tasks.home import Home
from tasks.model_card import lineage_of, model_card
from tasks.onnx_job import ONNX, onnx_artifact
from tasks.outbox import patiently
from tasks.registry import CHALLENGER, CHAMPION, Registered, aliases_of, files_of, promote, version_of, version_with
from tasks.rows import batches, files
from tasks.rules import shipping
from tasks.served_folder import as_served
from tasks.stage import stage_task
from tasks.tracking import client

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

    from tasks.held_out import Hashes

log = logging.getLogger(__name__)

VERIFY_S = 600.0
"""Longest the fresh process may take to load a model."""
ROW_S = 1.0
"""Longest it may take for a row besides."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz"})
"""Suffixes of files that can run code when they are loaded."""
TRAINING_HASHES = ("training_hashes.safetensors", "training_hashes.txt.gz")
"""File of the logged model with what its training rows are known by, and its name in versions of before."""
RULE_LIBRARIES = ("ftfy", "polars")
"""What following the rules for texts mostly needs."""
ONNX_DIFFERENCE = "hone.onnx_difference"
"""Tag of a version with an ONNX file: how far that was from the model on real rows."""
EXAMPLE_ROWS = 3
"""Of the input example."""
CARD_SAYS = ("steps", "tokens", "seconds", "trainable_parameters", "peak_memory_bytes")
"""Of the training, on the model card."""
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
    calibration: Path,
    predictions: Path,
    test: Path,
    raw: Path,
    training_hashes: Hashes,
    verdict: Verdict,
    lineage: Mapping[str, str],
    model_card: str,
    onnx: Callable[[], Path] | None = None,
    verifier: Verifier | None = None,
) -> ModelVersion:
    """The model's version in the registry: the one it has, or a new one.

    A new version that was not rejected becomes `challenger`; one that passed the gate becomes champion at once where
    the recipe promotes automatically, unless another champion serves by now or it was rolled back before.

    An ONNX file is one more form of the same model, so it is no part of what the model is known by: a version that has
    none yet is given one, and stays the version it is.

    Args:
        home: Whose MLflow it is.
        run_id: MLflow run that the model belongs to.
        recipe: What was run.
        family: Its task family.
        model: Folder of the train artifact; the model is in `model/` below it.
        calibration: JSON file with what was fitted on validation; `{}` where nothing was.
        predictions: Parquet file with what the evaluation recorded on the test rows, calibrated.
        test: Parquet file with the test rows.
        raw: Folder of the collect artifact, with the same rows as they were collected.
        training_hashes: What its training rows are known by, sorted, for the next comparison with it.
        verdict: What the gate decided.
        lineage: Kept as tags `hone.<key>`.
        model_card: Markdown; the version's description.
        onnx: Makes the folder that is laid beside the model as `onnx`, where the recipe asks for it.
        verifier: A process started early by `start_verifier`; default: one is started.

    Raises:
        Mistake: The folder holds something else than safetensors.
        Fault: The fresh process predicts something else, or MLflow is away.
    """
    from filelock import FileLock

    began = time.monotonic()
    folder, name = model / "model", recipe.model_name
    identity = identity_of(home, model, family, calibration, recipe.task.notes())
    mlflow = client(home)
    with FileLock(home.locks / f"register-{name}.lock"):
        found = patiently(lambda: version_with(mlflow, name, identity), home)
        cached = found is not None
        has_onnx = found is not None and ONNX_DIFFERENCE in found.tags
        beside = onnx() if onnx is not None and not has_onnx else None
        if found is None:
            _refuse_pickle(folder)
            tags = {
                "hone.identity": identity,
                "hone.recipe": recipe.name,
                "hone.family": recipe.task.family,
                "hone.recipe_digest": recipe_digest(recipe),
                "hone.gate": verdict.decision,
                **({ONNX_DIFFERENCE: _onnx_difference(beside)} if beside else {}),
                **{f"hone.{key}": value for key, value in lineage.items()},
            }
            candidate = _Candidate(
                run_id=run_id,
                family=family,
                folder=folder,
                notes=recipe.task.notes(),
                calibration=calibration,
                predictions=predictions,
                test=test,
                raw=raw,
                training_hashes=training_hashes,
                onnx=beside,
                card=model_card,
                tags=tags,
            )
            model_id = _log_model(home, mlflow, candidate, verifier)
            found = patiently(lambda: _create_version(mlflow, name, model_id, candidate), home)
        elif beside is not None:
            _add_onnx(home, mlflow, found, beside)
        _propose(home, mlflow, found, verdict.decision)
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


def identity_of(home: Home, model: Path, family: Family, calibration: Path, notes: Meta) -> str:
    """What a model is known by: digest of the files it is served from, and of the code that serves it.

    Args:
        home: Remembers digests of files.
        model: Folder of the train artifact; the model is in `model/` below it.
        family: Whose serving file it is.
        calibration: JSON file with what was fitted on validation.
        notes: What it is told beside what it learnt; see `tasks.served_folder`.
    """
    served_from = (model / "model", family.serving, calibration, *shipping.SHIPPED)
    parts = [content_digest(path, home) for path in served_from]
    parts += [json.dumps(notes, sort_keys=True)] if notes else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def recipe_digest(recipe: Recipe) -> str:
    """Digest of everything a recipe says."""
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def training_hashes_of(home: Home, registered: Registered) -> Hashes | None:
    """What the version's training rows are known by, sorted; none for a version that hone did not register.

    Raises:
        Fault: MLflow is away.
        FileNotFoundError: The version has lost the file.
    """
    return None if registered.identity is None else read_hashes(hashes_file(home, registered))


def hashes_file(home: Home, registered: Registered) -> Path:
    """A local copy of the file that `tasks.held_out.read_hashes` reads.

    Raises:
        Fault: MLflow is away.
        FileNotFoundError: The version has no such file.
    """
    newer, older = TRAINING_HASHES
    try:
        return files_of(home, registered, newer)
    except FileNotFoundError:
        return files_of(home, registered, older)


def rows_learnt(context: Context, sides: Artifact) -> Hashes:
    """What all the rows are known by that this run's model has learnt, sorted: today's, and those of its beginnings.

    Raises:
        Fault: MLflow is away.
    """
    import numpy as np

    own = training_hashes(context.path(sides))
    beginning = registered_base(context.recipe.model, context.home)
    if beginning is None:
        return own
    try:
        before = training_hashes_of(context.home, beginning)
    except FileNotFoundError:
        before = None
    if before is None:
        log.warning("nobody knows which rows %s version %s has learnt", beginning.name, beginning.version)
        return own
    return np.union1d(own, before)


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
            limit = VERIFY_S + ROW_S * len(rows)
            try:
                self._process.communicate(json.dumps(job) + "\n", timeout=limit)
            except subprocess.TimeoutExpired as error:
                raise Fault(f"a fresh process did not predict {len(rows)} rows within {limit:.0f} s") from error
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
    libraries = (*family.serving_libraries, *RULE_LIBRARIES)
    modules = [m for library in libraries for m in (library, *WARM_MODULES.get(library, ()))]
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        modules.append("mlflow.store.tracking.sqlalchemy_store")
    return Verifier([module for module in modules if importlib.util.find_spec(module.split(".")[0])])


@dataclass(frozen=True)
class _Candidate:
    """A model on its way into the registry; see `register_model`."""

    run_id: str
    family: Family
    folder: Path
    notes: Meta
    calibration: Path
    predictions: Path
    test: Path
    raw: Path
    training_hashes: Hashes
    onnx: Path | None
    card: str
    tags: Mapping[str, str]

    @cached_property
    def meta(self) -> Meta:
        """What the model knows of the task."""
        meta: Meta = json.loads((self.folder / "hone.json").read_text(encoding="utf-8"))
        return meta


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
            _save(home, files, logged, candidate)
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


def _save(home: Home, out: Path, logged: LoggedModel, candidate: _Candidate) -> None:
    """Write the MLflow model: serving code, model and calibration, pinned requirements, signature, example, hashes."""
    import mlflow.pyfunc
    from mlflow.models import Model

    text_rules = candidate.meta.get("text_rules", {})
    served = as_served(candidate.folder, candidate.notes, home.work)
    with tempfile.TemporaryDirectory() as scratch, served as model:
        mlflow.pyfunc.save_model(
            path=str(out),
            python_model=str(candidate.family.serving),
            code_paths=[str(shipping.write_package(Path(scratch)))],
            artifacts={"model": str(model), "calibration": str(candidate.calibration)},
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=candidate.run_id,
                model_id=logged.model_id,
            ),
            pip_requirements=requirements(candidate.family, text_rules),
            signature=_signature(candidate.family.serving),
            input_example=_example(candidate),
        )
    write_hashes(candidate.training_hashes, out / TRAINING_HASHES[0])
    if candidate.onnx is not None:
        shutil.copytree(candidate.onnx, out / ONNX)
    (out / "model_card.md").write_text(candidate.card, encoding="utf-8")


def _example(candidate: _Candidate) -> pd.DataFrame:
    """A few cleaned rows: those as they were collected may hold what cleaning hides."""
    import pandas as pd
    import polars as pl

    rows = pl.scan_parquet(candidate.test, glob=False).select(candidate.family.asked_columns).head(EXAMPLE_ROWS)
    return pd.DataFrame(rows.collect().to_dict(as_series=False))


def requirements(family: Family, text_rules: Mapping[str, Any]) -> list[str]:
    """Pins of what serving needs, as installed here; a build's local label (`+cpu`) is on no index."""
    libraries = dict.fromkeys(("mlflow", *family.serving_libraries, *shipping.libraries(text_rules)))
    return [f"{library}=={version(library).split('+')[0]}" for library in libraries]


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
    """Compare what a fresh process predicts with what was recorded, on evenly spread test rows as they were collected.

    Raises:
        Fault: They differ.
    """
    recorded = spread(candidate.predictions, candidate.family.checked_rows)
    columns = candidate.family.asked_columns
    rows = as_collected(recorded["id"], columns, test=candidate.test, raw=candidate.raw)
    served = verifier.predict(home.mlflow_uri, uri, rows.select(columns).to_dicts())
    found = candidate.family.disagreements(served, recorded, candidate.meta)
    if found:
        row, difference = found[0]
        raise Fault(
            f"a fresh process predicts {len(found)} of {rows.height} test rows otherwise than recorded,"
            f" row {row} for one: {difference}"
        )
    log.info("a fresh process reproduced %d recorded predictions", rows.height)


def spread(file: Path, most: int) -> pl.DataFrame:
    """At most so many rows of a Parquet file, evenly spread."""
    import polars as pl

    scan = pl.scan_parquet(file, glob=False)
    rows = scan.select(pl.len()).collect().item()
    step = max(1.0, rows / most)
    places = pl.Series([int(place * step) for place in range(min(rows, most))], dtype=pl.UInt32)
    return scan.with_row_index("__place").filter(pl.col("__place").is_in(places.implode())).drop("__place").collect()


def as_collected(ids: pl.Series, columns: Sequence[str], *, test: Path, raw: Path) -> pl.DataFrame:
    """Test rows as they were collected, whatever cleaning made of them: columns `id` and those asked for.

    Args:
        ids: Of the rows, in the order in which they are wanted.
        columns: The task's.
        test: Parquet file with the test rows.
        raw: Folder of the collect artifact. Several of its rows may share an id, none a source and number.

    Raises:
        Fault: One of them is in neither.
    """
    import polars as pl

    place = ["source", "row"]
    scan = pl.scan_parquet(test, glob=False).select("id", *place)
    wanted = scan.filter(pl.col("id").is_in(ids.implode())).collect()
    found = [batch.join(wanted, on=place, how="inner") for batch in batches(files(raw / "rows"), [*place, *columns])]
    rows = pl.DataFrame({"id": ids}).join(pl.concat(found), on="id", how="inner", maintain_order="left")
    if rows.height != len(ids) or rows.is_empty():
        raise Fault(f"{rows.height} of {len(ids)} recorded predictions belong to a test row that was collected")
    return rows


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


def _create_version(mlflow: MlflowClient, name: str, model_id: str, candidate: _Candidate) -> Registered:
    """Make the version, unless the last try did so and only its answer got lost."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name, tags={"hone.recipe": candidate.tags["hone.recipe"]})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = version_with(mlflow, name, candidate.tags["hone.identity"])
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


def _onnx_difference(beside: Path) -> str:
    """How far the ONNX file in this folder was from the model, in two digits."""
    about = json.loads((beside / "about.json").read_text(encoding="utf-8"))
    return f"{about['checked']['largest_difference']:.2g}"


def _add_onnx(home: Home, mlflow: MlflowClient, found: Registered, beside: Path) -> None:
    """Lay an ONNX file beside a model that is registered already; the tag, which says that it is there, comes last."""
    patiently(lambda: mlflow.log_model_artifacts(found.model_id, str(beside), ONNX), home)
    difference = _onnx_difference(beside)
    patiently(lambda: mlflow.set_model_version_tag(found.name, found.version, ONNX_DIFFERENCE, difference), home)


def _propose(home: Home, mlflow: MlflowClient, found: Registered, decision: Decision) -> None:
    """Keep the gate's latest word; the version is challenger unless it serves, was rejected or was taken back."""
    if found.tags.get("hone.gate") != decision:
        patiently(lambda: mlflow.set_model_version_tag(found.name, found.version, "hone.gate", decision), home)
    aliases = patiently(lambda: aliases_of(mlflow, found.name), home)
    fit = decision != "reject" and not found.rolled_back
    if fit and found.version not in {aliases.get(CHAMPION), aliases.get(CHALLENGER)}:
        patiently(lambda: mlflow.set_registered_model_alias(found.name, CHALLENGER, found.version), home)
    elif not fit and aliases.get(CHALLENGER) == found.version:
        patiently(lambda: mlflow.delete_registered_model_alias(found.name, CHALLENGER), home)


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
    """The verifiers of this process: started while the model is still being measured, each used once."""

    def __init__(self) -> None:
        self._waiting: list[Verifier] = []

    def warm(self, family: Family, count: int = 1) -> None:
        """Start as many as there should wait."""
        self._waiting = [verifier for verifier in self._waiting if verifier.alive]
        self._waiting += [start_verifier(family) for _ in range(count - len(self._waiting))]

    def take(self) -> Verifier | None:
        """One that waits, if any; whoever takes it closes it."""
        return self._waiting.pop(0) if self._waiting else None

    def stop(self) -> None:
        """Close those that wait: there is nothing to verify."""
        while (waiting := self.take()) is not None:
            waiting.close()


verifiers = Verifiers()


@stage_task
def register(
    context: Context,
    *,
    raw: Artifact,
    cleaned: Artifact,
    sides: Artifact,
    model: Artifact,
    scores: Artifact,
    verdict: Verdict,
) -> ModelVersion:
    """Make the model a version in the registry, once; promote it where the recipe says so and the gate is open."""
    recipe, split = context.recipe, context.path(sides)
    lineage = lineage_of(
        context.home.project,
        flow_run_id=context.flow_run_id,
        collect_key=raw.key,
        train_key=model.key,
        data_digest=sides.key,
        weights_sha256=model.summary["weights_sha256"],
        **({"started_from": context.started_from} if context.started_from else {}),
    )
    card = model_card(
        recipe,
        rows={
            "kept by cleaning": cleaned.summary["rows"],
            "quarantined": cleaned.summary["quarantined"],
            **{side: sides.summary[side] for side in ("train", "validation", "test")},
        },
        train={
            "learning rate": model.summary["plan"].get("learning_rate") or recipe.train.learning_rate,
            **{name: model.summary[name] for name in CARD_SAYS},
        },
        metrics=_intervals(scores.summary["metrics"]),
        baselines=scores.summary["baselines"],
        slices=[SliceScore(**part) for part in scores.summary["slices"]],
        row_score=scores.summary["row_score"],
        calibration=scores.summary["calibration_told"],
        speed=scores.summary["speed"],
        verdict=verdict,
        lineage=lineage,
    )
    verifier = verifiers.take()

    def onnx() -> Path:
        return context.path(onnx_artifact(context, sides, model)) / ONNX

    try:
        return register_model(
            context.home,
            context.run_id,
            recipe,
            context.family,
            model=context.path(model),
            calibration=context.path(scores) / "calibration.json",
            predictions=context.path(scores) / "predictions.parquet",
            test=split / "test.parquet",
            raw=context.path(raw),
            training_hashes=rows_learnt(context, sides),
            verdict=verdict,
            lineage=lineage,
            model_card=card,
            onnx=onnx if recipe.registry.onnx else None,
            verifier=verifier,
        )
    finally:
        if verifier is not None:
            verifier.close()


def _intervals(metrics: Mapping[str, float]) -> dict[str, Interval]:
    """The metrics that have bounds, out of the evaluation's flat summary."""
    return {
        name: Interval(value=value, low=metrics[f"{name}_low"], high=metrics[f"{name}_high"])
        for name, value in metrics.items()
        if f"{name}_low" in metrics
    }
