"""A real browser without a window, for what only a browser can tell: pages of Prefect and MLflow as people see them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
PATIENCE_MS = 60_000
"""A page is scripts, megabytes of them; beside training on two cores they take their time."""
SETTLE_MS = 500
"""What a form takes to draw a change and to gather it into its values."""
CUSTOM_RUN = {"v1": "/deployments/deployment/{id}/run", "v2": "/v2/deployments/deployment/{id}/run"}
"""Prefect's two UIs → the form that starts a run of a deployment."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped, with what to install, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: install hone's extra dev")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, url: str, *, width: int = 1300, height: int = 1000) -> Page:
    """A page in a tab of its own; nothing but this machine is asked for anything."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE_MS)
    page.route("**/*", lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort())
    page.goto(url)
    return page


def screenshot(page: Page, file: Path) -> Path:
    """All of a page as a PNG: both UIs of Prefect scroll inside the window, so the window becomes as tall as that."""
    tall = page.evaluate(
        "Math.max(...[...document.querySelectorAll('*')].map(e => e.clientHeight ? e.scrollHeight : 0))"
    )
    before = page.viewport_size or {"width": 1300, "height": 1000}
    page.set_viewport_size({"width": before["width"], "height": max(before["height"], min(tall + 200, 16_000))})
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=file)
    page.set_viewport_size(before)
    return file


def open_form(browser: Browser, server: str, deployment_id: str, ui: str) -> Page:
    """The form of "Custom run" with its fields drawn.

    Args:
        server: Address without path.
        ui: v1 or v2.
    """
    page = open_page(browser, server + CUSTOM_RUN[ui].format(id=deployment_id))
    page.get_by_role("button", name="Submit").wait_for()
    page.locator("fieldset").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    return page


def field(page: Page, *titles: str) -> Locator:
    """A field with its title, such as `field(page, "Train", "Learning rate")`: sections from outside to inside.

    A field that may be left out has "(Optional)" in its title.
    """
    here: Page | Locator = page
    for title in titles:
        here = here.get_by_text(title, exact=True).first.locator("xpath=ancestor::*[.//fieldset][1]")
    assert not hasattr(here, "goto"), "name the field"
    return here


def fill(page: Page, *titles: str, value: str) -> None:
    """Type into a field."""
    field(page, *titles).locator("fieldset").first.locator("input, textarea").first.fill(value)
    page.wait_for_timeout(SETTLE_MS)


def open_tab(page: Page, *titles: str, tab: str) -> None:
    """Take another member of a union."""
    field(page, *titles).get_by_text(tab, exact=True).first.click()
    page.wait_for_timeout(SETTLE_MS)


def choose(page: Page, *titles: str, value: str) -> None:
    """Take a value from a dropdown; by the keyboard, since V1's closes again under Chromium's pointer."""
    opener = field(page, *titles).locator("fieldset").first.locator("button").first
    opener.press(" ")
    page.locator(".p-select-option, [role=option]").get_by_text(value, exact=True).first.click()
    page.wait_for_timeout(SETTLE_MS)
