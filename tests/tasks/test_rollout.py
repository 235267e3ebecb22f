from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.pyfunc
import polars as pl
import pytest
import requests
from mlflow import MlflowClient

from schemas.errors import Fault, Mistake
from schemas.loading import validate_recipe
from schemas.recipe import Recipe
from tasks import registry, rollout
from tasks.home import Home
from tasks.register import start_verifier
from tasks.registry import Registered
from tasks.tracking import Run

pytest_plugins = ("tests.mlflow_home",)

STAGING = {"name": "staging", "gate": {"thresholds": [{"metric": "accuracy", "at_least": 0.8}]}}
PROD = {"name": "prod", "gate": {"beat_champion": "better"}}
SERVING = """
import mlflow.pyfunc
import pandas as pd


class Shouts(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        return pd.DataFrame({"label": model_input["text"].str.upper()})


mlflow.models.set_model(Shouts())
"""


def with_environments(recipe: Recipe, *environments: dict[str, Any]) -> Recipe:
    data = recipe.model_dump(mode="json") | {"registry": {"environments": list(environments)}}
    return validate_recipe(data)


@pytest.fixture
def three(recipe: Recipe) -> Recipe:
    """tiny → tiny-staging → tiny-prod."""
    return with_environments(recipe, STAGING, PROD)


@pytest.fixture
def client(home: Home) -> MlflowClient:
    made = MlflowClient(home.mlflow_uri)
    made.create_registered_model("tiny", tags={"hone.recipe": "tiny"})
    return made


def recorded(home: Home, recipe: Recipe) -> str:
    """Id of a run that has recorded the recipe."""
    run = Run.start(home, recipe)
    run.end("FINISHED")
    return run.run_id


def register(client: MlflowClient, run_id: str | None = None, source: str = "s3://nowhere", **tags: str) -> Registered:
    """A version of tiny; its identity is its number unless another is given."""
    number = 1 + len(client.search_model_versions("name = 'tiny'"))
    known = {"hone.recipe": "tiny", "hone.identity": f"id{number}", "hone.gate": "promote"} | {
        f"hone.{key}": value for key, value in tags.items()
    }
    made = client.create_model_version("tiny", source, run_id, tags=known, description=f"# tiny {number}")
    return registry.version_of(client, "tiny", str(made.version))


def serve(home: Home, version: Registered) -> None:
    now = registry.champion(home, version.name)
    registry.promote(
        home, version.name, version.version, expected_champion=now.version if now else None, by="me", reason="good"
    )


# Which step, which version, which gate.


def test_each_environment_is_fed_from_the_one_before(three: Recipe) -> None:
    first, second = (rollout.step_to(three, "tiny", name) for name in ("staging", "prod"))
    assert (first.source, first.target) == ("tiny", "tiny-staging")
    assert (second.source, second.target) == ("tiny-staging", "tiny-prod")
    assert second.environment.gate.beat_champion == "better"


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("stagin", "--to = 'stagin': the environments of recipe tiny are staging, prod; did you mean staging?"),
        ("moon", "--to = 'moon': the environments of recipe tiny are staging, prod; name one of them"),
    ],
)
def test_an_unknown_environment_is_refused_with_those_there_are(three: Recipe, to: str, told: str) -> None:
    with pytest.raises(Mistake) as refused:
        rollout.step_to(three, "tiny", to)
    assert str(refused.value) == told


def test_a_recipe_without_environments_is_told_how_to_have_one(recipe: Recipe) -> None:
    with pytest.raises(Mistake) as refused:
        rollout.step_to(recipe, "tiny", "staging")
    assert str(refused.value) == (
        "--to = 'staging': recipe tiny has no environments; "
        "add registry.environments: [{name: staging}] to it, and name its file"
    )


def test_every_registered_model_of_a_recipe_has_a_gate_of_its_own(three: Recipe) -> None:
    assert rollout.gate_of(three, "tiny") is three.gate
    assert rollout.gate_of(three, "tiny-staging").thresholds[0].at_least == 0.8
    assert rollout.gate_of(three, "tiny-prod").beat_champion == "better"
    assert rollout.gate_of(three, "another-prod") is three.gate


def test_who_serves_in_the_environment_before_goes_on(home: Home, client: MlflowClient, three: Recipe) -> None:
    versions = [register(client) for _ in range(3)]
    serve(home, versions[1])
    client.set_registered_model_alias("tiny", "challenger", "3")
    for asked, number in {None: "2", "champion": "2", "challenger": "3", "1": "1"}.items():
        _, found, _ = rollout.find_way(home, "tiny", asked, "staging", three)
        assert (found.name, found.version) == ("tiny", number)


