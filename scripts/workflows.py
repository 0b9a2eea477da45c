"""Make workflows/*.json, their thumbnails and their API twins in ComfyUI's real frontend.

    python scripts/workflows.py --comfyui DIR              # everything
    python scripts/workflows.py --comfyui DIR --pictures   # run the demo first, for all pictures

The graphs are defined below in API format, with positions. Chromium (Debian: apt-get install
chromium) opens the frontend of a real server, which builds, saves and draws them, so that the
files are what a user's frontend would write. `--pictures` also remakes docs/images/ and
runs the demo workflow, so that its thumbnail shows results: use it after the demo model changed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.comfyui_server import ComfyServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WORKFLOWS = ROOT / "workflows"
TWINS = ROOT / "tests" / "workflows"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WINDOW = {"width": 1600, "height": 900}
THUMBNAIL_WIDTH = 800

SETTINGS = {  # of the frontend, so that nothing covers the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.VueNodes.Enabled": False,
}
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
SCHEDULE = "my_schedule.safetensors"
SD_PROMPT = "photo of a red fox in a snowy forest, morning light"
SD_NEGATIVE = "blurry, low quality, text"


def node(kind: str, at: tuple[int, int], size: tuple[int, int], title: str = "", **inputs: Any):
    """One node: API inputs (a link is [node id, output slot]; a widget has its default)."""
    return {"kind": kind, "at": at, "size": size, "title": title, "inputs": inputs}


def sampling(seed: Any, **options: Any) -> dict[str, Any]:
    """Widget values of KSampler in the demo."""
    defaults = {"cfg": 1, "sampler_name": "dpmpp_2m", "scheduler": "beta", "denoise": 1}
    return {"seed": seed, **defaults, **options}


DEMO_CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
DEMO_CONDS |= {"latent_image": ["1", 2]}
STITCH = {"direction": "right", "match_image_size": True, "spacing_width": 2}
STITCH |= {"spacing_color": "white"}
SD_CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
SD_CONDS |= {"latent_image": ["4", 0]}


def sd_inputs() -> dict[str, Any]:
    """Checkpoint, prompts and empty latent, the first column of both Stable Diffusion graphs."""
    return {
        "1": node("CheckpointLoaderSimple", (20, 60), (340, 98), ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", (20, 230), (340, 130), "Prompt",
                  text=SD_PROMPT, clip=["1", 1]),
        "3": node("CLIPTextEncode", (20, 430), (340, 130), "Negative prompt",
                  text=SD_NEGATIVE, clip=["1", 1]),
        "4": node("EmptyLatentImage", (20, 630), (340, 106), width=512, height=512, batch_size=1),
    }  # fmt: skip


GRAPHS: dict[str, dict[str, Any]] = {
    "LD3 demo - train and compare": {
        "nodes": {
            "1": node("LD3DemoModel", (20, 60), (300, 98), batch_size=4, model="flow"),
            "2": node("LD3DemoPrompt", (20, 210), (300, 70), "Prompt to sample",
                      text="hamburger"),
            "3": node("LD3DemoPrompt", (20, 370), (300, 70), "Negative prompt", text=""),
            "20": node("LD3DemoPrompt", (20, 690), (300, 70), "Prompt to learn from",
                       text="grinning face"),
            "4": node("PrimitiveInt", (20, 530), (300, 82), "Seed of all four", value=1),
            "5": node("LD3TrainSchedule", (400, 60), (380, 530),
                      **DEMO_CONDS | {"positive": ["20", 0]}, steps=3, cfg=1, name="emoji",
                      batch_size=16),
            "6": node("KSampler", (860, 60), (300, 262), "Teacher: 20 steps", **DEMO_CONDS,
                      **sampling(["4", 0], steps=20)),
            "7": node("KSampler", (860, 390), (300, 262), "euler + simple, 3 steps",
                      **DEMO_CONDS, **sampling(["4", 0], steps=3, sampler_name="euler",
                                               scheduler="simple")),
            "8": node("KSampler", (860, 720), (300, 262), "dpmpp_2m + beta, 3 steps",
                      **DEMO_CONDS, **sampling(["4", 0], steps=3)),
            "9": node("LD3KSampler", (860, 1050), (300, 214), "Learned: 3 steps", **DEMO_CONDS,
                      schedule=["5", 2], seed=["4", 0], cfg=1, denoise=1),
            "10": node("VAEDecode", (1220, 60), (180, 46), samples=["6", 0], vae=["1", 1]),
            "11": node("VAEDecode", (1220, 390), (180, 46), samples=["7", 0], vae=["1", 1]),
            "12": node("VAEDecode", (1220, 720), (180, 46), samples=["8", 0], vae=["1", 1]),
            "13": node("VAEDecode", (1220, 1050), (180, 46), samples=["9", 0], vae=["1", 1]),
            "14": node("ImageStitch", (1220, 180), (220, 150), "Teacher | euler",
                       image1=["10", 0], image2=["11", 0], **STITCH),
            "15": node("ImageStitch", (1220, 510), (220, 150), "... | dpmpp_2m",
                       image1=["14", 0], image2=["12", 0], **STITCH),
            "16": node("ImageStitch", (1220, 840), (220, 150), "... | learned",
                       image1=["15", 0], image2=["13", 0], **STITCH),
            "17": node("ImageScale", (1220, 1150), (220, 130), "Enlarge", image=["16", 0],
                       upscale_method="nearest-exact", width=1072, height=256, crop="disabled"),
            "18": node("SaveImage", (1520, 60), (960, 570),
                       "Teacher | euler + simple | dpmpp_2m + beta | learned",
                       images=["17", 0], filename_prefix="LD3_demo"),
            "19": node("PreviewImage", (1520, 710), (960, 570), "Report", images=["5", 3]),
        },
        "groups": [
            ("1. A tiny model, prompts", (0, 0, 340, 820)),
            ("2. Learn 3 steps, once", (380, 0, 420, 1310)),
            ("3. Sample the same noise in four ways", (840, 0, 620, 1310)),
            ("4. Compare", (1500, 0, 1000, 1310)),
        ],
        "notes": [
            ((20, 890), (300, 390), "## LD3 demo\n\nPress **Run**. The node *LD3 Train Schedule* "
             "learns 3 sampling steps, so that the result is close to what this model gives in 20, "
             "and saves them in `models/ld3`. Later runs use the saved schedule.\n\nEach image on "
             "the right, from left to right:\n\n1. the teacher in 20 steps\n2. euler + simple in "
             "3\n3. dpmpp_2m + beta in 3\n4. the learned schedule in 3\n\nChange **Seed** or "
             "**Prompt to sample** to see others: nothing is learned again."),
        ],
    },
    "LD3 train for Stable Diffusion": {
        "nodes": {
            **sd_inputs(),
            "5": node("LD3TrainSchedule", (440, 60), (400, 530), **SD_CONDS),
            "6": node("SamplerCustom", (920, 60), (340, 230), "Core: SIGMAS + SAMPLER",
                      **SD_CONDS, sampler=["5", 1], sigmas=["5", 0], add_noise=True,
                      noise_seed=1, cfg=7),
            "7": node("LD3KSampler", (920, 420), (340, 214), "The same in one node", **SD_CONDS,
                      schedule=["5", 2], seed=1, cfg=7, denoise=1),
            "8": node("VAEDecode", (1300, 60), (200, 46), samples=["6", 0], vae=["1", 2]),
            "9": node("VAEDecode", (1300, 420), (200, 46), samples=["7", 0], vae=["1", 2]),
            "10": node("SaveImage", (1560, 60), (340, 300), images=["8", 0],
                       filename_prefix="LD3_core"),
            "11": node("SaveImage", (1560, 420), (340, 300), images=["9", 0],
                       filename_prefix="LD3"),
            "12": node("PreviewImage", (920, 760), (980, 340), "Report", images=["5", 3]),
        },
        "groups": [
            ("1. Your model, prompt and size", (0, 0, 380, 1120)),
            ("2. Learn, once", (420, 0, 440, 1120)),
            ("3. Sample in either way: both give the same image", (900, 0, 1020, 1120)),
        ],
        "notes": [
            ((20, 780), (340, 320), "## Train for your own model\n\n1. Choose your checkpoint; "
             "add your LoRAs, if any.\n2. Write a typical prompt.\n3. In *LD3 Train Schedule*, set "
             "**cfg**, **sampler_name** and **steps** to what you will sample with; set the same "
             "cfg in the samplers.\n4. Press **Run**. The schedule is saved in `models/ld3` under "
             "**name**; later runs use it at once."),
        ],
    },
    "LD3 sample with a saved schedule": {
        "nodes": {
            **sd_inputs(),
            "5": node("LD3LoadSchedule", (440, 60), (360, 98), name=SCHEDULE),
            "6": node("LD3KSampler", (440, 230), (360, 214), **SD_CONDS, schedule=["5", 2],
                      seed=1, cfg=7, denoise=1),
            "7": node("VAEDecode", (860, 60), (200, 46), samples=["6", 0], vae=["1", 2]),
            "8": node("SaveImage", (860, 170), (480, 560), images=["7", 0],
                      filename_prefix="LD3"),
        },
        "groups": [
            ("1. Model and prompt", (0, 0, 380, 760)),
            ("2. Sample with a saved schedule", (420, 0, 940, 760)),
        ],
        "notes": [
            ((440, 520), (360, 220), "## Sample with a saved schedule\n\nChoose a file "
             "from `models/ld3` in *LD3 Load Schedule*; press **R** if it is not listed. The "
             "schedule sets the sampler and the steps. Use the **cfg** it was learned at."),
        ],
    },
}  # fmt: skip

BUILD = """async ({api, places, titles, groups, notes, id, pack}) => {
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
    app.graph.setDirtyCanvas(true, true);
}"""

FIT = """() => {
    const canvas = window.app.canvas;
    const boxes = window.app.graph.groups.map(g => [...g.pos, ...g.size]);
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2]));
    const bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const rect = canvas.canvas.getBoundingClientRect(), margin = 20;
    const scale = Math.min((rect.width - 2 * margin) / (right - left),
                           (rect.height - 2 * margin) / (bottom - top));
    canvas.ds.scale = scale;
    canvas.ds.offset = [margin / scale - left, margin / scale - top];
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
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
            "pack": {"cnr_id": PROJECT["name"], "ver": PROJECT["version"]},
        },
    )
    page.evaluate(FIT)
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


