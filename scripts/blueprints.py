"""Make subgraphs/*.json, which ComfyUI offers as nodes, in ComfyUI's real frontend.

    python scripts/blueprints.py --comfyui DIR

The graphs are defined in blueprint_graphs.py. Chromium (Debian: apt-get install chromium) opens the
frontend of a real server, which makes a subgraph of each and publishes it as its own menu does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.blueprint_graphs import BLUEPRINTS, LINKED  # noqa: E402
from scripts.comfyui_server import ComfyServer  # noqa: E402
from scripts.workflows import PROJECT, api_prompt, frontend  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

SUBGRAPHS = ROOT / "subgraphs"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

BUILD = """async ({api, places, kinds, linked, widgets, outputs, name, pack}) => {
    const app = window.app;
    await app.loadApiJson(api, name);
    for (const n of app.graph.nodes) {
        const [x, y, w, h] = places[n.id];
        n.pos = [x, y];
        const least = n.computeSize();
        n.setSize([Math.max(w, least[0]), Math.max(h, least[1])]);
        if (n.type.startsWith('LD3'))
            n.properties = {...n.properties, 'Node name for S&R': n.type, ...pack};
    }
    const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph.nodes));
    for (const input of [...subgraph.inputs]) // the frontend exposes every seed by itself
        subgraph.removeInput(input);
    const inner = id => subgraph.nodes.find(n => n.type === kinds[id]);
    const expose = (label, places) => {
        let input;
        for (const [target, name] of places) {
            const slot = target.inputs.find(i => i.name === name);
            input ??= subgraph.addInput(label, slot.type);
            input.connect(slot, target);
        }
    };
    for (const name of linked) {
        const open = n => n.inputs.some(i => i.name === name && i.link == null);
        expose(name, subgraph.nodes.filter(open).map(n => [n, name]));
    }
    for (const [label, places] of widgets)
        expose(label, places.map(([id, name]) => [inner(id), name]));
    for (const [label, id, slot] of outputs) {
        const from = inner(id), output = subgraph.addOutput(label, from.outputs[slot].type);
        output.connect(from.outputs[slot], from);
    }
    node.title = subgraph.name = name;
    node.setSize(node.computeSize());
    const {nodes, subgraphs} = app.canvas._serializeItems([node]);
    const saved = {revision: 0, last_node_id: node.id, last_link_id: 0, nodes, links: [],
                   version: 0.4, definitions: {subgraphs}};
    return JSON.stringify(saved);
}"""


def build(page: Page, name: str) -> dict[str, Any]:
    """Build a subgraph in the open frontend; return the file it would publish."""
    graph = BLUEPRINTS[name]
    kinds = {key: entry["kind"] for key, entry in graph["nodes"].items()}
    text: str = page.evaluate(
        BUILD,
        {
            "api": api_prompt(graph),
            "places": {k: [*v["at"], *v["size"]] for k, v in graph["nodes"].items()},
            "kinds": kinds,
            "linked": LINKED,
            "widgets": graph["widgets"],
            "outputs": graph["outputs"],
            "name": name,
            "pack": {"cnr_id": PROJECT["name"], "ver": PROJECT["version"]},
        },
    )
    # the frontend's ids are random, which would change every file in every run
    for index, found in enumerate(dict.fromkeys(re.findall(UUID, text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {index}")))
    saved = json.loads(text)
    definition = saved["definitions"]["subgraphs"][0]
    definition |= {"description": graph["description"], "category": "LD3"}
    saved["extra"] = {
        "BlueprintDescription": graph["description"],
        "BlueprintSearchAliases": graph["aliases"],
    }
    return saved


def main() -> None:
    """Write all blueprints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="ComfyUI's source folder")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("blueprints.py needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    SUBGRAPHS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as base,
        sync_playwright() as playwright,
        ComfyServer(options.comfyui, base) as server,
        contextlib.closing(
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        ) as browser,
    ):
        for name in BLUEPRINTS:
            with frontend(browser, server) as page:
                text = json.dumps(build(page, name), indent=2) + "\n"
            (SUBGRAPHS / f"{name}.json").write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
