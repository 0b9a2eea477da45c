"""The pack in a real ComfyUI server: its workflows, saving, interrupting, and errors."""

from __future__ import annotations

import copy
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ld3 import schedule_file
from ld3.schedule import Schedule
from scripts import workflows
from scripts.comfyui_client import ComfyRunError, PromptRefusedError, raise_for_status
from scripts.comfyui_server import ComfyServer
from scripts.soak import Soak

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
DEMO, TRAIN_SD, LOAD_SD = (
    "LD3 demo - train and compare",
    "LD3 train for Stable Diffusion",
    "LD3 sample with a saved schedule",
)
TINY = {
    "steps": 3,
    "teacher_steps": 6,
    "iterations": 2,
    "training_noises": 4,
    "heldout_noises": 4,
    "batch_size": 16,
}
CONDS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["1", 2]}
SAMPLED = CONDS | {"seed": 1, "cfg": 1, "denoise": 1}
FRONTEND_ONLY = {"MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}

pytestmark = pytest.mark.slow


def twin(name: str) -> dict[str, Any]:
    """A workflow in API format."""
    return json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def workflow(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def training(**changes: Any) -> dict[str, Any]:
    """A quick training on 16x16 pictures: node "5" is LD3 Train Schedule."""
    prompt = {key: twin(DEMO)[key] for key in ("1", "3", "5", "20")}
    prompt["4"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 16, "height": 16, "batch_size": 1},
    }
    prompt["5"]["inputs"] |= {"latent_image": ["4", 0], **TINY, **changes}
    return prompt


def sampling(schedule: str, model: dict[str, Any] | None = None) -> dict[str, Any]:
    """LD3 Load Schedule -> LD3 KSampler -> a picture (node "9"); `model` patches the demo model."""
    prompt = {key: twin(DEMO)[key] for key in ("1", "2", "3")}
    prompt["5"] = {"class_type": "LD3LoadSchedule", "inputs": {"name": schedule}}
    prompt["1"]["inputs"]["batch_size"] = 4
    prompt["6"] = {"class_type": "LD3KSampler", "inputs": SAMPLED | {"schedule": ["5", 2]}}
    prompt["8"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 1]}}
    prompt["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    if model is not None:
        prompt["7"] = model
        prompt["6"]["inputs"]["model"] = ["7", 0]
    return prompt


def saved_files(server: ComfyServer) -> set[str]:
    folder = server.base / "models" / "ld3"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def require_working(server: ComfyServer) -> None:
    """The server still samples: a plain KSampler on the demo model."""
    prompt = {key: twin(DEMO)[key] for key in ("1", "2", "3")}
    seed = np.random.default_rng().integers(2**31).item()
    few = {"seed": seed, "steps": 2, "sampler_name": "euler", "scheduler": "simple"}
    prompt["1"]["inputs"]["batch_size"] = 4
    prompt["6"] = {"class_type": "KSampler", "inputs": SAMPLED | few}
    prompt["8"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 1]}}
    prompt["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    assert len(server.run(prompt, timeout=120)["9"]["images"]) == 4


def latent_file(server: ComfyServer, record: dict[str, str]) -> torch.Tensor:
    path = server.output / record["subfolder"] / record["filename"]
    return load_file(path)["latent_tensor"]


@pytest.fixture(scope="module")
def demo_run(server: ComfyServer) -> dict[str, Any]:
    """The demo workflow with quick settings, and beside it two ways to sample."""
    prompt = twin(DEMO)
    prompt["1"]["inputs"]["batch_size"] = 4
    prompt["5"]["inputs"] |= {**TINY, "name": "from_demo"}
    prompt["31"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            **CONDS, "add_noise": True, "noise_seed": 1, "cfg": 1, "sampler": ["5", 1],
            "sigmas": ["5", 0],
        },
    }  # fmt: skip
    prompt["32"] = {"class_type": "LD3KSampler", "inputs": SAMPLED | {"schedule": ["5", 2]}}
    for key, source in (("33", "31"), ("34", "32")):
        prompt[key] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [source, 0], "filename_prefix": f"latents/{key}"},
        }
    return server.run(prompt)


@pytest.fixture(scope="module")
def schedule(server: ComfyServer, demo_run: dict[str, Any]) -> Schedule:
    return schedule_file.load(server.base / "models" / "ld3" / "from_demo.safetensors")


def test_demo_workflow_shows_the_ways_side_by_side_in_one_picture(
    server: ComfyServer, demo_run: dict[str, Any]
) -> None:
    (record,) = demo_run["9"]["images"]
    picture = server.fetch_image(record)
    ways = [line.split("  ")[0] for line in demo_run["9"]["table"][0].splitlines()]
    assert ways[1] == "euler + simple" and ways[-1] == "learned" and len(ways) == 4
    assert picture.width > 4 * 160 and picture.height > 2 * 160  # a row for each prompt
    report = server.fetch_image(demo_run["5"]["images"][0])
    assert report.width > 2 * report.height > 400


