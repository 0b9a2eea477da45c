"""The shipped workflows around LD3 Train Schedule (Advanced), run by a real ComfyUI server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from demo.demo_model import CONTEXT_DIM
from ld3 import schedule_file
from scripts.comfyui_client import ComfyRunError
from scripts.comfyui_server import ComfyServer

from .model_files import written
from .test_server import latent_file, twin

TINY = {
    "steps": 3,
    "iterations": 2,
    "training_noises": 4,
    "heldout_noises": 4,
    "quality": "fast",
}

pytestmark = pytest.mark.slow


def pictures(server: ComfyServer, outputs: dict[str, Any], key: str) -> np.ndarray:
    return np.stack([np.asarray(server.fetch_image(r), float) for r in outputs[key]["images"]])


def test_the_workflow_for_sampler_custom_advanced_trains_and_samples(server: ComfyServer) -> None:
    prompt = twin("LD3 train for SamplerCustomAdvanced")
    prompt["9"]["inputs"] |= TINY
    prompt["6"]["inputs"]["steps"], prompt["7"]["inputs"]["steps"] = 8, TINY["steps"]
    outputs = server.run(prompt)
    assert "advanced.safetensors: learned in" in outputs["9"]["text"][0]
    teacher, simple, learned = (pictures(server, outputs, key) for key in ("17", "18", "19"))
    assert teacher.shape == (4, 32, 32, 3) and teacher.std() > 10
    assert np.abs(learned - teacher).mean() < np.abs(simple - teacher).mean()
    saved = schedule_file.load(server.base / "models" / "ld3" / "advanced.safetensors")
    assert saved.info.settings["guider"] == "Guider_Basic" and saved.info.teacher["steps"] == 8
    # the next run uses the file
    again = server.run(prompt | {"9": renamed(prompt["9"])})["9"]["text"][0]
    assert "advanced.safetensors: saved before with the same settings" in again


def test_the_workflow_for_a_distilled_model_learns_from_its_teacher(server: ComfyServer) -> None:
    prompt = twin("LD3 train a distilled model")
    prompt["10"]["inputs"] |= TINY
    prompt["6"]["inputs"]["steps"] = 8
    outputs = server.run(prompt)
    assert "distilled.safetensors: learned in" in outputs["10"]["text"][0]
    assert "ill-posed" not in outputs["10"]["text"][0]
    teacher, page, learned = (pictures(server, outputs, key) for key in ("18", "19", "20"))
    for found in (page, learned):
        assert 0 < np.abs(found - teacher).mean() < 0.5 * np.abs(teacher - teacher.mean()).mean()
    saved = schedule_file.load(server.base / "models" / "ld3" / "distilled.safetensors")
    assert saved.info.teacher["guider"] == "CFGGuider" and saved.info.cfg == 1
    measured = saved.info.report["baselines"]["compare_with"]
    assert measured["sigmas"] == [1.0, 0.75, 0.5, 0.25, 0.0] and measured["heldout_error"] > 0


def test_the_workflow_for_several_prompts_tests_with_new_ones(server: ComfyServer) -> None:
    prompt = twin("LD3 train on several prompts")
    prompt["5"]["inputs"] |= TINY | {"teacher_steps": 8, "training_noises": 6}
    outputs = server.run(prompt)
    assert "several.safetensors: learned" in outputs["5"]["text"][0]
    assert pictures(server, outputs, "8").std() > 10
    saved = schedule_file.load(server.base / "models" / "ld3" / "several.safetensors")
    assert saved.info.settings["prompts"] == 8 and saved.info.settings["new_prompts"] == 2


def test_the_workflow_for_two_models_samples_the_same_in_one_node_and_in_two(
    server: ComfyServer,
) -> None:
    """With the demo's flow models in place of Wan's two files."""
    prompt = twin("LD3 train two models (Wan 2.2)")
    prompt["3"] = demo_node("LD3DemoModel", batch_size=1, model="flow")
    prompt["4"] = demo_node("LD3DemoModel", batch_size=1, model="flow turbo")
    prompt["8"], prompt["9"] = (demo_node("LD3DemoPrompt", text=text) for text in ("hamburger", ""))
    for key in ("1", "2", "6", "7", "10", "13"):
        del prompt[key]
    moved = {"10": ["3", 2], "7": ["3", 1]}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in moved:
                node["inputs"][name] = moved[value[0]]
    prompt["5"]["inputs"] |= TINY | {"teacher_steps": 8}
    latent, cfg = ["3", 2], prompt["11"]["inputs"]["cfg"]
    seed = prompt["11"]["inputs"]["seed"]
    prompt["20"] = demo_node("RandomNoise", noise_seed=seed)
    prompt["21"] = demo_node("DisableNoise")
    for key, model, noise, sigmas in (("30", "3", "20", 4), ("40", "4", "21", 5)):
        prompt[key + "0"] = demo_node(
            "CFGGuider", model=[model, 0], positive=["8", 0], negative=["9", 0], cfg=cfg
        )
        prompt[key] = demo_node(
            "SamplerCustomAdvanced", noise=[noise, 0], guider=[key + "0", 0], sampler=["5", 1],
            sigmas=["5", sigmas], latent_image=latent,
        )  # fmt: skip
        latent = [key, 0]
    prompt["50"] = demo_node("VAEDecode", samples=latent, vae=["3", 1])
    for key, images in (("60", ["12", 0]), ("61", ["50", 0])):
        prompt[key] = demo_node("PreviewImage", images=images)
    outputs = server.run(prompt)
    assert "wan.safetensors: learned in" in outputs["5"]["text"][0]
    one, two = (pictures(server, outputs, key) for key in ("60", "61"))
    assert one.std() > 10 and np.abs(one - two).max() <= 1
    info = schedule_file.load(server.base / "models" / "ld3" / "wan.safetensors").info
    assert info.boundary == 0.875 and 0 < info.high_steps < info.steps


def test_the_workflow_for_video_with_sound_learns_and_samples_both(server: ComfyServer) -> None:
    """With a small file of LTX-2's names and shapes, and the demo's prompts."""
    file = written(
        "LTX-2, video and audio", server.base / "models" / "diffusion_models",
        caption_channels=CONTEXT_DIM // 2,
    )  # fmt: skip
    prompt = twin("LD3 train for video with sound (LTX-2)")
    prompt["1"] = demo_node("UNETLoader", unet_name=file.name, weight_dtype="default")
    prompt["2"] = demo_node("LD3DemoModel", batch_size=1, model="flow")
    prompt["7"]["inputs"]["clip"] = prompt["8"]["inputs"]["clip"] = ["2", 3]
    prompt["4"]["inputs"] |= {"width": 128, "height": 128, "length": 9}
    prompt["5"] = demo_node("EmptyAceStepLatentAudio", seconds=1.5, batch_size=1)
    prompt["12"]["inputs"]["steps"] = 8
    prompt["13"]["inputs"] |= TINY
    for key in ("3", "17", "18", "19", "20"):
        del prompt[key]
    for key, output in (("30", 0), ("31", 1)):
        prompt[key] = demo_node("SaveLatent", samples=["16", output], filename_prefix=f"av/{key}")
    outputs = server.run(prompt)
    assert "ltx2.safetensors: learned in" in outputs["13"]["text"][0]
    video, audio = (latent_file(server, outputs[key]["latents"][0]) for key in ("30", "31"))
    assert video.shape == (1, 128, 2, 4, 4) and audio.shape == (1, 8, 16, 16)
    assert all(bool(x.isfinite().all()) and float(x.std()) > 0.01 for x in (video, audio))
    saved = schedule_file.load(server.base / "models" / "ld3" / "ltx2.safetensors").info
    assert saved.settings["guider"] == "CFGGuider" and saved.cfg == 4


def demo_node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": kind, "inputs": inputs}


def renamed(node: dict[str, Any]) -> dict[str, Any]:
    """A node that ComfyUI's own cache does not know; the name is none of the settings."""
    return node | {"inputs": node["inputs"] | {"name": "another"}}


def test_too_few_teacher_steps_are_refused_with_the_nodes_name(server: ComfyServer) -> None:
    prompt = twin("LD3 train for SamplerCustomAdvanced")
    prompt["6"]["inputs"]["steps"] = 4
    with pytest.raises(ComfyRunError, match="sigmas have 4"):
        server.run(prompt)