def test_where_nobody_serves_yet_somebody_is_promoted_first(home: Home, client: MlflowClient, three: Recipe) -> None:
    register(client)
    for to, told in {
        "staging": "version: no version of tiny serves; promote one first: hone promote tiny",
        "prod": "version: no version of tiny-staging serves; promote one first: hone promote tiny --to staging",
    }.items():
        with pytest.raises(Mistake) as refused:
            rollout.find_way(home, "tiny", None, to, three)
        assert str(refused.value) == told


def test_a_version_that_hone_does_not_know_goes_nowhere(home: Home, client: MlflowClient, three: Recipe) -> None:
    client.create_model_version("tiny", "s3://nowhere")
    with pytest.raises(Mistake, match="hone did not register version 1 of tiny"):
        rollout.find_way(home, "tiny", "1", "staging", three)


def test_a_version_is_asked_what_its_own_recipe_says(home: Home, client: MlflowClient, recipe: Recipe) -> None:
    strict = with_environments(recipe, STAGING)
    lax = with_environments(recipe, {"name": "staging"}, {"name": "prod"})
    serve(home, register(client, recorded(home, strict)))
    register(client, recorded(home, lax))

    step, found, by = rollout.find_way(home, "tiny", None, "staging", None)
    assert (found.version, by) == ("1", strict)
    assert step.environment.gate.thresholds[0].at_least == 0.8
    step, _, by = rollout.find_way(home, "tiny", "2", "staging", None)
    assert (step.environment.gate.thresholds, by) == ((), lax)
    step, _, by = rollout.find_way(home, "tiny", None, "staging", lax)
    assert (step.environment.gate.thresholds, by) == ((), lax)
    with pytest.raises(Mistake, match="no version of tiny-staging serves"):  # that there is a prod, the newest says
        rollout.find_way(home, "tiny", None, "prod", None)


def test_a_model_is_named_and_not_one_of_its_environments(home: Home, client: MlflowClient, three: Recipe) -> None:
    version = register(client, recorded(home, three))
    rollout.copied(home, rollout.step_to(three, "tiny", "staging"), version, "promote")
    with pytest.raises(Mistake) as refused:
        rollout.find_way(home, "tiny-staging", None, "prod", None)
    assert str(refused.value) == (
        "model = 'tiny-staging': is an environment of tiny; name the model: hone promote tiny --to prod"
    )
    with pytest.raises(Mistake, match="did you mean tiny"):
        rollout.find_way(home, "tinny", None, "prod", None)


# The copy.


def test_a_copy_has_the_files_and_the_lineage_and_nothing_that_tells_of_another_place(
    home: Home, client: MlflowClient, three: Recipe
) -> None:
    first = register(client, "run1", "s3://bucket/m-1", train_key="t1", git_commit="c1", model_id="m-1")
    client.set_model_version_tag("tiny", "1", "note", "a person's")
    serve(home, first)
    serve(home, register(client))
    serve(home, first)
    registry.rollback(home, "tiny", by="me", reason="complaints")
    original = registry.version_of(client, "tiny", "1")
    assert {tag for tag in original.tags if tag in rollout.OF_ONE_PLACE} == {
        "hone.gate", "hone.promoted", "hone.champion_before", "hone.was_champion", "hone.rolled_back",
    }  # fmt: skip

    made = rollout.copied(home, rollout.step_to(three, "tiny", "staging"), original, "challenger")
    found = client.get_model_version("tiny-staging", "1")
    assert (found.source, found.run_id, found.description) == ("s3://bucket/m-1", "run1", "# tiny 1")
    assert found.tags == {
        "hone.recipe": "tiny", "hone.identity": "id1", "hone.train_key": "t1", "hone.git_commit": "c1",
        "hone.model_id": "m-1", "hone.gate": "challenger", "hone.copied_from": "models:/tiny/1",
    }  # fmt: skip
    assert (made.version, made.model_id, made.aliases, made.rolled_back) == ("1", "m-1", (), False)

    further = rollout.copied(home, rollout.step_to(three, "tiny", "prod"), made, "promote")
    assert further.tags == found.tags | {"hone.gate": "promote", "hone.copied_from": "models:/tiny-staging/1"}


def test_nothing_is_copied_twice_and_the_latest_word_of_the_gate_is_kept(
    home: Home, client: MlflowClient, three: Recipe
) -> None:
    step = rollout.step_to(three, "tiny", "staging")
    versions = [register(client), register(client)]
    assert rollout.copy_in(home, step, versions[1]) is None
    for _ in range(2):
        assert [rollout.copied(home, step, version, "reject").version for version in versions] == ["1", "2"]
    assert rollout.copied(home, step, versions[1], "promote").gate == "promote"
    assert rollout.copy_in(home, step, versions[1]).version == "2"
    assert len(client.search_model_versions("name = 'tiny-staging'")) == 2


