"""A real server and windows of its frontend in both renderers; `nox -s browser` runs these tests.

Without Chromium they fail, because a session that was asked for must not pass by doing nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from scripts.comfyui_server import ComfyServer

from .driver import Frontend

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium without a window."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "these tests need Chromium (Debian: apt-get install chromium)"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, which containers and CI often are.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session", params=["classic", "nodes2"])
def window(
    request: pytest.FixtureRequest, browser: Browser, server: ComfyServer
) -> Iterator[Frontend]:
    """A window of a renderer, which all its tests share: opening one takes seconds."""
    opened = Frontend(browser, server, request.param)
    yield opened
    opened.page.close()


@pytest.fixture
def frontend(window: Frontend) -> Iterator[Frontend]:
    """An empty graph; the pack's scripts must write no error to the console."""
    window.clear()
    yield window
    assert window.errors == []
