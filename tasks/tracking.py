"""Tracking: hone owns its MLflow runs, through `MlflowClient` and explicit run ids.

MLflow's active run is never used: it is thread-local, starts runs nobody ends and logs to the wrong one. What a run has
to tell waits in an outbox that a thread empties, so that MLflow being away delays no stage and loses nothing: what is
left at the end is kept in the journal and sent by the next command. Does not cover the registry (`tasks.register`).
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import EnvironmentMistake, Problem
from schemas.recipe import Recipe
from tasks.desk_note import mlflow_name
from tasks.digests import write_atomically
from tasks.home import Home
from tasks.outbox import METRICS_PER_BATCH, Op, Outbox, first_line, is_away, patiently, send, without_password

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

END_S = 20.0
"""Longest the end of a run waits for MLflow; what is unsent by then is kept and sent by the next command."""
JOIN_S = 0.5
"""Longest the end of a run waits for its thread."""
TICK_S = 1.0
"""Pause between two deliveries."""
SYSTEM_METRICS_S = 10.0
"""Pause between two samples of processor, memory, disk, network and GPU."""
KEEP_ENDED_S = 30 * 86_400.0
"""How long the journal keeps runs that have ended."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it would try seven times over four minutes; `patiently` decides that here
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""How MLflow is asked to behave, unless the environment says otherwise."""

# Limits of MLflow 3.17 (mlflow.utils.validation).
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6_000
TAG_LENGTH = 8_000
DIGEST_LENGTH = 36


def client(home: Home) -> MlflowClient:
    """A client of the home's MLflow."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every step
    return MlflowClient(home.mlflow_uri)


def prepare(home: Home) -> None:
    """Make or upgrade an SQLite database before anyone connects; does nothing for a server.

    A fresh SQLite file opened by several clients at once fails in all of them, in MLflow's migrations.

    Raises:
        EnvironmentMistake: The database was made by a newer MLflow.
    """
    from filelock import FileLock

    uri = home.mlflow_uri
    if not uri.startswith("sqlite:///"):
        return
    database = Path(uri.removeprefix("sqlite:///"))
    note = home.root / "mlflow.json"
    wanted = json.dumps({"uri": uri, "mlflow": version("mlflow")})
    if _is_prepared(database, note, wanted):
        return
    with FileLock(home.locks / "mlflow.lock"):
        if _is_prepared(database, note, wanted):
            return
        _make_database(uri, database, home.mlflow_artifacts)
        write_atomically(note, wanted)


def _is_prepared(database: Path, note: Path, wanted: str) -> bool:
    return note.exists() and database.exists() and note.read_text() == wanted


def _make_database(uri: str, database: Path, artifacts: str) -> None:
    """MLflow makes what is missing. It is copied first: MLflow's migrations cannot be undone by a crash."""
    database.parent.mkdir(parents=True, exist_ok=True)
    before = _schema(database)
    backup = database.with_name(f"{database.name}.{before}.bak")
    if before:
        shutil.copyfile(database, backup)
    try:
        _migrate(uri, database, artifacts)
    finally:
        if _schema(database) == before:
            backup.unlink(missing_ok=True)
        elif before:
            log.info(
                "%s was upgraded for MLflow %s; the old one is kept as %s", database, version("mlflow"), backup.name
            )


def _migrate(uri: str, database: Path, artifacts: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        SqlAlchemyStore(uri, artifacts).engine.dispose()
    except MlflowException as error:
        if "out-of-date" not in str(error):
            raise
        _upgrade(uri, database)


def _upgrade(uri: str, database: Path) -> None:
    upgrade = [sys.executable, "-P", "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(upgrade, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EnvironmentMistake(
            Problem(
                "MLflow database", str(database), f"MLflow {version('mlflow')} cannot upgrade it: {done.stderr[-300:]}",
                "use the MLflow that made it, or another HONE_HOME",
            )
        )  # fmt: skip


def _schema(database: Path) -> str:
    """Name of the last migration; empty for a database that is new."""
    if not database.exists() or database.stat().st_size == 0:
        return ""
    with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.OperationalError):
        for (name,) in connection.execute("SELECT version_num FROM alembic_version"):
            return str(name)
    return ""


