"""The desk as a person uses it: a form filled in, a run watched, its report read, the model let serve in MLflow.

With `HONE_PICTURES=<folder>` the demo's recipe is used, and the pages are kept as pictures: those of `docs/pictures`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pytest

from tests.e2e.browser import chromium, field, fill, open_form, open_page, screenshot
from tests.e2e.conftest import CHECKOUT, Hone
from tests.e2e.desk import Up, desk, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.e2e

PICTURES = os.environ.get("HONE_PICTURES")


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def keep(page: Page, name: str, *, whole: bool = False) -> None:
    """Keep a page as a picture, where pictures are wanted."""
    if PICTURES:
        file = Path(PICTURES).resolve() / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            screenshot(page, file)
        else:
            page.screenshot(path=file)


def submit(page: Page, up: Up) -> UUID:
    """Press Submit; returns the run that this made."""
    with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as made:
        page.get_by_role("button", name="Submit").click()
    assert made.value.status == 201, made.value.text()
    return UUID(made.value.json()["id"])


def test_from_a_form_to_a_champion_by_hand(
    project: Callable[..., Hone], browser: Browser, tmp_path: Path
) -> None:  # fmt: skip
    hone: Hone = project("looked-at")
    name, recipe = "looked-at", hone.project / "recipe.yaml"
    if PICTURES:
        name, shipped = "sentiment", (CHECKOUT / "deployments" / "sentiment.yaml").read_text()
        recipe.write_text(shipped.replace("at_least: 0.80", "at_least: 0.75"))  # for half an epoch
    recipe.write_text(recipe.read_text().replace("promote: auto", "promote: manual"))
    with desk(hone) as up:
        with up.prefect() as client:
            deployment = client.read_deployment_by_name(f"finetune/{name}")

        form = open_form(browser, up.said["prefect_ui_url"], str(deployment.id), "v1")
        written = deployment.parameters["recipe"]["train"]
        for title, key in (("Epochs (Optional)", "epochs"), ("Learning rate", "learning_rate")):
            shown = field(form, "Train", title).locator("input").first.input_value()
            assert float(shown) == written[key]
        fill(form, "Train", "Epochs (Optional)", value="-1")
        form.get_by_role("button", name="Submit").click()
        form.get_by_text("recipe.train.epochs").first.wait_for()
        fill(form, "Train", "Epochs (Optional)", value="0.5" if PICTURES else "2")
        fill(form, "Train", "Learning rate", value="0.0002" if PICTURES else "0.002")
        keep(form, "form")
        run = submit(form, up)

        page = open_page(browser, f"{up.said['prefect_ui_url']}/runs/flow-run/{run}", width=1300, height=900)
        moved = until(lambda: progress(up, name), 120, "the training's progress")
        assert 0 < moved <= 100
        assert up.wait(run, "Completed", limit_s=900 if PICTURES else 240)
        page.reload()
        page.get_by_text("Completed", exact=True).first.wait_for()
        page.get_by_text("register done", exact=False).first.wait_for()
        page.wait_for_timeout(2_000)
        keep(page, "run")
        page.get_by_text("Artifacts", exact=True).first.click()
        page.get_by_text(f"report-{name}", exact=True).first.click()
        page.get_by_text("It waits for you.").first.wait_for()
        page.get_by_text("macro_f1").first.wait_for()
        until(lambda: pictures_shown(page) >= 3, 30, "the report's pictures")
        keep(page, "report", whole=True)
        promote = page.get_by_role("link", name="promote/any-model").first
        page.goto(str(promote.get_attribute("href")))
        page.get_by_text("Promoted by", exact=False).first.wait_for()
        keep(page, "promote")

        found = up.mlflow_run(run, name)
        assert (found.data.params["train.epochs"], found.data.params["train.learning_rate"]) in {
            ("2.0", "0.002"),
            ("0.5", "0.0002"),
        }
        experiment = f"{up.said['mlflow_url']}/#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}"
        page = open_page(browser, experiment, width=1300, height=1000)
        page.get_by_text("test/macro_f1").first.wait_for()
        page.get_by_text("hone.flow_run_url").first.wait_for()
        page.wait_for_timeout(1_000)
        keep(page, "mlflow-run")

        page = open_page(browser, f"{up.said['mlflow_url']}/#/models/{name}", width=1300, height=1000)
        aliases = page.get_by_text("challenger").first.locator("xpath=ancestor::*[.//button][1]")
        aliases.locator("button").last.click()
        dialog = page.get_by_role("dialog")
        dialog.locator("input").first.fill("champion")
        dialog.locator("input").first.press("Enter")
        keep(page, "mlflow-alias")
        dialog.get_by_role("button", name="Save").click()
        until(lambda: "made champion by hand" in up.errors.read_text(), 15, "the desk to notice")
        page.reload()
        page.get_by_text("hone.promoted").first.wait_for()
        keep(page, "mlflow-model")

        until(lambda: events(up, "hone.model.moved_by_hand"), 15, "the event")
        page = open_page(browser, f"{up.said['prefect_ui_url']}/events", width=1300, height=900)
        page.get_by_text("hone.model.moved_by_hand").first.wait_for()
        keep(page, "events")

        (model,) = hone("status").result["models"]
        assert model["champion"]["version"] == "1"
        (move,) = model["history"]
        assert (move["what"], move["to"], move["before"]) == ("moved in MLflow", "1", None)


def progress(up: Up, name: str) -> float | None:
    """How far the training is, as its artifact says; none before it is there."""
    with up.prefect() as client:
        shown: list[Any] = [a for a in client.read_artifacts() if a.key == f"training-{name}"]
    return float(shown[-1].data) if shown and float(shown[-1].data) > 0 else None


def events(up: Up, name: str) -> int:
    """How many events of that name Prefect has."""
    asked = {"filter": {"event": {"name": [name]}}, "limit": 10}
    return int(httpx.post(f"{up.said['prefect_api_url']}/events/filter", json=asked).raise_for_status().json()["total"])


def pictures_shown(page: Page) -> int:
    """Pictures of the page that the browser could load."""
    loaded = "[...document.images].filter(i => i.src.includes('get-artifact') && i.naturalWidth > 100).length"
    return int(page.evaluate(loaded))
