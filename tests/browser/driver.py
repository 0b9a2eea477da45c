"""Drive ComfyUI's frontend in a browser as a user does: build a graph, press Run, read nodes."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import workflows
from scripts.comfyui_server import ComfyServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "output" / "browser"
WINDOW = {"width": 1600, "height": 950}  # of the laptop that the workflows are laid out for
PATIENCE = 5  # times as long as an idle machine needs
TEXT_WIDGET = "$$node-text-preview"
ADD = """([type, at, widgets]) => {
    const node = window.LiteGraph.createNode(type);
    window.app.graph.add(node);
    node.pos = at;
    for (const [name, value] of Object.entries(widgets))
        node.widgets.find(w => w.name === name).value = value;
    return node.id;
}"""
TEXT = """([id, name]) => {
    const w = window.app.graph.getNodeById(id)?.widgets?.find(w => w.name === name);
    return String(w?.value ?? '').trim();
}"""
CLEAR = """() => {
    const graph = window.app.graph, last = graph.state?.lastNodeId ?? graph.last_node_id;
    window.app.clean?.();
    graph.clear();
    if (graph.state) graph.state.lastNodeId = last;
    else graph.last_node_id = last;
}"""
QUEUED = """async () => {
    const q = await (await fetch('/queue')).json();
    return q.queue_running.length + q.queue_pending.length;
}"""

FINISHED = "async () => Object.keys(await (await fetch('/history')).json()).length"


class Frontend:
    """One window of the frontend.

    Attributes:
        renderer: "classic" or "nodes2".
        errors: what the pack's own scripts wrote to the console as errors.
    """

    def __init__(self, browser: Browser, server: ComfyServer, renderer: str) -> None:
        self.server, self.renderer, self.errors = server, renderer, list[str]()
        settings = workflows.SETTINGS | {"Comfy.VueNodes.Enabled": renderer == "nodes2"}
        request = urllib.request.Request(
            f"{server.url}/settings",
            data=json.dumps(settings).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
        self.page: Page = browser.new_page(viewport=WINDOW)  # type: ignore[arg-type]
        self.page.set_default_timeout(120000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.url)
        opened = "window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow"
        nodes = "'LD3KSampler' in (window.LiteGraph?.registered_node_types ?? {})"
        self.page.wait_for_function(f"() => {opened} && {nodes}", timeout=600_000)
        self.clear()

    def clear(self) -> None:
        """An empty graph, whose nodes get other numbers than those before, and an idle server."""
        self.errors.clear()
        self.wait_for(lambda: not self.page.evaluate(QUEUED), 300)
        self.page.keyboard.press("Escape")  # closes dialogs
        self.page.evaluate(CLEAR)

    def _heard(self, message: Any) -> None:
        source = str(message.location)
        if message.type == "error" and ("ld3" in message.text.lower() or "ld3" in source):
            self.errors.append(f"{message.text} {message.location}")

    def load(self, name: str) -> None:
        """Open one of the pack's workflows."""
        path = ROOT / "workflows" / f"{name}.json"
        workflows.load(self.page, json.loads(path.read_text(encoding="utf-8")))
        self.page.wait_for_timeout(500)

    def open_template(self, name: str) -> None:
        """Click one of the pack's workflows in the Templates browser."""
        command = "Comfy.BrowseTemplates"
        self.page.evaluate("(c) => window.app.extensionManager.command.execute(c)", command)
        templates = self.page.get_by_role("dialog")
        templates.get_by_text("ld3-schedules", exact=True).last.click()
        templates.get_by_text(name, exact=True).first.click()
        self.wait_for(lambda: self.page.evaluate("window.app.graph.nodes.length > 3"))
        self.page.wait_for_timeout(1000)

    def add(self, kind: str, at: tuple[int, int], **widgets: Any) -> int:
        """Add a node and return its id."""
        return self.page.evaluate(ADD, [kind, list(at), widgets])

    def connect(self, source: int, output: int, target: int, name: str) -> None:
        """Connect an output to the input of a name."""
        self.page.evaluate(
            """([a, output, b, name]) => {
                const graph = window.app.graph, target = graph.getNodeById(b);
                const slot = target.inputs.findIndex(i => i.name === name);
                graph.getNodeById(a).connect(output, target, slot);
            }""",
            [source, output, target, name],
        )

    def find(self, kind: str) -> int:
        """The id of the first node of a type."""
        return self.page.evaluate(
            "(kind) => window.app.graph.nodes.find(n => n.type === kind).id", kind
        )

    def set(self, node: int, **widgets: Any) -> None:
        """Set widgets of a node, as choosing their values does."""
        self.page.evaluate(
            """([id, widgets]) => {
                const node = window.app.graph.getNodeById(id);
                for (const [name, value] of Object.entries(widgets)) {
                    const w = node.widgets.find(w => w.name === name);
                    w.value = value;
                    w.callback?.(value);
                }
            }""",
            [node, widgets],
        )

    def text(self, node: int, widget: str = TEXT_WIDGET) -> str:
        """What a node says of its work, or a widget's value."""
        return self.page.evaluate(TEXT, [node, widget])

    def shown(self, text: str) -> bool:
        """Whether text is visible somewhere."""
        return self.page.get_by_text(text).filter(visible=True).count() > 0

    def press_run(self) -> None:
        """Click Run."""
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def run(self, timeout: float = 240.0) -> None:
        """Click Run and wait until the queue is empty."""
        before = self.page.evaluate(FINISHED)
        self.press_run()
        self.wait_for(lambda: self.page.evaluate(FINISHED) > before, timeout)
        self.wait_for(lambda: not self.page.evaluate(QUEUED), timeout)
        self.page.wait_for_timeout(1500)  # for the pictures

    def wait_for(self, found: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Wait until something is true, and return it."""
        end = time.monotonic() + PATIENCE * timeout
        while not (value := found()):
            assert time.monotonic() < end, f"not in {timeout:g} s; see {self.screenshot('late')}"
            self.page.wait_for_timeout(200)
        return value

    def screenshot(self, name: str) -> Path:
        """Write a picture of the window to output/browser/."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}-{self.renderer}.png"
        self.page.screenshot(path=path)
        return path