def run_url(home: Home, experiment_id: str, run_id: str) -> str | None:
    """The run's page, when the home's MLflow is a server."""
    if not home.mlflow_is_server:
        return None
    return f"{without_password(home.mlflow_uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def adopt(home: Home, run_ids: Iterable[str], parent: str) -> None:
    """Nest runs of earlier commands in a run of this one; those that MLflow no longer has are left out."""
    from mlflow.exceptions import MlflowException

    mlflow = client(home)
    for run_id in run_ids:
        try:
            mlflow.set_tag(run_id, "mlflow.parentRunId", parent)
        except MlflowException as error:
            log.warning("run %s stays where it is: %s", run_id, first_line(error))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as MLflow params: `train.learning_rate`; lists as JSON; what is not set is left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        elif value is not None:
            flat[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


@dataclass(frozen=True)
class Entry:
    """What the journal knows of a run: `<home>/journal/runs/<run_id>.json`.

    Attributes:
        token: Names the lock that the run's process holds while it lives, and the file until the run id is known.
        run_id: MLflow's; empty while the run is being made.
        status: RUNNING until it ended or was found dead.
    """

    token: str
    run_id: str
    experiment_id: str
    flow_run_id: str
    pid: int
    host: str
    started: str
    recipe: str
    tracking_uri: str
    status: str = "RUNNING"
    ended: str | None = None

    def file(self, home: Home) -> Path:
        """Where it is written."""
        return home.journal / "runs" / f"{self.run_id or self.token}.json"

    def lock(self, home: Home) -> BaseFileLock:
        """Held by the process that the run belongs to; the kernel frees it when that dies."""
        from filelock import FileLock

        return FileLock(home.locks / f"run-{self.token}.lock", thread_local=False)

    def write(self, home: Home, file: Path | None = None) -> None:
        """Replace what the journal says."""
        write_atomically(file or self.file(home), json.dumps(asdict(self), indent=1))

    def close(self, home: Home, status: str) -> None:
        """Say how it ended, and give the lock's file back."""
        replace(self, status=status, ended=_now()).write(home)
        (home.locks / f"run-{self.token}.lock").unlink(missing_ok=True)


class Run:
    """A live MLflow run that this process owns: made by `Run.start`, closed by `end`.

    No logging method waits for MLflow or raises because it is away.

    Attributes:
        run_id: MLflow's id.
        experiment_id: The experiment of the recipe's name.
        url: Its page, when MLflow is a server.
    """

    def __init__(self, home: Home, mlflow: MlflowClient, entry: Entry, lock: BaseFileLock) -> None:
        self.run_id = entry.run_id
        self.experiment_id = entry.experiment_id
        self.url = run_url(home, entry.experiment_id, entry.run_id)
        self._home = home
        self._entry = entry
        self._lock = lock
        self._mlflow = mlflow
        self._outbox = Outbox(mlflow, entry.run_id)
        self._ended = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hone-tracking", daemon=True)
        self._thread.start()

    @staticmethod
    def start(
        home: Home,
        recipe: Recipe,
        *,
        flow_run_id: str = "",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        note: str = "",
    ) -> Run:
        """A new run in the recipe's experiment, or, in a flow run's retry, the run it had.

        Call `prepare`, `sweep` and `replay_unsent` first. The recipe is logged as params and as `recipe.json`.

        Args:
            home: Whose MLflow it goes to.
            recipe: What is run; its name is the experiment's.
            flow_run_id: Prefect's.
            name: Shown in MLflow; default: MLflow invents one.
            tags: Further tags.
            note: Markdown shown on the run's page.

        Raises:
            Fault: MLflow is away.
        """
        mlflow = client(home)
        experiment_id = patiently(lambda: _experiment(home, mlflow, recipe.name), home)
        known = {
            "mlflow.source.name": "hone",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": user(),
            "hone.recipe": recipe.name,
            "hone.flow_run_id": flow_run_id,
            "mlflow.note.content": note[:TAG_LENGTH],
            **(tags or {}),
        }
        fresh = Entry(
            token=uuid.uuid4().hex,
            run_id="",
            experiment_id=experiment_id,
            flow_run_id=flow_run_id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=_now(),
            recipe=recipe.name,
            tracking_uri=mlflow_name(home),
        )
        entry, lock = _journalled(home, mlflow, fresh, name=name, tags=_nonempty(known))
        run = Run(home, mlflow, entry, lock)
        run.log_params(flatten(recipe.model_dump(mode="json")))
        run.log_text(recipe.model_dump_json(indent=1), "recipe.json")
        return run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log flat params; a value over MLflow's limit is cut and says so."""
        texts = [(name, _cut(str(value), PARAM_LENGTH)) for name, value in params.items()]
        for i in range(0, len(texts), PARAMS_PER_BATCH):
            self._outbox.put({"op": "params", "values": dict(texts[i : i + PARAMS_PER_BATCH])})

    def log_metrics(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log (step, name → value) rows, stamped with the present time."""
        now = _now_ms()
        values = [[name, float(value), now, step] for step, row in rows for name, value in row.items()]
        for i in range(0, len(values), METRICS_PER_BATCH):
            self._outbox.put({"op": "metrics", "values": values[i : i + METRICS_PER_BATCH]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a value over MLflow's limit is cut and says so."""
        self._outbox.put({"op": "tags", "values": {name: _cut(str(v), TAG_LENGTH) for name, v in tags.items()}})

    def link_cached(self, stage: str, run_id: str) -> None:
        """Say which run made a stage's output that was found in the store."""
        self.set_tags({f"hone.stage.{stage}.run_id": run_id})

    def log_text(self, text: str, name: str) -> None:
        """Log a small text as the artifact `name`."""
        self._outbox.put({"op": "text", "text": text, "name": name})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or all files of a folder, below the run's `folder`. It may be deleted afterwards.

        Raises:
            FileNotFoundError: There is no such file.
        """
        op = {"op": "artifact", "path": str(path), "folder": folder}
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            send(self._mlflow, self.run_id, op)
        except Exception as error:  # noqa: BLE001  tracking must not end a training run
            log.warning("%s could not be sent to MLflow (%s); a copy waits", path.name, first_line(error))
            self._outbox.put(op | {"path": str(self._copy(path))})

    def log_dataset(
        self, name: str, *, digest: str, source: str, counts: Mapping[str, int], context: str = "training"
    ) -> None:
        """Record that the run read a dataset.

        Args:
            name: Shown in MLflow.
            digest: Of its content; MLflow keeps 36 characters.
            source: Where it came from.
            counts: Rows and the like, shown as its profile.
            context: `training`, `validation` or `test`.
        """
        self._outbox.put(
            {
                "op": "dataset",
                "name": name,
                "digest": digest[:DIGEST_LENGTH],
                "source": json.dumps({"uri": without_password(source)}),
                "profile": json.dumps(dict(counts)),
                "context": context,
            }
        )

    def flush(self, limit_s: float = END_S) -> bool:
        """Send what waits; returns whether all of it went."""
        return self._outbox.deliver(limit_s)

    def end(self, status: Status) -> None:
        """Close the run. What MLflow does not take within `END_S` is kept for `replay_unsent`."""
        if self._ended:
            return
        self._ended = True
        self._stop.set()
        self._thread.join(JOIN_S)
        self._outbox.put({"op": "end", "status": status, "time_ms": _now_ms()})
        if self._outbox.deliver(END_S):
            shutil.rmtree(_unsent(self._home) / self.run_id, ignore_errors=True)
        else:
            _keep_unsent(self._home, self.run_id, self._outbox.left())
        self._entry.close(self._home, status)
        self._lock.release()

    def _copy(self, path: Path) -> Path:
        """A copy in the journal that outlives the original."""
        kept = _unsent(self._home) / self.run_id / uuid.uuid4().hex[:8] / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copyfile(path, kept)
        return kept

    def _work(self) -> None:
        """The thread: sends what waits, samples the machine."""
        system = _SystemMetrics(self._home, self.run_id)
        while not self._stop.wait(TICK_S):
            if op := system.sample():
                self._outbox.put(op)
            self._outbox.deliver()


class _SystemMetrics:
    """Use of the machine, sampled by MLflow's monitors but sent through the outbox.

    MLflow's own loop ends for good at the first failed request, and at its end waits for a server that is away.
    """

    def __init__(self, home: Home, run_id: str) -> None:
        self._home = home
        self._run_id = run_id
        self._monitor: SystemMetricsMonitor | None = None
        self._next = time.monotonic()
        self._step = 0

    def sample(self) -> Op | None:
        """Metrics since the last sample, when one is due."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + SYSTEM_METRICS_S
        try:
            self._monitor = self._monitor or self._make()
            self._monitor.collect_metrics()
            found = self._monitor.aggregate_metrics()
            for part in self._monitor.monitors:
                part.clear_metrics()
        except Exception as error:  # noqa: BLE001  a sensor that fails must not end a training run
            log.warning("the machine's use cannot be measured: %s", first_line(error))
            self._next = float("inf")
            return None
        self._step += 1
        values = [[f"system/{name}", float(value), _now_ms(), self._step] for name, value in found.items()]
        return {"op": "metrics", "values": values}

    def _make(self) -> SystemMetricsMonitor:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        return SystemMetricsMonitor(self._run_id, tracking_uri=self._home.mlflow_uri)


def sweep(home: Home) -> list[Entry]:
    """Close the runs of processes that died, as KILLED, and forget those that ended long ago.

    Returns:
        The runs closed now, oldest first.
    """
    from filelock import Timeout

    swept = []
    for file in sorted((home.journal / "runs").glob("*.json")):
        entry = _read_entry(file)
        if entry is None or entry.status != "RUNNING":
            _forget_if_old(file)
            continue
        lock = entry.lock(home)
        with suppress(Timeout), lock.acquire(blocking=False):
            closed = _close_dead(home, entry, file)
            if closed is not None:
                swept.append(closed)
    return sorted(swept, key=lambda entry: entry.started)


def live_runs(home: Home) -> list[Entry]:
    """The runs of living processes, oldest first; call `sweep` before."""
    entries = [_read_entry(file) for file in (home.journal / "runs").glob("*.json")]
    return sorted((e for e in entries if e and e.status == "RUNNING"), key=lambda entry: entry.started)


def replay_unsent(home: Home) -> int:
    """Send what earlier runs could not; returns how many of them are complete by now."""
    from filelock import FileLock, Timeout

    if not any(_unsent(home).glob("*.jsonl")):
        return 0
    complete = 0
    with suppress(Timeout), FileLock(home.locks / "unsent.lock", blocking=False):
        mlflow = client(home)
        for file in sorted(_unsent(home).glob("*.jsonl")):
            outbox = Outbox(mlflow, file.stem, [json.loads(line) for line in file.read_text().splitlines()])
            if not outbox.deliver():
                _keep_unsent(home, file.stem, outbox.left())
                break
            file.unlink()
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)
            complete += 1
    return complete


def _experiment(home: Home, mlflow: MlflowClient, name: str) -> str:
    """Id of the experiment of that name, made or restored if need be, whoever else does so at this moment."""
    from mlflow.exceptions import MlflowException

    found = mlflow.get_experiment_by_name(name)
    if found is None:
        # Without a server MLflow would put artifacts below the current folder.
        location = None if home.mlflow_is_server else f"{home.mlflow_artifacts}/{name}"
        try:
            return mlflow.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            found = mlflow.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage == "deleted":
        log.warning("experiment %s had been deleted in MLflow; restoring it", name)
        mlflow.restore_experiment(found.experiment_id)
    return found.experiment_id


def _journalled(
    home: Home, mlflow: MlflowClient, fresh: Entry, *, name: str | None, tags: dict[str, str]
) -> tuple[Entry, BaseFileLock]:
    """A run that the journal knew before MLflow did: dying in between leaves nothing RUNNING."""
    entry = replace(fresh, run_id=_run_of_flow(home, fresh.recipe, fresh.flow_run_id))
    lock = entry.lock(home)
    lock.acquire()
    entry.write(home)
    tags = tags | {"hone.token": entry.token}
    if entry.run_id and not patiently(lambda: _continue(mlflow, entry.run_id, tags), home):
        entry.file(home).unlink()
        entry = fresh
        entry.write(home)
    if not entry.run_id:
        tries = count()
        made = patiently(lambda: _create(mlflow, entry.experiment_id, name, tags, again=next(tries) > 0), home)
        unnamed = entry.file(home)
        entry = replace(entry, run_id=made)
        entry.write(home, unnamed)
        unnamed.rename(entry.file(home))
    return entry, lock


def _continue(mlflow: MlflowClient, run_id: str, tags: dict[str, str]) -> bool:
    """Open a run again; false when somebody deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.update_run(run_id, status="RUNNING")
        send(mlflow, run_id, {"op": "tags", "values": tags})
    except MlflowException as error:
        if is_away(error):
            raise
        return False
    return True


def _create(mlflow: MlflowClient, experiment_id: str, name: str | None, tags: dict[str, str], *, again: bool) -> str:
    """Make the run, unless the last try did so and only its answer got lost."""
    made = _run_of_token(mlflow, experiment_id, tags["hone.token"]) if again else ""
    return made or str(mlflow.create_run(experiment_id, tags=tags, run_name=name).info.run_id)


def _run_of_token(mlflow: MlflowClient, experiment_id: str, token: str) -> str:
    found = mlflow.search_runs([experiment_id], f"tags.`hone.token` = '{token}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _run_of_flow(home: Home, recipe: str, flow_run_id: str) -> str:
    """The run that an earlier attempt of this flow run had."""
    if not flow_run_id:
        return ""
    entries = [_read_entry(file) for file in (home.journal / "runs").glob("*.json")]
    known = [e for e in entries if e and e.run_id and (e.flow_run_id, e.recipe) == (flow_run_id, recipe)]
    return max(known, key=lambda entry: entry.started).run_id if known else ""


def _close_dead(home: Home, entry: Entry, file: Path) -> Entry | None:
    """Set a dead process's run KILLED; none when MLflow is away or is another one."""
    fresh = _read_entry(file)
    if fresh != entry:  # it ended, or was swept, while we looked
        (home.locks / f"run-{entry.token}.lock").unlink(missing_ok=True)
        return None
    if entry.tracking_uri != mlflow_name(home):
        _forget_if_old(file)
        return None
    try:
        entry = _kill(client(home), entry)
    except Exception as error:  # noqa: BLE001  sweeping must not keep a new run from starting
        log.warning("run %s of a dead process could not be closed: %s", entry.run_id, first_line(error))
        return None
    entry.close(home, "KILLED")
    if entry.file(home) != file:
        file.unlink()
    log.warning("run %s of a process that died (%d on %s) is closed as KILLED", entry.run_id, entry.pid, entry.host)
    return replace(entry, status="KILLED")


def _kill(mlflow: MlflowClient, entry: Entry) -> Entry:
    from mlflow.exceptions import MlflowException

    run_id = entry.run_id or _run_of_token(mlflow, entry.experiment_id, entry.token)
    if run_id:
        try:
            if mlflow.get_run(run_id).info.status == "RUNNING":
                mlflow.set_terminated(run_id, "KILLED")
        except MlflowException as error:
            if is_away(error):
                raise
            log.info("run %s is gone from MLflow", run_id)
    return replace(entry, run_id=run_id)


def _read_entry(file: Path) -> Entry | None:
    try:
        return Entry(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s in the journal cannot be read: %s", file.name, error)
        return None


def _forget_if_old(file: Path) -> None:
    with suppress(FileNotFoundError):
        if time.time() - file.stat().st_mtime > KEEP_ENDED_S:
            file.unlink()


def _unsent(home: Home) -> Path:
    return home.journal / "unsent"


def _keep_unsent(home: Home, run_id: str, ops: Iterable[Op]) -> None:
    file = _unsent(home) / f"{run_id}.jsonl"
    write_atomically(file, "".join(json.dumps(op) + "\n" for op in ops))
    log.warning("MLflow is away: what run %s could not send is kept in %s and sent by the next command", run_id, file)


def _nonempty(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if value}


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    marker = f"… [cut: {len(text)} characters, whole in recipe.json]"
    return text[: limit - len(marker)] + marker


def user() -> str:
    """Login name of whoever runs this."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _now_ms() -> int:
    return int(time.time() * 1000)
