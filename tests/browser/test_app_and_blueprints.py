"""The app opens in app mode; blueprints are nodes in the library; both as a stranger finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts import workflows
from scripts.blueprint_graphs import BLUEPRINTS
from scripts.comfyui_server import ComfyServer

from .driver import Frontend

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
APP = "LD3 demo as an app"
MODE = "() => window.app.extensionManager.workflow.activeWorkflow.initialMode"
OFFERED = """() => {
    const vue = document.getElementById('vue-app').__vue_app__;
    const stores = vue.config.globalProperties.$pinia._s;
    const named = stores.get('nodeDef').blueprintNodeDefsByName; // from frontend 1.58 on
    const found = named ? [...(named.values?.() ?? Object.values(named))]
        : stores.get('subgraph').subgraphBlueprints;
    return found.map(b => b.display_name);
}"""
OPENED = """() => {
    const [node] = window.app.graph.nodes;
    return {inner: node.subgraph.nodes.map(n => n.type), inputs: node.inputs.map(i => i.name),
            widgets: node.widgets.map(w => w.name)};
}"""


@pytest.fixture(scope="module")
def own_window(browser: Browser, server: ComfyServer) -> Iterator[Frontend]:
    """A window of its own: app mode changes the renderer of a window for good."""
    opened = Frontend(browser, server, "nodes2")
    yield opened
    assert opened.errors == []
    opened.page.close()


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_offered_and_contains_its_nodes(name: str, own_window: Frontend) -> None:
    assert name in own_window.page.evaluate(OFFERED)
    saved = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    workflows.load(own_window.page, saved)
    opened = own_window.page.evaluate(OPENED)
    wanted = [entry["kind"] for entry in BLUEPRINTS[name]["nodes"].values()]
    assert sorted(opened["inner"]) == sorted(wanted)
    names = ["model", "positive", "negative", "latent_image", "vae"]
    names += [label for label, _ in BLUEPRINTS[name]["widgets"]]
    assert opened["inputs"] == names
    assert {label for label, _ in BLUEPRINTS[name]["widgets"]} <= set(opened["widgets"])


def test_the_app_opens_in_app_mode_with_its_inputs(own_window: Frontend) -> None:
    own_window.load(APP)
    page = own_window.page
    own_window.wait_for(lambda: page.evaluate(MODE) == "app")
    own_window.wait_for(lambda: own_window.shown("quality"))
    assert page.locator("input, textarea").evaluate_all(
        "found => found.some(e => e.value === 'hamburger')"
    )
    own_window.screenshot("app")