def draw(page: Page, file: Path) -> None:
    """Write a thumbnail of the open graph."""
    from PIL import Image

    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    page.wait_for_timeout(500)
    area = page.evaluate(FIT)
    page.wait_for_timeout(1500)
    page.screenshot(path=file.with_suffix(".png"), clip=area)
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
    with Image.open(file.with_suffix(".png")) as picture:
        height = round(picture.height * THUMBNAIL_WIDTH / picture.width)
        small = picture.convert("RGB").resize((THUMBNAIL_WIDTH, height), Image.LANCZOS)
        small.save(file, quality=85, optimize=True)
    file.with_suffix(".png").unlink()


def run_in(page: Page, timeout: float) -> None:
    """Press Run and wait until the queue is empty."""
    page.evaluate("async () => { await window.app.queuePrompt(0); }")
    busy = "async () => { const q = await (await fetch('/queue')).json();"
    busy += " return q.queue_running.length + q.queue_pending.length > 0; }"
    end = time.monotonic() + timeout
    page.wait_for_timeout(1000)
    while page.evaluate(busy):
        if time.monotonic() > end:
            sys.exit(f"workflows.py: the run did not finish in {timeout:g} s")
        page.wait_for_timeout(500)
    page.wait_for_timeout(2000)


def main() -> None:
    """Write all workflows, API twins and thumbnails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="ComfyUI's source folder")
    parser.add_argument("--pictures", action="store_true", help="run the demo for all pictures")
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
    for name in ("checkpoints/" + CHECKPOINT, "ld3/" + SCHEDULE):  # listed by the widgets
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
        for name in GRAPHS:
            write(name, browser, server, run=options.pictures and "demo" in name)
            print(f"wrote {name}")


def write(name: str, browser: Browser, server: ComfyServer, run: bool) -> None:
    """Write a workflow, its API twin and its thumbnail; `run` adds results to the thumbnail."""
    with frontend(browser, server) as page:
        workflow, twin = build(page, name)
        for folder, content in ((WORKFLOWS, workflow), (TWINS, twin)):
            text = json.dumps(content, indent=2) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        if run:
            run_in(page, timeout=900)
        draw(page, WORKFLOWS / f"{name}.jpg")


if __name__ == "__main__":
    main()
