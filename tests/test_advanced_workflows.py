"""The shipped workflows around LD3 Train Schedule (Advanced), run by a real ComfyUI server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ld3 import schedule_file
from scripts.comfyui_client import ComfyRunError
from scripts.comfyui_server import ComfyServer

from .test_server import twin

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


def renamed(node: dict[str, Any]) -> dict[str, Any]:
    """A node that ComfyUI's own cache does not know; the name is none of the settings."""
    return node | {"inputs": node["inputs"] | {"name": "another"}}


def test_too_few_teacher_steps_are_refused_with_the_nodes_name(server: ComfyServer) -> None:
    prompt = twin("LD3 train for SamplerCustomAdvanced")
    prompt["6"]["inputs"]["steps"] = 4
    with pytest.raises(ComfyRunError, match="sigmas have 4"):
        server.run(prompt)
