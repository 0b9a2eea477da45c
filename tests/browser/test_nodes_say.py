"""What the nodes say of their work: live, at its end, when cancelled, and of bad input."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.comfyui_server import ComfyServer

from .driver import QUEUED, Frontend

QUICK: dict[str, Any] = {
    "sampler_name": "dpmpp_2m", "steps": 3, "cfg": 1, "teacher_steps": 20, "batch_size": 16,
    "quality": "fast",
}  # fmt: skip
TINY = {"teacher_steps": 6, "iterations": 1, "training_noises": 4, "heldout_noises": 4}
NO_SCHEDULE = "no schedule yet: train one with LD3 Train Schedule"


def training(frontend: Frontend, **widgets: Any) -> int:
    """The demo model and LD3 Train Schedule; returns the latter's id."""
    model = frontend.add("LD3DemoModel", (60, 120), model="flow")
    prompt = frontend.add("LD3DemoPrompt", (60, 320))
    train = frontend.add("LD3TrainSchedule", (420, 60), **QUICK | widgets)
    frontend.connect(model, 0, train, "model")
    frontend.connect(model, 2, train, "latent_image")
    for name in ("positive", "negative"):
        frontend.connect(prompt, 0, train, name)
    return train


def pictures(frontend: Frontend, node: int) -> list[list[int]]:
    """Sizes of the pictures that a node shows."""
    if frontend.renderer == "nodes2":
        sizes = frontend.page.locator(f'[data-node-id="{node}"] img').evaluate_all(
            "found => found.map(i => [i.naturalWidth, i.naturalHeight])"
        )
        return [size for size in sizes if size[0] > 200]
    return frontend.page.evaluate(
        """(id) => (window.app.graph.getNodeById(id).imgs ?? [])
            .map(i => [i.naturalWidth, i.naturalHeight])""",
        node,
    )


def empty_folder(server: ComfyServer) -> None:
    """models/ld3 as every new user has it."""
    folder = server.base / "models" / "ld3"
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()


def test_without_schedules_load_schedule_says_how_to_get_one(
    frontend: Frontend, server: ComfyServer
) -> None:
    empty_folder(server)
    frontend.page.reload()
    frontend.page.wait_for_function("() => window.app?.graph && window.LiteGraph")
    frontend.page.wait_for_timeout(2000)
    frontend.page.evaluate("() => window.app.graph.clear()")
    load = frontend.add("LD3LoadSchedule", (420, 120))
    assert frontend.text(load, "name") == NO_SCHEDULE
    preview = frontend.add("LD3KSampler", (900, 120))
    frontend.connect(load, 2, preview, "schedule")
    model = frontend.add("LD3DemoModel", (60, 120))
    prompt = frontend.add("LD3DemoPrompt", (60, 320))
    for name in ("positive", "negative"):
        frontend.connect(prompt, 0, preview, name)
    frontend.connect(model, 0, preview, "model")
    frontend.connect(model, 2, preview, "latent_image")
    decode = frontend.add("VAEDecode", (1200, 120))
    frontend.connect(preview, 0, decode, "samples")
    frontend.connect(model, 1, decode, "vae")
    picture = frontend.add("PreviewImage", (1200, 220))
    frontend.connect(decode, 0, picture, "images")
    frontend.press_run()
    frontend.wait_for(lambda: frontend.text(load))
    assert frontend.text(load).startswith(NO_SCHEDULE)
    frontend.screenshot("load-empty")


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"sampler_name": "euler_ancestral"}, "sampler_name: no schedule can be learned for"),
        ({"teacher_steps": 3}, "teacher_steps is 3 and steps 3; the teacher must take more steps"),
        ({"cfg": -1}, "cfg is -1"),
        ({"name": "../outside"}, "'../outside' cannot be a schedule's name"),
        ({"distance": "lpips-vgg"}, "distance 'lpips-vgg' compares images, so it needs a VAE"),
    ],
    ids=["sampler", "teacher_steps", "cfg", "name", "distance"],
)
def test_bad_widgets_are_refused_on_the_node_before_anything_runs(
    widgets: dict[str, Any], message: str, frontend: Frontend
) -> None:
    train = training(frontend, **widgets)
    frontend.press_run()
    frontend.wait_for(lambda: frontend.text(train))
    assert frontend.text(train).startswith(message)
    assert "LD3" not in frontend.text(train)  # the node's name is its title
    frontend.screenshot(f"refused-{next(iter(widgets))}")
    assert not frontend.page.evaluate(QUEUED)


def visible_widgets(frontend: Frontend, node: int) -> list[str]:
    return frontend.page.evaluate(
        """([id, classic]) => window.app.graph.getNodeById(id).widgets
            .filter(w => !w.hidden && (classic || !w.options.advanced))
            .map(w => w.name)""",
        [node, frontend.renderer == "classic"],
    )


def test_few_widgets_are_shown_and_only_samplers_that_work(frontend: Frontend) -> None:
    train = training(frontend, batch_size=4)
    shown = visible_widgets(frontend, train)
    assert {"sampler_name", "steps", "cfg", "name", "quality"} <= set(shown) and len(shown) <= 12
    offered = frontend.page.evaluate(
        """(id) => window.app.graph.getNodeById(id).widgets
            .find(w => w.name === 'sampler_name').options.values""",
        train,
    )
    assert {"euler", "dpmpp_2m"} <= set(offered)
    assert not {"euler_ancestral", "lcm"} & set(offered)
    frontend.screenshot("widgets")


