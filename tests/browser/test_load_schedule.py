"""LD3 Load Schedule: what a file contains before Run, new files without a key, its menu."""

from __future__ import annotations

from typing import Any

import pytest

from ld3 import schedule_file
from scripts.comfyui_server import ComfyServer

from ..test_scheduler_list import LEARNED
from .driver import Frontend
from .test_nodes_say import TINY, empty_folder, training

WORDS = """(id) => window.app.graph.getNodeById(id).widgets
    .find(w => w.name === 'contents').element.innerText"""
PICTURE = """(id) => {
    const node = window.app.graph.getNodeById(id);
    const box = node.widgets.find(w => w.name === 'contents').element;
    const image = box.querySelector('img');
    return [image.naturalWidth, image.hidden];
}"""
MENU = """([id, item]) => {
    const items = window.app.collectNodeMenuItems(window.app.graph.getNodeById(id));
    items.find(i => i?.content === item).callback();
}"""


@pytest.fixture
def loaded(frontend: Frontend, server: ComfyServer) -> tuple[int, str]:
    """A Load node with the only file in models/ld3; (id, file)."""
    empty_folder(server)
    file = schedule_file.save(LEARNED, server.base / "models" / "ld3", frontend.renderer).name
    frontend.page.evaluate("async () => { await window.app.reloadNodeDefs(); }")
    load = frontend.add("LD3LoadSchedule", (900, 120))
    frontend.set(load, name=file)
    frontend.wait_for(lambda: picture_size(frontend, load) == [800, False])
    return load, file


def picture_size(frontend: Frontend, node: int) -> list[Any]:
    """Width of the picture of a file's noise levels, and whether it is hidden."""
    return frontend.page.evaluate(PICTURE, node)


def words(frontend: Frontend, node: int) -> str:
    return frontend.page.evaluate(WORDS, node)


def test_a_new_schedule_is_listed_and_shown_without_a_key(
    frontend: Frontend, server: ComfyServer
) -> None:
    empty_folder(server)
    frontend.page.evaluate("async () => { await window.app.reloadNodeDefs(); }")
    load = frontend.add("LD3LoadSchedule", (900, 120))
    training(frontend, name=f"new {frontend.renderer}", retrain=True, **TINY)
    frontend.run(120)
    file = f"new {frontend.renderer}.safetensors"
    frontend.wait_for(lambda: frontend.text(load, "name") == file, 20)
    frontend.wait_for(lambda: "3 steps of dpmpp_2m" in words(frontend, load), 20)
    assert "cfg 1" in words(frontend, load) and "error" in words(frontend, load)
    frontend.wait_for(lambda: picture_size(frontend, load) == [800, False], 20)
    frontend.screenshot("load-contents")


def test_a_schedule_can_be_renamed_and_deleted_in_the_nodes_menu(
    frontend: Frontend, loaded: tuple[int, str], server: ComfyServer
) -> None:
    load, file = loaded
    frontend.wait_for(lambda: frontend.text(load, "name") == file, 20)
    page, folder = frontend.page, server.base / "models" / "ld3"
    page.evaluate(MENU, [load, "Rename schedule"])
    box = page.get_by_role("dialog").get_by_role("textbox")
    box.fill("another name")
    box.press("Enter")
    frontend.wait_for(lambda: frontend.text(load, "name") == "another name.safetensors", 20)
    assert (folder / "another name.safetensors").is_file() and not (folder / file).exists()
    page.evaluate(MENU, [load, "Delete schedule"])
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    frontend.wait_for(lambda: not (folder / "another name.safetensors").exists(), 20)


def test_a_node_that_is_removed_asks_for_nothing(
    frontend: Frontend, loaded: tuple[int, str], server: ComfyServer
) -> None:
    """Its list, which may name files that are gone, is no longer kept up to date."""
    load, file = loaded
    page, path = frontend.page, server.base / "models" / "ld3" / file
    page.evaluate(
        """(id) => {
            window.removed = window.app.graph.getNodeById(id);
            window.app.graph.remove(window.removed);
        }""",
        load,
    )
    path.unlink()
    page.evaluate("() => window.removed.ld3Update()")
    page.wait_for_timeout(500)


