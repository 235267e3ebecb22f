"""A version on its way from one environment to the next, on real servers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import Ended, Hone, Servers, labels_without_hone

pytestmark = pytest.mark.e2e

ENVIRONMENTS = """
  environments:
    - name: staging
      gate: {thresholds: [{metric: accuracy, at_least: 0.7}], beat_baseline: false}
    - name: prod
      gate:
        thresholds: [{metric: accuracy, at_least: PROD}, {metric: macro_f1, at_least: PROD}]
        beat_baseline: false
        beat_champion: ignore
"""
TEXTS = ["great so fine all great", "awful so bad all poor"]
LABELS = ["positive", "negative"]


def write_recipe(hone: Hone, prod: float, file: str = "recipe.yaml") -> None:
    """The project's recipe with two environments; that of prod asks for so much."""
    whole = (hone.project / "recipe.yaml").read_text().partition("registry:")[0]
    environments = ENVIRONMENTS.replace("PROD", str(prod))
    (hone.project / file).write_text(f"{whole}registry:\n  promote: auto{environments}")


@pytest.fixture
def mlflow(servers: Servers) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(servers.mlflow)


def lines(refused: Ended) -> list[str]:
    """What a person is told."""
    assert refused.code == 2, refused.errors
    assert "Traceback" not in refused.errors
    return [line for line in refused.errors.splitlines() if line.startswith("hone: ")]


def serving(hone: Hone) -> dict[str, str | None]:
    """Registered model → version that serves, by `hone status`."""
    found = hone("status").result["models"]
    return {m["name"]: m["champion"] and m["champion"]["version"] for m in found if m["name"].startswith("rolled")}


def test_a_version_goes_through_the_environments_each_with_its_own_gate(project, servers, mlflow):
    hone: Hone = project("rolled", servers)
    write_recipe(hone, prod=0.71)
    write_recipe(hone, prod=1.01, file="strict.yaml")
    first = hone("run", "recipe.yaml")
    assert first.code == 0, first.errors
    assert lines(hone("promote", "rolled", "--to", "prod")) == [
        "hone: version: no version of rolled-staging serves; promote one first: hone promote rolled --to staging"
    ]
    assert lines(hone("promote", "rolled", "--to", "stagin")) == [
        "hone: --to = 'stagin': the environments of recipe rolled are staging, prod; did you mean staging?"
    ]

    staged = hone("promote", "rolled", "--to", "staging", "--by", "ada")
    assert staged.code == 0, staged.errors
    assert {key: staged.result[key] for key in ("model", "champion", "before", "copied_from", "environment")} == {
        "model": "rolled-staging", "champion": "1", "before": None, "copied_from": "models:/rolled/1",
        "environment": "staging",
    }  # fmt: skip
    gate = staged.result["gate"]
    assert (gate["decision"], [c["name"] for c in gate["checks"]]) == (
        "promote", ["threshold:accuracy", "champion:macro_f1"],
    )  # fmt: skip
    run = mlflow.get_run(staged.result["mlflow_run_id"])
    assert (run.info.status, run.data.tags["hone.environment"]) == ("FINISHED", "staging")
    assert run.data.metrics["test/accuracy"] == pytest.approx(first.result["metrics"]["accuracy"])

    original, copy = (mlflow.get_model_version(name, "1") for name in ("rolled", "rolled-staging"))
    assert (copy.source, copy.run_id, copy.description) == (original.source, original.run_id, original.description)
    assert copy.tags["hone.train_key"] == original.tags["hone.train_key"]
    assert labels_without_hone("models:/rolled-staging@champion", TEXTS, servers) == LABELS

    again = hone("promote", "rolled", "--to", "staging")
    assert (again.code, again.result["changed"]) == (0, False)
    assert len(mlflow.search_model_versions("name='rolled-staging'")) == 1

    refused = lines(hone("promote", "strict.yaml", "--to", "prod"))
    for line, metric in zip(refused, ("accuracy", "macro_f1"), strict=True):
        assert line.startswith(f"hone: gate of prod, threshold:{metric}: failed: ")
        assert line.endswith("; asked: at least 1.01; to let it serve all the same, add --override and --reason")
    assert serving(hone) == {"rolled": "1", "rolled-staging": "1"}
    live = hone("promote", "rolled", "--to", "prod")
    assert (live.code, live.result["copied_from"]) == (0, "models:/rolled-staging/1"), live.errors

    second = hone("run", "recipe.yaml", "--set", "train.learning_rate=2e-3", "--set", "registry.promote=manual")
    assert second.result["model"]["version"] == "2"
    forced = hone(
        "promote", "recipe.yaml", "2", "--to", "staging", "--override", "--reason", "to try it", "--by", "ada"
    )
    assert (forced.code, forced.result["champion"], forced.result["before"]) == (0, "2", "1"), forced.errors
    champion = {c["name"]: c for c in forced.result["gate"]["checks"]}["champion:macro_f1"]
    assert "over version 1 on" in champion["found"]

    back = hone("rollback", "rolled-staging", "--by", "bob", "--reason", "complaints")
    assert (back.code, back.result["champion"]) == (0, "1")
    (refused,) = lines(hone("promote", "recipe.yaml", "2", "--to", "staging"))
    assert refused.startswith("hone: version = '2': version 2 of rolled-staging was rolled back: until ")
    assert serving(hone) == {"rolled": "1", "rolled-prod": "1", "rolled-staging": "1"}
