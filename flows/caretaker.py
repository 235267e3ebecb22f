"""What the desk looks after while it is up: dead runs, moves by hand, changed recipes, and news for the terminal.

Every round is a list of small jobs. One that fails is tried again in the next round and keeps no other from its turn:
what it said is told once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.sorting import FlowRunSort

from flows.deploy import TAG, apply
from flows.desk import Desk
from flows.events import publish
from flows.pipeline import mark_crashed
from flows.webhook import listen, subscribe, unsubscribe
from schemas.recipe import Recipe
from tasks.home import Home
from tasks.outbox import first_line
from tasks.registry import reconcile
from tasks.tracking import replay_unsent, sweep

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

ROUND_S = 5.0
"""Pause between two rounds; a call of MLflow's webhook ends it early."""
MEND_S = 1.0
"""Pause between two looks whether the desk's parts live."""
NEWS = 50
"""Latest flow runs that are looked at for news."""
BAD = {"FAILED", "CRASHED"}
"""Types of states that are told with their message and address."""
TOLD = BAD | {"RUNNING", "COMPLETED", "CANCELLED"}


class Recipes(Protocol):
    """The recipes that the desk serves."""

    def load(self) -> list[Recipe]:
        """All that can be read."""
        ...

    def changed(self) -> bool:
        """Whether their files have changed since."""
        ...


class Caretaker:
    """Looks after one desk, in the process that brought it up.

    Args:
        home: The desk's.
        desk: Its processes.
        recipes: What it serves.
        say: Tells the person at the terminal.
    """

    def __init__(self, home: Home, desk: Desk, recipes: Recipes, *, say: Callable[[str], None]) -> None:
        self.home, self.desk, self.recipes, self.say = home, desk, recipes, say
        self._wake = threading.Event()
        self._listener = listen(self.wake)
        self._end = threading.Event()
        self._mending = threading.Thread(target=self._mend, name="hone-mending")
        self._states: dict[UUID, str] = {}
        self._names: dict[UUID, str] = {}
        self._complaints: dict[str, str] = {}

    def __enter__(self) -> Caretaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._mending.ident is not None:
            self._mending.join()
        unsubscribe(self.home)
        self._listener.close()

    def begin(self) -> None:
        """Close what died before this desk came up, and look at what there is, so that only what follows is news."""
        self._states = {run.id: _state(run) for run in self._runs()}
        subscribe(self.home, self._listener)
        self._round()
        self._mending.start()

    def watch(self) -> None:
        """Round after round, until interrupted."""
        while True:
            self._wake.wait(ROUND_S)
            self._wake.clear()
            self._round()

    def wake(self) -> None:
        """Begin the next round now; may be called by any thread."""
        self._wake.set()

    def _mend(self) -> None:
        """A thread of its own: a round waits for the very server that has died."""
        while not self._end.wait(MEND_S):
            self.desk.mend(self.say)

    def _round(self) -> None:
        jobs = {
            "recipes": self._deploy_changes,
            "dead runs": lambda: mark_crashed(sweep(self.home)),
            "what MLflow missed": lambda: replay_unsent(self.home),
            "champions": self._note_moves,
            "news": self._tell_news,
        }
        for what, job in jobs.items():
            try:
                job()
            except Exception as error:  # noqa: BLE001  whatever one job meets, the others have their turn
                self._complain(what, first_line(error))
            else:
                self._complaints.pop(what, None)

    def _complain(self, what: str, why: str) -> None:
        if self._complaints.get(what) != why:
            self._complaints[what] = why
            log.warning("%s: %s; trying again", what, why)
            self.say(f"{what}: {why}; trying again")

    def _deploy_changes(self) -> None:
        if self.recipes.changed():
            for deployed in apply(self.recipes.load(), self.home):
                if deployed.done != "unchanged":
                    self.say(f"{deployed.name} {deployed.done}")

    def _note_moves(self) -> None:
        for line in reconcile(self.home):
            if line["event"] == "by hand":
                self.say(f"{line['name']}: version {line['to'] or 'none'} was made champion by hand in MLflow")
        publish(self.home)

    def _tell_news(self) -> None:
        for run in reversed(self._runs()):
            state = _state(run)
            if self._states.get(run.id) == state:
                continue
            self._states[run.id] = state
            if run.state is None or run.state.type.value not in TOLD:
                continue
            self.say(f"{time.strftime('%H:%M:%S')} {self._deployment_of(run)} {run.name}: {state}")
            if run.state.type.value in BAD:
                self.say(f"  {first_line(Exception(run.state.message or 'no message'))}")
                self.say(f"  {self.desk.addresses.prefect_ui_url}/runs/flow-run/{run.id}")

    def _deployment_of(self, run: FlowRun) -> str:
        """Name of the deployment as in the UI; empty for a run of none."""
        if run.deployment_id is None:
            return ""
        if run.deployment_id not in self._names:
            with get_client(sync_client=True) as client:
                deployment = client.read_deployment(run.deployment_id)
                self._names[run.deployment_id] = f"{client.read_flow(run.flow_id).name}/{deployment.name}"
        return self._names[run.deployment_id]

    def _runs(self) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            ours = FlowRunFilter(tags=FlowRunFilterTags(all_=[TAG]))
            found: list[FlowRun] = client.read_flow_runs(
                flow_run_filter=ours, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=NEWS
            )
            return [run for run in found if run.state is not None and not run.state.is_scheduled()]


def _state(run: FlowRun) -> str:
    return run.state_name or ""