def test_demo_workflow_saves_a_schedule_that_loads(
    demo_run: dict[str, Any], schedule: Schedule
) -> None:
    assert "from_demo.safetensors: learned in " in demo_run["5"]["text"][0]
    assert demo_run["5"]["ld3_file"] == ["from_demo.safetensors"]
    assert schedule.info.sampler == "dpmpp_2m" and schedule.info.latent_shape == [3, 32, 32]
    assert len(schedule.sigmas) == 4 and float(schedule.sigmas[-1]) == 0
    assert (schedule.sigmas[:-1] > schedule.sigmas[1:]).all()
    report = schedule.info.report
    assert len(report["baselines"]) == 9 and report["heldout_error"] > 0
    tested = 4 * 6 + 3 * 12  # by another scheduler, and by the reference
    again = 1  # to see whether the first call gives the same output again
    assert report["teacher_calls"] == (4 + 4) * 6 + tested + again


def test_a_schedule_just_trained_can_be_chosen_in_load_schedule(
    server: ComfyServer, demo_run: dict[str, Any]
) -> None:
    widget = server.object_info("LD3LoadSchedule")["input"]["required"]["name"]
    assert "from_demo.safetensors" in json.dumps(widget)


def test_learned_sigmas_in_core_sampler_custom_give_the_same_bits(
    server: ComfyServer, demo_run: dict[str, Any]
) -> None:
    core, ours = (latent_file(server, demo_run[key]["latents"][0]) for key in ("33", "34"))
    assert torch.equal(core, ours) and ours.shape == (4, 3, 32, 32)
    assert torch.isfinite(ours).all() and ours.std() > 0.1


def test_identical_settings_return_the_saved_schedule(server: ComfyServer) -> None:
    first = server.run(training(name="once"))["5"]["text"][0]
    files = saved_files(server)
    # another name, so that ComfyUI's own cache is not used; the name is not one of the settings
    again = server.run(training(name="twice"))["5"]["text"][0]
    assert "once.safetensors: learned in " in first
    assert "once.safetensors: saved before" in again
    assert saved_files(server) == files


def test_every_run_with_retrain_learns_again_under_a_numbered_name(server: ComfyServer) -> None:
    server.run(training(name="again", seed=77))
    for number in (2, 3):
        text = server.run(training(name="again", seed=77, retrain=True))["5"]["text"][0]
        assert f"again_{number}.safetensors: learned in " in text
    assert {"again.safetensors", "again_2.safetensors"} <= saved_files(server)