def test_commands_at_once_make_one_copy(home: Home, client: MlflowClient, three: Recipe) -> None:
    step, version = rollout.step_to(three, "tiny", "staging"), register(client)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: rollout.copied(home, step, version, "promote").version, range(4)))
    assert made == ["1"] * 4
    assert len(client.search_model_versions("name = 'tiny-staging'")) == 1


def test_an_answer_that_got_lost_makes_no_second_copy(
    home: Home, client: MlflowClient, three: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, make, lost = register(client), MlflowClient.create_model_version, []

    def lose_the_first_answer(*args: Any, **more: Any) -> Any:
        made = make(*args, **more)
        if not lost:
            lost.append(made.version)
            raise requests.exceptions.ConnectionError("reset")
        return made

    monkeypatch.setattr(MlflowClient, "create_model_version", lose_the_first_answer)
    made = rollout.copied(home, rollout.step_to(three, "tiny", "staging"), version, "promote")
    assert (lost, made.version) == ([1], "1")
    assert len(client.search_model_versions("name = 'tiny-staging'")) == 1


def test_a_copy_that_was_rolled_back_stays_so_and_does_not_return_by_itself(
    home: Home, client: MlflowClient, three: Recipe
) -> None:
    step, version = rollout.step_to(three, "tiny", "staging"), register(client)
    serve(home, rollout.copied(home, step, version, "promote"))
    registry.rollback(home, "tiny-staging", by="ada", reason="complaints")
    again = rollout.copied(home, step, version, "promote")
    assert (again.version, again.rolled_back) == ("1", True)
    with pytest.raises(Mistake, match=r"version 1 of tiny-staging was rolled back: .*, by ada: complaints; to let it"):
        rollout.refuse_rolled_back(version, again)
    rollout.refuse_rolled_back(version, None)


@pytest.mark.parametrize("owner", [{"hone.recipe": "tiny-staging"}, {"hone.recipe": "x", "hone.environment_of": "ti"}])
def test_a_model_of_something_else_is_no_environment(
    home: Home, client: MlflowClient, three: Recipe, owner: dict[str, str]
) -> None:
    client.create_registered_model("tiny-staging", tags=owner)
    with pytest.raises(Mistake, match="tiny-staging is already the model of something else: of recipe"):
        rollout.copy_in(home, rollout.step_to(three, "tiny", "staging"), register(client))


def test_a_model_that_a_person_made_may_become_an_environment(home: Home, client: MlflowClient, three: Recipe) -> None:
    client.create_registered_model("tiny-staging", description="by hand, with permissions")
    step, version = rollout.step_to(three, "tiny", "staging"), register(client)
    assert rollout.copy_in(home, step, version) is None
    assert rollout.copied(home, step, version, "promote").version == "1"


# Whether it answers.


@pytest.fixture
def shouting(home: Home, client: MlflowClient, tmp_path: Path) -> Registered:
    """A version of tiny that can be loaded."""
    (tmp_path / "serving.py").write_text(SERVING)
    mlflow.pyfunc.save_model(str(tmp_path / "files"), python_model=str(tmp_path / "serving.py"), pip_requirements=[])
    logged = client.create_logged_model(client.create_experiment("tiny"), name="model")
    client.log_model_artifacts(logged.model_id, str(tmp_path / "files"))
    client.finalize_logged_model(logged.model_id, "READY")
    return register(client, "run1", logged.artifact_location, model_id=logged.model_id)


def test_a_copy_answers_under_its_own_name_in_a_fresh_process_or_it_is_a_fault(
    home: Home, three: Recipe, shouting: Registered, tmp_path: Path
) -> None:
    copy = rollout.copied(home, rollout.step_to(three, "tiny", "staging"), shouting, "promote")
    pl.DataFrame({"id": ["a", "b"], "text": ["good", "bad"]}).write_parquet(tmp_path / "test.parquet")
    family = SimpleNamespace(asked_columns=("text",), serving_libraries=())
    context = SimpleNamespace(home=home, family=family, path=lambda sides: tmp_path)
    rollout.prove(context, copy, None)
    serve(home, copy)
    served = start_verifier(family).predict(home.mlflow_uri, "models:/tiny-staging@champion", [{"text": "good"}])
    assert served == [{"label": "GOOD"}]

    registry.files_of(home, copy, "MLmodel").unlink()
    with pytest.raises(Fault, match="a fresh process cannot predict with the logged model"):
        rollout.prove(context, copy, None)
