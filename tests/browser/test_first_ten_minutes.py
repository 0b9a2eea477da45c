"""The first ten minutes, click by click, as docs/first-ten-minutes.md tells them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.comfyui_server import ComfyServer

from ..registry import install, packed
from .driver import SCREENSHOTS, Frontend

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.timeout(1200)
def test_from_the_manager_to_a_learned_schedule_in_use(
    browser: Browser, comfyui_root: Path, tmp_path: Path
) -> None:
    """Nothing has to be typed or known; every step's seconds go to output/browser/."""
    archive = packed(tmp_path / "pack")
    seconds, start = dict[str, float](), time.monotonic()

    def done(step: str) -> None:
        nonlocal start
        seconds[step] = round(time.monotonic() - start, 1)
        start = time.monotonic()

    start = time.monotonic()
    install(archive, comfyui_root, tmp_path / "base")
    done("install")
    with ComfyServer(comfyui_root, tmp_path / "base", pack=None) as server:
        done("restart")
        page = Frontend(browser, server, "nodes2")
        done("open")
        page.open_template("LD3 demo - train and compare")
        done("template")
        page.run(timeout=600)
        done("learn and compare")
        train, compare = page.find("LD3TrainSchedule"), page.find("LD3CompareSchedules")
        assert "reference" in page.text(train)
        table = "(id) => window.app.nodeOutputs[id].table[0]"
        compared = page.page.evaluate(table, compare)
        assert compared.splitlines()[-1].startswith("learned")
        page.screenshot("first-ten-minutes")
        prompts = page.page.evaluate(
            "() => window.app.graph.nodes.filter(n => n.type === 'LD3DemoPrompt').map(n => n.id)"
        )
        page.set(prompts[-1], text="red apple")
        done("type a prompt")
        page.run(timeout=600)
        done("use it again")
        assert "saved" in page.text(train) or "learned" in page.text(train)
        assert page.page.evaluate(table, compare) != compared
        files = list((tmp_path / "base" / "models" / "ld3").glob("*.safetensors"))
        assert len(files) == 1 and page.errors == []
        page.page.close()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / "first-ten-minutes.json").write_text(json.dumps(seconds, indent=2))
    assert sum(seconds.values()) < 1200