def test_training_shows_a_live_picture_and_can_be_interrupted(server: ComfyServer) -> None:
    before = saved_files(server)
    long = training(name="interrupted", iterations=200, training_noises=400, seed=5)
    with server.listen() as messages:
        prompt_id = server.queue(long)
        progress = messages.wait_for("progress", timeout=120).data
        assert progress["node"] == "5" and 0 <= progress["value"] < progress["max"]
        shown = Image.open(io.BytesIO(messages.wait_for("preview", timeout=120).data))
        assert shown.format == "JPEG" and shown.width > 500
        server.interrupt()
        entry = server.wait(prompt_id, timeout=120)
    with pytest.raises(ComfyRunError) as caught:
        raise_for_status(entry)
    assert caught.value.interrupted
    # from which the same settings go on
    assert saved_files(server) - before <= {"interrupted.partial"}
    require_working(server)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sampler_name": "euler_ancestral"}, ["sampler_name", "euler_ancestral", "stochastic"]),
        ({"sampler_name": "dpm_adaptive"}, ["sampler_name", "dpm_adaptive", "Choose"]),
        ({"steps": 1}, ["steps is 1", "2 or more"]),
        ({"teacher_steps": 3}, ["teacher_steps", "3", "more steps"]),
        ({"cfg": -1}, ["cfg is -1", "0 or more"]),
        ({"name": "../outside"}, ["name", "../outside", "no folders"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_invalid_settings_are_refused(
    changes: dict[str, Any], parts: list[str], server: ComfyServer
) -> None:
    before = saved_files(server)
    with pytest.raises((ComfyRunError, PromptRefusedError)) as caught:
        server.run(training(**{"name": "refused"} | changes))
    message = str(caught.value)
    assert "LD3 Train Schedule" in message or "LD3TrainSchedule" in message
    for part in parts:
        assert part in message, message
    assert saved_files(server) == before
    require_working(server)


@pytest.mark.parametrize("kind", ["unknown", "empty", "cut", "foreign", "text", "elsewhere"])
def test_load_schedule_refuses_files_that_are_not_schedules(
    kind: str, server: ComfyServer, schedule: Schedule
) -> None:
    folder = server.base / "models" / "ld3"
    name, file = f"bad_{kind}.safetensors", folder / f"bad_{kind}.safetensors"
    good = (folder / "from_demo.safetensors").read_bytes()
    parts = ["LD3LoadSchedule", name]
    if kind == "unknown":
        parts += ["from_demo.safetensors"]
    elif kind == "elsewhere":
        name = "../../comfyui.log"
        parts = ["LD3LoadSchedule", name, "from_demo.safetensors"]
    elif kind == "foreign":
        shutil.copyfile(ROOT / "demo" / "emoji_unet.safetensors", file)
        parts += ["cannot be read", "bytes", "again"]
    else:
        file.write_bytes({"empty": b"", "cut": good[:-100], "text": b"not a schedule"}[kind])
        parts += ["cannot be read", "again"]
    try:
        with pytest.raises((ComfyRunError, PromptRefusedError)) as caught:
            server.run(sampling(name))
    finally:
        file.unlink(missing_ok=True)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    require_working(server)


def test_a_schedule_of_another_model_samples_with_a_warning(
    server: ComfyServer, schedule: Schedule
) -> None:
    start = len(server.log_text())
    server.run(sampling("from_demo.safetensors"))
    assert "another model" not in server.log_text()[start:]
    for patch in (
        {"class_type": "ModelMergeSimple",
         "inputs": {"model1": ["1", 0], "model2": ["1", 0], "ratio": 0.5}},
        {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 3.0}},
    ):  # fmt: skip
        start = len(server.log_text())
        outputs = server.run(sampling("from_demo.safetensors", patch))
        assert len(outputs["9"]["images"]) == 4
        log = server.log_text()[start:]
        assert "LD3 KSampler: schedule 'from_demo' was learned for another model" in log


def test_a_schedule_of_another_kind_of_noise_is_refused(
    server: ComfyServer, schedule: Schedule
) -> None:
    eps = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": ["1", 0], "sampling": "eps", "zsnr": False},
    }
    with pytest.raises(ComfyRunError, match="LD3KSampler.*'flow'.*'eps'.*LD3 Train Schedule"):
        server.run(sampling("from_demo.safetensors", eps))
    require_working(server)


@pytest.mark.parametrize("name", [TRAIN_SD, LOAD_SD])
def test_stable_diffusion_workflows_need_only_model_files(name: str, server: ComfyServer) -> None:
    with pytest.raises(PromptRefusedError) as caught:
        server.queue(twin(name))
    missing = {"1", "5"} if name == LOAD_SD else {"1"}
    assert set(caught.value.node_errors) == missing
    checkpoint = caught.value.node_errors["1"]["errors"]
    assert [error["type"] for error in checkpoint] == ["value_not_in_list"]


