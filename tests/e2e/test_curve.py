"""The learning curve as a user asks for it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.e2e.conftest import Hone

pytestmark = pytest.mark.e2e

SHORT = ["--set", "train.epochs=2", "--set", "train.global_batch_size=32"]


def test_a_curve_is_on_record_in_both_systems_and_its_last_point_is_the_model_of_a_run(project, servers):
    from mlflow import MlflowClient
    from prefect.client.orchestration import SyncPrefectClient

    hone: Hone = project("curved", servers, rows=300)
    first = hone("curve", "recipe.yaml", "--shares", "0.2,0.4,0.7,1", *SHORT)
    assert first.code == 0, first.errors
    found: dict[str, Any] = first.result
    assert [point["share"] for point in found["points"]] == [0.2, 0.4, 0.7, 1.0]
    assert [point["rows"] for point in found["points"]] == sorted(point["rows"] for point in found["points"])
    assert (found["trained"], len(found["forecasts"])) == (4, 2)
    assert found["verdict"] in {"rises", "flat", "undecided"}
    assert "validation rows, never on the test" in first.errors

    mlflow = MlflowClient(servers.mlflow)
    run = mlflow.get_run(found["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    below = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert len(below) == 4
    with SyncPrefectClient(servers.prefect) as client:
        assert client.read_flow_run(UUID(found["flow_run_id"])).state_name == "Completed"
        kinds = {artifact.key: artifact.type for artifact in client.read_artifacts()}
    assert (kinds["curve-curved"], kinds["curve-curved-points"]) == ("markdown", "table")

    trained = hone("run", "recipe.yaml", "--until", "train", *SHORT)
    assert trained.stages["train"] == "cached"
