"""Make workflows/*.json, their thumbnails and their API twins in ComfyUI's real frontend.

    python scripts/workflows.py --comfyui DIR              # the files, without pictures
    python scripts/workflows.py --comfyui DIR --only TEXT  # those with TEXT in their names
    python scripts/workflows.py --comfyui DIR --pictures   # run the demo first, for all pictures

The graphs are defined in workflow_graphs.py in API format, with positions. Chromium (Debian:
apt-get install chromium) opens the frontend of a real server, which builds, saves and draws them,
so that the files are what a user's frontend would write. `--pictures` also runs the demo, remakes
docs/images/ with it, and the thumbnails: what its schedule makes of prompts it was not learned
from, beside the reference and a standard schedule. Use it after the demo model changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.comfyui_server import ComfyServer  # noqa: E402
from scripts.model_downloads import MODELS  # noqa: E402
from scripts.workflow_graphs import GRAPHS  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WORKFLOWS = ROOT / "workflows"
TWINS = ROOT / "tests" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WINDOW = {"width": 1600, "height": 950}
BARS = [60, 60]  # pixels that the frontend's own bars cover, left and above
PROMPTS = (
    "hamburger sunflower fish rose pizza tiger strawberry parrot grapes lion cactus penguin lemon "
    "owl carrot whale"
).split()
"""Of the thumbnails."""
THUMBNAIL_ROWS = 3
LABEL = 26  # pixels below a thumbnail

SETTINGS = {  # of the frontend, so that nothing covers the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.VueNodes.Enabled": False,
}

BUILD = """async ({api, places, titles, groups, notes, models, id, pack, shown}) => {
    const app = window.app, LG = window.LiteGraph;
    await app.loadApiJson(api, 'workflow');
    for (const n of app.graph.nodes) {
        const [x, y, w, h] = places[n.id];
        n.pos = [x, y];
        const least = n.computeSize();
        n.setSize([Math.max(w, least[0]), Math.max(h, least[1])]);
        if (titles[n.id]) n.title = titles[n.id];
        else n.title = n.constructor.title ?? n.title;
        for (const w of n.widgets ?? [])
            if (w.name === 'control_after_generate') w.value = 'fixed';
        const files = (n.widgets ?? []).map(w => w.value).filter(v => models[v]);
        if (files.length) // what the frontend offers to download where it is missing
            n.properties = {...n.properties, models: files.map(name => (
                {name, url: models[name][1], directory: models[name][0]}))};
        if (n.type.startsWith('LD3'))
            n.properties = {...n.properties, 'Node name for S&R': n.type, ...pack};
    }
    for (const [[x, y], size, text] of notes) {
        const n = LG.createNode('MarkdownNote');
        app.graph.add(n);
        n.pos = [x, y]; n.setSize(size);
        n.title = 'What to do';
        n.widgets[0].value = text;
    }
    for (const [title, [x, y, w, h]] of groups) {
        const g = new LG.LGraphGroup(title);
        app.graph.add(g);
        g.pos = [x, y]; g.size = [w, h]; g.recomputeInsideNodes?.();
    }
    app.graph.id = id;
    if (shown) // opens in app mode, from frontend 1.41.13 on, with these widgets and outputs
        app.graph.extra = {...app.graph.extra, linearMode: true, linearData: shown};
    app.graph.setDirtyCanvas(true, true);
}"""

FIT = """([besides, above]) => {
    const canvas = window.app.canvas;
    const boxes = window.app.graph.groups.map(g => [...g.pos, ...g.size]);
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2]));
    const bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const rect = canvas.canvas.getBoundingClientRect(), margin = 20;
    const scale = Math.min((rect.width - besides - 2 * margin) / (right - left),
                           (rect.height - above - 2 * margin) / (bottom - top), 1);
    canvas.ds.scale = scale;
    canvas.ds.offset = [(besides + margin) / scale - left, (above + margin) / scale - top];
    canvas.setDirty(true, true);
    return {x: rect.x, y: rect.y, width: Math.min(rect.width, (right - left) * scale + 2 * margin),
            height: Math.min(rect.height, (bottom - top) * scale + 2 * margin)};
}"""


def api_prompt(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in ComfyUI's API format."""
    return {
        key: {
            "class_type": entry["kind"],
            "inputs": entry["inputs"],
            "_meta": {"title": entry["title"]},
        }
        for key, entry in graph["nodes"].items()
    }