def with_demo_model(prompt: dict[str, Any]) -> dict[str, Any]:
    """A Stable Diffusion prompt with the demo model in the checkpoint's place, at 16x16."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "LD3DemoModel", "inputs": {"batch_size": 1}}
        elif node["class_type"] == "CLIPTextEncode":
            node |= {"class_type": "LD3DemoPrompt", "inputs": {"text": inputs["text"]}}
        elif node["class_type"] == "EmptyLatentImage":
            inputs |= {"width": 16, "height": 16}
        elif inputs.get("vae") == ["1", 2]:
            inputs["vae"] = ["1", 1]
        if "cfg" in inputs:
            inputs["cfg"] = 2
    return prompt


def test_stable_diffusion_workflows_run_with_the_demo_model(server: ComfyServer) -> None:
    prompt = with_demo_model(twin(TRAIN_SD))
    prompt["5"]["inputs"] |= TINY
    outputs = server.run(prompt)
    ways = [line.split("  ")[0] for line in outputs["9"]["table"][0].splitlines()]
    assert ways[1] == "dpmpp_2m + karras" and ways[-1] == "learned"
    # the second workflow loads what the first saved
    prompt = with_demo_model(twin(LOAD_SD))
    prompt["5"]["inputs"]["name"] = "my_schedule.safetensors"
    outputs = server.run(prompt)
    assert server.fetch_image(outputs["8"]["images"][0]).size == (16, 16)


def test_the_workflows_folder_contains_only_workflows_and_thumbnails() -> None:
    names = {path.name for path in (ROOT / "workflows").iterdir()}
    assert set(NAMES) == set(workflows.GRAPHS)
    assert names == {f"{name}.{end}" for name in NAMES for end in ("json", "jpg")}


@pytest.mark.parametrize("name", NAMES)
def test_workflow_file_is_what_the_frontend_and_manager_expect(
    name: str, server: ComfyServer
) -> None:
    saved = workflow(name)
    assert saved["version"] == 0.4
    for node in saved["nodes"]:
        if node["type"] in FRONTEND_ONLY:
            continue
        definition = server.object_info(node["type"])
        if definition["python_module"].startswith("custom_nodes"):
            assert node["properties"] == {
                "Node name for S&R": node["type"],
                "cnr_id": workflows.PROJECT["name"],
                "ver": workflows.PROJECT["version"],
            }
        widgets = 0
        for group in ("required", "optional"):
            for kind, *options in definition["input"].get(group, {}).values():
                settings = options[0] if options else {}
                # "FLOAT,INT" is a widget too
                if isinstance(kind, list) or set(kind.split(",")) <= WIDGET_TYPES:
                    widgets += 1 + bool(settings.get("control_after_generate"))
        assert len(node.get("widgets_values", [])) == widgets, node["type"]
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.width >= 400


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_file_opens_in_the_frontend_as_its_api_format(
    name: str, server: ComfyServer, browser: Browser
) -> None:
    with workflows.frontend(browser, server) as page:
        workflows.load(page, workflow(name))
        found, saved = workflows.to_api(page), twin(name)
        for node in (prompt[key] for prompt in (found, saved) for key in prompt):
            if node["class_type"] == "LD3LoadSchedule":
                node["inputs"]["name"] = "the first in the list"  # of whatever is there
        assert found == saved


def test_server_offers_the_workflows_as_templates(server: ComfyServer) -> None:
    offered = server.get("/workflow_templates")
    assert set(offered["ld3-schedules"]) == set(NAMES)


def test_a_short_soak_loses_nothing(server: ComfyServer) -> None:
    """`nox -s soak` is the long one."""
    soak = Soak(server)
    while soak.tried["training"] < 3 or soak.tried["bad input"] < 2:
        soak.round()
    soak.check_files()
    assert not soak.problems and not +soak.lost
    assert soak.tried["sampling"] and soak.tried["saved file"] and min(soak.memory) > 100
    require_working(server)


@pytest.mark.parametrize("flags", [["--cache-none"], ["--cache-lru", "2"]], ids=" ".join)
def test_caches_of_outputs_change_no_schedule(
    flags: list[str], server: ComfyServer, comfyui_root: Path, tmp_path: Path
) -> None:
    """A graph that trains and samples, twice: everything is made anew, or taken from the cache."""
    prompt = training(name="cached", quality="fast", seed=40) | {
        "6": {"class_type": "LD3KSampler", "inputs": SAMPLED | {
            "positive": ["20", 0], "schedule": ["5", 2], "latent_image": ["4", 0],
        }},
        "9": {"class_type": "SaveLatent", "inputs": {
            "samples": ["6", 0], "filename_prefix": "cached",
        }},
    }  # fmt: skip
    expected = latent_file(server, server.run(prompt)["9"]["latents"][0])
    with ComfyServer(comfyui_root, tmp_path, extra_args=flags) as other:
        outputs = other.run(prompt)
        assert torch.equal(latent_file(other, outputs["9"]["latents"][0]), expected)
        again = other.run(prompt | {"7": prompt["9"]})
        assert saved_files(other) == {"cached.safetensors"}
        assert flags != ["--cache-none"] or "saved before" in again["5"]["text"][0]


def test_demo_script_writes_pictures_schedule_and_report(
    comfyui_root: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--comfyui", comfyui_root, "--quick",
         "--output", tmp_path],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == "dpmpp_2m" and report["steps"] == 3 and report["cfg"] == 1
    assert report["model_calls_training"] > 0 and report["model_calls_teacher"] > 0
    assert report["ratio"] == pytest.approx(report["error_learned"] / report["error_best_baseline"])
    low, high = report["ratio_interval"]
    assert 0 < low <= high
    reference, *others = report["comparison"]
    assert reference.endswith("the reference") and others[-1].startswith("learned ")
    assert all("3 steps, error " in line for line in others)
    *_, ratio, verdict = done.stdout.strip().splitlines()
    assert ratio.endswith(f"= {report['ratio']:.2f} (90 % interval {low:.2f} to {high:.2f})")
    assert verdict == report["verdict"] and "reference" in verdict
    assert schedule_file.load(tmp_path / "emoji.safetensors").info.steps == 3
    for name in ("comparison.png", "report.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 700 and picture.height > 350


def test_demo_script_fails_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--comfyui", tmp_path, "--output", tmp_path],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("demo: ") and str(tmp_path) in done.stderr
