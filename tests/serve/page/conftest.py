"""A real browser, and servers for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.serve.page.label_server import Server, photo_folder
from tests.serve.page.photo_page import OpenTab, PhotoPage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str:
    """The browser that the system has. Skips without one, and fails where it must be there: under
    CI, and in `.ci/run`, which installs it.
    """
    given = os.environ.get("SAMFAST_CHROMIUM")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found:
        return found
    reason = "no Chromium here (apt-get install chromium, or SAMFAST_CHROMIUM=path)"
    if os.environ.get("CI") or os.environ.get("SAMFAST_BROWSER_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Of a module, not of the session: while it is open, no other test may run an event loop.
    path = chromium_path()
    with sync_playwright() as playwright:
        # Root cannot use Chromium's sandbox; the pages are our own.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def label_server(tmp_path_factory) -> Iterator[Server]:
    """A server that labels a folder of two photos; tests take turns with it."""
    folder = photo_folder(tmp_path_factory.mktemp("labels") / "photos")
    server = Server("label", str(folder), "--no-browser")
    yield server.start()
    server.stop()


@pytest.fixture
def clean_folder(label_server: Server) -> Path:
    """The folder of `label_server`, without annotations."""
    folder = Path(label_server.arguments[1])
    (folder / "annotations.json").unlink(missing_ok=True)
    return folder


@pytest.fixture
def tab(browser: Browser) -> Iterator[OpenTab]:
    """Opens tabs; fails the test in which a script of theirs failed."""
    contexts: list[BrowserContext] = []
    failures: list[str] = []

    def open_tab(context: BrowserContext | None = None, **options: Any) -> PhotoPage:
        if context is None:
            # Playwright's own scripts need what the page forbids to all scripts but its own.
            defaults = {"viewport": {"width": 1280, "height": 800}, "bypass_csp": True}
            context = browser.new_context(**{**defaults, **options})
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        return PhotoPage(page)

    yield open_tab
    for context in contexts:
        for page in context.pages:
            # Nothing of this test may be written after the next one has emptied the folder.
            states = (
                '["saving", "dirty"].includes(document.getElementById("save-state").dataset.state)'
            )
            page.wait_for_function(f"() => !globalThis.samfast || !{states}")
        context.close()
    assert failures == []
