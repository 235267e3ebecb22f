"""The outbox: what a run still has to tell MLflow, kept while MLflow is away; and how long other calls wait for it."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from schemas.errors import Fault
from tasks.home import Home

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Op = dict[str, Any]
"""One thing to tell MLflow, as JSON values: `op` and what it needs."""

MUST_S = 120.0
"""Longest a call that must succeed is tried again."""
LONGEST_PAUSE_S = 15.0
"""Longest pause between two tries."""
METRICS_PER_BATCH = 1_000
"""Limit of MLflow 3.17 (mlflow.utils.validation)."""


class Outbox:
    """What a run still has to tell MLflow, in order. Sending twice does no harm: every metric carries its own time.

    Args:
        mlflow: Where it goes.
        run_id: The run it is about.
        ops: What was left from before.
    """

    def __init__(self, mlflow: MlflowClient, run_id: str, ops: Iterable[Op] = ()) -> None:
        self._mlflow = mlflow
        self._run_id = run_id
        self._ops: deque[Op] = deque(ops)
        self._sending = threading.Lock()
        self._away = False
        self._pause = 0.0
        self._not_before = 0.0

    def put(self, op: Op) -> None:
        """Append; returns at once."""
        self._ops.append(op)

    def left(self) -> list[Op]:
        """What is not sent."""
        return list(self._ops)

    def deliver(self, limit_s: float = 0.0) -> bool:
        """Send all there is, in order. MLflow being away ends it early; it never raises.

        Args:
            limit_s: How long to try again while MLflow is away; 0: one try, and none during the pause after a failure.

        Returns:
            Whether the outbox is empty.
        """
        deadline = time.monotonic() + limit_s
        if not self._sending.acquire(timeout=limit_s):
            return False
        try:
            while self._ops:
                if limit_s == 0 and time.monotonic() < self._not_before:
                    return False
                if not self._send_first() and not self._wait_until(deadline):
                    return False
            return True
        finally:
            self._sending.release()

    def _wait_until(self, deadline: float) -> bool:
        pause = min(self._pause, deadline - time.monotonic())
        if pause <= 0:
            return False
        time.sleep(pause)
        return True

    def _send_first(self) -> bool:
        """Send the first operation, metrics with those right behind them; false when MLflow is away."""
        op, taken = self._ops[0], 1
        if op["op"] == "metrics":
            op, taken = self._merged_metrics()
        try:
            send(self._mlflow, self._run_id, op)
        except Exception as error:  # noqa: BLE001  tracking must not end a training run
            if is_away(error):
                self._pause = min(max(2 * self._pause, 0.2), LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + self._pause
                level = logging.DEBUG if self._away else logging.WARNING
                log.log(level, "MLflow is away (%s); %d messages wait", first_line(error), len(self._ops))
                self._away = True
                return False
            log.error("MLflow refused %s of run %s: %s", op["op"], self._run_id, first_line(error))  # noqa: TRY400
        for _ in range(taken):
            self._ops.popleft()
        if self._away:
            log.info("MLflow is back")
        self._away, self._pause = False, 0.0
        return True

    def _merged_metrics(self) -> tuple[Op, int]:
        values: list[Any] = []
        taken = 0
        for op in self.left():
            if op["op"] != "metrics" or len(values) + len(op["values"]) > METRICS_PER_BATCH:
                break
            values += op["values"]
            taken += 1
        return {"op": "metrics", "values": values}, taken


def send(mlflow: MlflowClient, run_id: str, op: Op) -> None:
    """Tell MLflow one thing about a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    match op["op"]:
        case "metrics":
            mlflow.log_batch(run_id, metrics=[Metric(*value) for value in op["values"]])
        case "params":
            mlflow.log_batch(run_id, params=[Param(*value) for value in op["values"].items()])
        case "tags":
            mlflow.log_batch(run_id, tags=[RunTag(*value) for value in op["values"].items()])
        case "text":
            mlflow.log_text(run_id, op["text"], op["name"])
        case "artifact" if Path(op["path"]).is_dir():
            mlflow.log_artifacts(run_id, op["path"], op["folder"])
        case "artifact":
            mlflow.log_artifact(run_id, op["path"], op["folder"])
        case "dataset":
            dataset = Dataset(op["name"], op["digest"], "local", op["source"], profile=op["profile"])
            tags = [InputTag("mlflow.data.context", op["context"])]
            mlflow.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])
        case "end":
            mlflow.set_terminated(run_id, op["status"], op["time_ms"])
        case unknown:
            raise ValueError(f"no message is called {unknown!r}")


def is_away(error: Exception) -> bool:
    """Whether MLflow, its database or its artifact store could not be reached, so that another try may succeed."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, OSError):
        status = getattr(getattr(error, "response", None), "status_code", 503)
    else:
        return type(error).__module__.split(".")[0] in {"sqlalchemy", "botocore", "boto3", "urllib3"}
    return status >= 500 or status in {408, 429}


def patiently(call: Callable[[], Result], home: Home, *, limit_s: float | None = None) -> Result:
    """The result of `call`, tried again with growing pauses while MLflow is away.

    Args:
        call: May run several times.
        home: Whose MLflow it is.
        limit_s: Longest it is tried; default: `MUST_S`.

    Raises:
        Fault: MLflow was away all that time.
    """
    deadline = time.monotonic() + (MUST_S if limit_s is None else limit_s)
    pause, level = 0.2, logging.WARNING
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            said = first_line(error)
        if time.monotonic() + pause > deadline:  # outside the handler: a chained error would show the password
            raise Fault(f"MLflow at {without_password(home.mlflow_uri)} is away: {said}")
        log.log(level, "MLflow is away (%s); trying again for %.0f s", said, deadline - time.monotonic())
        level = logging.DEBUG
        time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  spreads clients, keeps no secret
        pause = min(pause * 2, LONGEST_PAUSE_S)


def without_password(uri: str) -> str:
    """A URI that may be shown: no user, no password, no query."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc and not parts.query:
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", parts.fragment))


def first_line(error: Exception) -> str:
    """What an error says, in one line; MLflow's name the server with its password."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"(?<=://)[^/\s@]+@", "", line)[:200]