def test_numbers_of_older_workflows_are_shown(frontend: Frontend) -> None:
    """Saved while these widgets were visible, with values of their own."""
    train = training(frontend, batch_size=16, iterations=5, sampler_name="euler_ancestral")
    frontend.page.evaluate("() => window.app.loadGraphData(window.app.graph.serialize())")
    frontend.page.wait_for_timeout(500)
    hidden = frontend.page.evaluate(
        """(id) => window.app.graph.getNodeById(id).widgets.filter(w => w.hidden)
            .map(w => w.name)""",
        train,
    )
    assert {"training_noises", "heldout_noises"} <= set(hidden)
    assert not {"iterations", "batch_size", "sampler_name"} & set(hidden)
    assert frontend.text(train, "batch_size") == "16"
    assert frontend.text(train, "sampler_name") == "euler_ancestral"


def test_training_shows_its_cost_one_live_line_then_one_verdict_and_one_report(
    frontend: Frontend,
) -> None:
    train = training(frontend, name=f"live {frontend.renderer}", retrain=True)
    frontend.press_run()
    cost = frontend.wait_for(lambda: _matching(frontend.text(train), "at most"), 60)
    assert cost.startswith("learning 3 steps: ") and "model calls at most, about " in cost
    line = frontend.wait_for(lambda: _matching(frontend.text(train), "iteration"), 120)
    stage, calls, *_ = line.split(", ")
    assert stage.startswith("learning 3 steps") and " of " in stage
    assert calls.split(" of ")[1].endswith("calls")
    frontend.wait_for(lambda: "left" in frontend.text(train), 60)
    # wider than the report alone: with the teacher's and the student's sample of one noise
    frontend.wait_for(lambda: any(w > 2.7 * h for w, h in pictures(frontend, train)), 60)
    frontend.screenshot("training")
    frontend.wait_for(lambda: "learned in" in frontend.text(train), 300)
    verdict, file = frontend.text(train).split("\n")[:2]
    assert "less error than the best standard schedule" in verdict
    assert f"live {frontend.renderer}" in file and "model calls" in file
    frontend.page.wait_for_timeout(2500)
    frontend.screenshot("trained")
    (size,) = pictures(frontend, train)
    assert size[0] == 1300  # the report; live pictures are smaller


def test_cancelling_a_training_says_that_nothing_was_saved(
    frontend: Frontend, server: ComfyServer
) -> None:
    train = training(frontend, name="cancelled", retrain=True, quality="best")
    frontend.press_run()
    frontend.wait_for(lambda: pictures(frontend, train), 120)
    server.interrupt()
    frontend.wait_for(
        lambda: frontend.text(train) == "cancelled; run the workflow again to continue"
    )
    frontend.page.wait_for_timeout(1500)
    frontend.screenshot("cancelled")
    assert pictures(frontend, train) == []


def _matching(text: str, part: str) -> str:
    return text if part in text else ""


@pytest.mark.parametrize(
    "words", ["align", "custom sigmas", "optimal steps", "scheduler", "turbo", "LD3"]
)
def test_what_people_search_for_finds_a_node(words: str, frontend: Frontend) -> None:
    """Typed into the window that a double click on the empty graph opens."""
    page = frontend.page

    def opened() -> bool:
        frontend.clear()  # a late window would take the next click for one on its first entries
        page.mouse.dblclick(900, 600)  # a busy machine may see two single clicks
        for _ in range(10):
            page.wait_for_timeout(500)
            if page.evaluate("document.activeElement?.tagName === 'INPUT'"):
                return True
        return False

    frontend.wait_for(opened, 20)
    page.keyboard.type(words, delay=20)
    frontend.wait_for(lambda: frontend.shown("LD3 Train Schedule") or
                      frontend.shown("LD3 KSampler"), 20)  # fmt: skip
    if words == "align":
        frontend.screenshot("search")
    page.keyboard.press("Escape")


def test_slots_and_links_of_schedules_have_a_colour_of_their_own(frontend: Frontend) -> None:
    load = frontend.add("LD3LoadSchedule", (420, 120))
    sampler = frontend.add("LD3KSampler", (900, 120))
    frontend.connect(load, 2, sampler, "schedule")
    frontend.page.wait_for_timeout(800)
    frontend.screenshot("slots")
    colours = frontend.page.evaluate(
        """() => {
            const canvas = window.app.canvas, type = 'LD3_SCHEDULE';
            const style = getComputedStyle(document.documentElement);
            return [canvas.default_connection_color_byType[type],
                    canvas.constructor.link_type_colors[type],
                    style.getPropertyValue('--color-datatype-' + type).trim()];
        }"""
    )
    assert colours == ["#d1495b"] * 3


def test_help_opens_beside_a_node_without_a_missing_file(frontend: Frontend) -> None:
    """The pages of all nodes in all languages: test_server_schedulers.py."""
    missing, page = list[str](), frontend.page

    def note(answer: Any) -> None:
        if answer.status >= 400 and "/docs/" in answer.url:
            missing.append(answer.url)

    page.on("response", note)
    node = frontend.add("LD3TrainSchedule", (420, 160))
    page.evaluate("(id) => window.app.canvas.selectNode(window.app.graph.getNodeById(id))", node)
    page.get_by_test_id("info-button").click()
    frontend.wait_for(lambda: frontend.shown("No training images"), 30)
    frontend.screenshot("help")
    page.remove_listener("response", note)
    assert missing == []
