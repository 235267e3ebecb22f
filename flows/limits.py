"""What keeps runs out of each other's way: one run stands for a backlog, and one training has a GPU at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tasks.machine import accelerators

log = logging.getLogger(__name__)

GPU_LIMIT = "gpu"
"""Prefect's concurrency limit with a slot for each GPU; `hone deploy` makes it where it finds some."""
LEASE_S = 60.0
"""A slot whose holder was killed is free after this long."""


def stand_for_backlog() -> int:
    """Cancel the runs of this deployment that its schedule made due while nothing could run: this one does their work.

    A run that a person asked for stays, and cancels none.

    Returns:
        How many were cancelled.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import State, StateType
    from prefect.runtime import deployment, flow_run
    from prefect.states import Cancelled

    if not deployment.id:
        return 0
    own = UUID(str(flow_run.id))
    with get_client(sync_client=True) as client:
        if not client.read_flow_run(own).auto_scheduled:
            return 0
        due = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(str(deployment.id))])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            ),
        )
        late = [run for run in due if run.auto_scheduled and run.id != own]
        for run in late:
            stood_for: State[Any] = Cancelled(message=f"was due while nothing could run; {flow_run.name} stands for it")
            client.set_flow_run_state(run.id, stood_for, force=True)
    if late:
        log.info("%d runs were due meanwhile; this one stands for them", len(late))
    return len(late)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold a slot of the GPU limit; nothing where this machine has no GPU, or the server no such limit."""
    if not accelerators():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(GPU_LIMIT, occupy=1, strict=False, lease_duration=LEASE_S):
        yield
