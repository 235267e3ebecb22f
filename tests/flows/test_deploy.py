"""What recipes ask for on a Prefect server."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import prefect_file
from flows.deploy import _schedule, deploy, models_of, wanted_of
from schemas.errors import EnvironmentMistake, RecipeError
from schemas.loading import find_recipes, load_recipe
from schemas.recipe import Recipe
from schemas.schedule import Schedule

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = CHECKOUT / "deployments" / "sentiment.yaml"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(SHIPPED, overrides)


def names(recipes: list[Recipe]) -> list[str]:
    return [f"{wanted.flow}/{wanted.name}" for wanted in wanted_of(recipes, {})]


def test_recipes_are_told_from_the_other_files_of_a_project(tmp_path: Path) -> None:
    folder = tmp_path / "deployments"
    folder.mkdir()
    shutil.copy(SHIPPED, folder / "sentiment.yaml")
    shutil.copy(CHECKOUT / "deployments" / "prefect.yaml", folder / "prefect.yaml")
    (folder / "compose.yaml").write_text("services: {web: {image: nginx}}\n")
    (folder / "broken.yml").write_text("name: broken\ntask: {\ncollect: {}\nmodel: {}\n")
    assert [file.name for file in find_recipes(tmp_path)] == ["broken.yml", "sentiment.yaml"]


def test_a_recipe_has_its_pipeline_its_retraining_and_each_stage_and_models_have_their_decisions() -> None:
    stages = ["collect", "clean", "split", "tokenize", "train", "evaluate", "gate", "register"]
    of_recipe = [f"{kind}/sentiment" for kind in ("finetune", "retrain", "curve", "tune", "compare", *stages)]
    assert names([recipe()]) == [*of_recipe, "promote/any-model", "rollback/any-model", "evaluate/any-model"]


def test_schedules_belong_to_the_deployment_they_are_of() -> None:
    asked = recipe("schedule.retrain.cron=0 3 * * 1", "schedule.stages=[{stage: collect, every_minutes: 60}]")
    scheduled = {w.flow: w.schedule for w in wanted_of([asked], {}) if w.schedule}
    assert set(scheduled) == {"retrain", "collect"}
    assert (scheduled["retrain"].cron, scheduled["collect"].every_minutes) == ("0 3 * * 1", 60)


def test_a_deployment_is_known_by_all_that_it_is() -> None:
    def prints(*overrides: str) -> dict[str, str]:
        return {f"{w.flow}/{w.name}": w.fingerprint for w in wanted_of([recipe(*overrides)], {})}

    assert prints() == prints()
    learning = prints("train.learning_rate=3e-5")
    assert all(learning[name] != known for name, known in prints().items() if name.endswith("/sentiment"))
    rhythm = prints("schedule.retrain.every_minutes=5")
    assert [name for name, known in prints().items() if rhythm[name] != known] == ["retrain/sentiment"]


def test_the_models_to_choose_from_are_those_of_all_environments() -> None:
    staged = recipe("registry.environments=[{name: staging}, {name: prod}]")
    assert models_of(staged) == ["sentiment", "sentiment-staging", "sentiment-prod"]
    promote = next(w for w in wanted_of([staged], {}) if w.flow == "promote")
    assert promote.form["properties"]["model"]["enum"] == sorted(models_of(staged))
    assert "prod" in str(promote.form["properties"]["to"])


@pytest.mark.parametrize("switched", [True, False])
def test_a_schedule_stays_on_or_off_as_somebody_left_it_while_it_is_the_same(switched: bool) -> None:
    weekly = Schedule(cron="0 3 * * 1", active=not switched)
    first = _schedule(weekly, {})
    assert first.active is not switched
    known: dict[Any, Any] = {first.slug: SimpleNamespace(active=switched)}
    assert _schedule(weekly, known).active is switched
    daily = Schedule(cron="0 3 * * *", active=not switched)
    assert _schedule(daily, known).active is not switched


def test_the_file_for_prefect_deploy_is_what_the_recipes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    written = tmp_path / "prefect.yaml"
    prefect_file.write([recipe()], written, pool="hone")
    committed = (CHECKOUT / "deployments" / "prefect.yaml").read_text()
    assert written.read_text().splitlines()[2:] == committed.splitlines()[2:]


def test_a_project_without_recipes_and_a_machine_without_a_server_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="there is none in"):
        deploy([], pool="hone", write=None, as_json=False)
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(EnvironmentMistake, match="no Prefect server is configured"):
        deploy([SHIPPED], pool="hone", write=None, as_json=False)
