"""The shipped workflows, as they open from Templates, and the demo run by clicking Run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.comfyui_server import ComfyServer

from .driver import Frontend

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
IN_GRAPH = [name for name in NAMES if "app" not in name.split()]  # it has tests of its own
DEMO = "LD3 demo - train and compare"
STATE = """() => {
    const nodes = window.app.graph.nodes, canvas = window.app.canvas;
    return {
        scale: canvas.ds.scale,
        missing: nodes.filter(n => !(n.type in window.LiteGraph.registered_node_types))
            .map(n => n.type),
        red: nodes.filter(n => n.has_errors).map(n => n.title),
        loaders: nodes.filter(n => n.properties.models).map(n => n.title),
        overlapping: nodes.filter(a => nodes.some(b => a.id < b.id
            && a.pos[0] < b.pos[0] + b.size[0] && b.pos[0] < a.pos[0] + a.size[0]
            && a.pos[1] - 30 < b.pos[1] + b.size[1] && b.pos[1] - 30 < a.pos[1] + a.size[1]))
            .map(n => [n.title, ...n.pos, ...n.size]),
        width: Math.max(...nodes.map(n => n.pos[0] + n.size[0]))
            - Math.min(...nodes.map(n => n.pos[0])),
        models: Object.fromEntries(nodes.filter(n => n.properties.models)
            .flatMap(n => n.properties.models.map(m => [m.name, m]))),
        files: nodes.flatMap(n => (n.widgets ?? []).map(w => w.value))
            .filter(v => typeof v === 'string' && v.endsWith('.safetensors')),
    };
}"""


@pytest.mark.parametrize("name", IN_GRAPH)
def test_a_workflow_opens_whole_readable_and_without_overlaps(
    name: str, frontend: Frontend, server: ComfyServer
) -> None:
    frontend.open_template(name)
    frontend.page.wait_for_timeout(2500)
    frontend.screenshot(f"workflow-{name}".replace(" ", "_"))
    state: dict[str, Any] = frontend.page.evaluate(STATE)
    # red are only loaders of files that nobody has yet, which the frontend offers to download
    assert state["missing"] == [] and set(state["red"]) <= set(state["loaders"])
    assert state["overlapping"] == []
    # every file is one that the frontend offers to download, or a schedule that is there
    schedules = {path.name for path in (server.base / "models" / "ld3").glob("*.safetensors")}
    assert set(state["files"]) - schedules == set(state["models"])
    for model in state["models"].values():
        assert model["url"].startswith("https://") and model["directory"]
    if "Advanced" not in name and "distilled" not in name:
        assert state["width"] <= 1500  # fits beside the side bar of a window of 1600 at full size


def test_templates_offer_the_demo_first(server: ComfyServer) -> None:
    offered = server.get("/workflow_templates")["ld3-schedules"]
    assert sorted(offered) == NAMES and sorted(offered)[0] == DEMO


def test_the_demo_learns_and_compares_after_one_click(frontend: Frontend) -> None:
    frontend.load(DEMO)
    frontend.run(timeout=300)
    train, compare = frontend.find("LD3TrainSchedule"), frontend.find("LD3CompareSchedules")
    assert "reference" in frontend.text(train) and "emoji" in frontend.text(train)
    frontend.page.wait_for_timeout(3000)
    path = frontend.screenshot("demo")
    assert path.is_file()
    table = frontend.page.evaluate(
        "(id) => (window.app.nodeOutputs[id] ?? {}).table?.[0] ?? ''", compare
    )
    ways = [line.split("  ")[0] for line in table.splitlines()]
    assert len(ways) == 4 and ways[1] == "euler + simple" and ways[-1] == "learned"
    errors = [float(line.split("error ")[1]) for line in table.splitlines()[1:]]
    assert errors[-1] < min(errors[:-1])  # of the learned schedule


def test_saved_files_are_what_this_frontend_would_save(frontend: Frontend) -> None:
    """Opening and saving must not lose anything: values, links, or sizes of the demo."""
    saved = json.loads((ROOT / "workflows" / f"{DEMO}.json").read_text(encoding="utf-8"))
    frontend.load(DEMO)
    found = frontend.page.evaluate("() => window.app.graph.serialize()")
    values = {node["id"]: node.get("widgets_values") for node in saved["nodes"]}
    assert {node["id"]: node.get("widgets_values") for node in found["nodes"]} == values
    assert len(found["links"]) == len(saved["links"])