def test_a_pasted_node_shows_its_own_file(
    frontend: Frontend, loaded: tuple[int, str], server: ComfyServer
) -> None:
    """Not the first of the list, which a new node has."""
    load, file = loaded
    first = schedule_file.save(LEARNED, server.base / "models" / "ld3", "a first").name
    frontend.page.evaluate("async () => { await window.app.reloadNodeDefs(); }")
    pasted = frontend.page.evaluate(
        """(id) => {
            const canvas = window.app.canvas, graph = window.app.graph;
            canvas.copyToClipboard([graph.getNodeById(id)]);
            canvas.pasteFromClipboard();
            return graph.nodes.at(-1).id;
        }""",
        load,
    )
    assert pasted != load and frontend.text(pasted, "name") == file != first
    shown = "(id) => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'contents')"
    shown += ".element.querySelector('img').src"
    frontend.wait_for(lambda: file in frontend.page.evaluate(shown, pasted), 20)


def test_a_note_is_written_in_the_nodes_menu_and_shown(
    frontend: Frontend, loaded: tuple[int, str]
) -> None:
    load, file = loaded
    frontend.wait_for(lambda: frontend.text(load, "name") == file, 20)
    page = frontend.page
    page.evaluate(MENU, [load, "Write a note"])
    box = page.get_by_role("dialog").get_by_role("textbox")
    box.fill("for portraits")
    box.press("Enter")
    frontend.wait_for(lambda: "Note: for portraits" in words(frontend, load), 20)
    page.evaluate(MENU, [load, "Write a note"])
    frontend.wait_for(lambda: box.input_value() == "for portraits", 20)
    page.keyboard.press("Escape")


def test_a_schedule_is_shown_in_the_list_of_schedulers_and_hidden_again(
    frontend: Frontend, loaded: tuple[int, str]
) -> None:
    load, file = loaded
    frontend.wait_for(lambda: frontend.text(load, "name") == file, 20)
    page, entry = frontend.page, f"LD3: {file.removesuffix('.safetensors')}"
    sampler = frontend.add("KSampler", (420, 500))

    def offered() -> bool:
        return entry in page.evaluate(
            """(id) => window.app.graph.getNodeById(id).widgets
                .find(w => w.name === 'scheduler').options.values""",
            sampler,
        )

    assert not offered()
    page.evaluate(MENU, [load, "Show in scheduler list"])
    frontend.wait_for(offered, 30)
    frontend.wait_for(lambda: "list of schedulers" in words(frontend, load), 20)
    frontend.set(sampler, scheduler=entry)
    frontend.screenshot("scheduler-list")
    page.evaluate(MENU, [load, "Hide from scheduler list"])
    frontend.wait_for(lambda: not offered(), 30)


def test_every_line_that_is_shared_gives_the_same_schedule_again(
    frontend: Frontend, loaded: tuple[int, str]
) -> None:
    _, file = loaded
    found: dict[str, Any] = frontend.page.evaluate(
        """async (file) => {
            const get = async (n) => (await fetch('/ld3/schedule?name=' + encodeURIComponent(n)))
                .json();
            const first = await get(file);
            const headers = {'Content-Type': 'application/json'};
            const body = JSON.stringify({line: first.line, name: 'from a friend'});
            const answer = await fetch('/ld3/import', {method: 'POST', headers, body});
            const second = await get((await answer.json()).name);
            return {first, second};
        }""",
        file,
    )
    first, second = found["first"], found["second"]
    assert first["sigmas"] == second["sigmas"] and first["line"].startswith("ld3:1:")
    assert first["summary"] == second["summary"] and second["name"] == "from a friend.safetensors"