def build(page: Page, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build a graph in the open frontend; return the workflow it saves and the API twin."""
    graph = GRAPHS[name]
    page.evaluate(
        BUILD,
        {
            "api": api_prompt(graph),
            "places": {k: [*v["at"], *v["size"]] for k, v in graph["nodes"].items()},
            "titles": {k: v["title"] for k, v in graph["nodes"].items()},
            "groups": graph["groups"],
            "notes": graph["notes"],
            "models": MODELS,
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
            "pack": {"cnr_id": PROJECT["name"], "ver": PROJECT["version"]},
            "shown": graph.get("app"),
        },
    )
    page.evaluate(FIT, BARS)
    # As text, which leaves out undefined values as a saved file does, instead of writing null.
    saved = page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    return json.loads(saved), to_api(page)


def to_api(page: Page) -> dict[str, Any]:
    """The prompt that the frontend would queue for the open graph."""
    return json.loads(
        page.evaluate("async () => JSON.stringify((await window.app.graphToPrompt()).output)")
    )


def load(page: Page, workflow: dict[str, Any]) -> None:
    """Open a saved workflow, as dropping its file on the frontend does."""
    page.evaluate("async (w) => { await window.app.loadGraphData(w); }", workflow)


@contextlib.contextmanager
def frontend(browser: Browser, server: ComfyServer) -> Iterator[Page]:
    """The server's frontend in a new window, ready to build graphs in."""
    page = browser.new_page(viewport=WINDOW)
    try:
        page.goto(server.url)
        # The frontend opens an empty graph late, which would replace one loaded before it.
        opened = "window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow"
        nodes = "'LD3KSampler' in (window.LiteGraph?.registered_node_types ?? {})"
        page.wait_for_function(f"() => {opened} && {nodes}", timeout=120000)
        yield page
    finally:
        page.close()


def thumbnail(server: ComfyServer, name: str) -> None:
    """Write what the demo's schedule makes of a workflow's prompts: reference, before, after."""
    first = list(GRAPHS).index(name) * THUMBNAIL_ROWS % len(PROMPTS)
    prompts = (PROMPTS + PROMPTS)[first : first + THUMBNAIL_ROWS]
    encoded = {f"2{i}": ("LD3DemoPrompt", {"text": text}) for i, text in enumerate(prompts)}
    conds = {"model": ["1", 0], "latent_image": ["1", 2], "vae": ["1", 1], "negative": ["4", 0]}
    for i, key in enumerate(encoded):
        conds[f"positive_{i + 1}" if i else "positive"] = [key, 0]
    widgets = {"seed": 5, "cfg": 1, "noises": 1, "compare_with": "euler + simple"}
    nodes = encoded | {
        "1": ("LD3DemoModel", {"batch_size": 1, "model": "flow"}),
        "4": ("LD3DemoPrompt", {"text": ""}),
        "5": ("LD3LoadSchedule", {"name": "emoji.safetensors"}),
        "9": ("LD3CompareSchedules", conds | widgets | {"schedule": ["5", 2]}),
    }
    prompt = {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}
    picture = server.fetch_image(server.run(prompt)["9"]["images"][0]).convert("RGB")
    uses_demo = any(part["kind"] == "LD3DemoModel" for part in GRAPHS[name]["nodes"].values())
    square = Image.new("RGB", (picture.height + LABEL,) * 2, "white")  # Templates cuts others off
    square.paste(picture, ((square.width - picture.width) // 2, 0))
    if not uses_demo:  # it needs a model that is no part of this pack
        middle, font = (square.width // 2, picture.height), ImageFont.load_default(15)
        text = "pictures of the bundled demo model"
        ImageDraw.Draw(square).text(middle, text, "#5a6068", font, anchor="ma")
    square.save(WORKFLOWS / f"{name}.jpg", quality=90, optimize=True)


def main() -> None:
    """Write all workflows, API twins and thumbnails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="ComfyUI's source folder")
    parser.add_argument("--pictures", action="store_true", help="run the demo for all pictures")
    parser.add_argument("--only", metavar="TEXT", default="", help="workflows with it in the name")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("workflows.py needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    base = ROOT / "output" / "workflows"
    saved = base / "user" / "default" / "comfy.settings.json"
    saved.parent.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(SETTINGS))
    if options.pictures:
        # a second schedule of the same name would get a numbered file
        shutil.rmtree(base / "models", ignore_errors=True)
        demo = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--comfyui", options.comfyui]
        subprocess.run([*demo, "--base", str(base), "--docs"], check=True)
    for name, (folder, _) in MODELS.items():  # listed by the widgets
        name = f"{folder}/{name}"
        (base / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "models" / name).touch()
    WORKFLOWS.mkdir(exist_ok=True)
    TWINS.mkdir(exist_ok=True)
    with (
        sync_playwright() as playwright,
        ComfyServer(options.comfyui, base) as server,
        contextlib.closing(
            playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        ) as browser,
    ):
        for name in (name for name in GRAPHS if options.only in name):
            write(name, browser, server)
            if options.pictures:
                thumbnail(server, name)
            print(f"wrote {name}")


def write(name: str, browser: Browser, server: ComfyServer) -> None:
    """Write a workflow and its API twin."""
    with frontend(browser, server) as page:
        workflow, twin = build(page, name)
    for folder, content in ((WORKFLOWS, workflow), (TWINS, twin)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
