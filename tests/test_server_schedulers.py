"""In a real server: a learned schedule among the schedulers of core's nodes, and help pages."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ld3 import schedule_file
from scripts.comfyui_client import PromptRefusedError
from scripts.comfyui_server import ComfyServer

from .test_scheduler_list import LEARNED

pytestmark = pytest.mark.slow
NAME, OFFERED = "listed.safetensors", "LD3: listed"


@pytest.fixture(scope="module")
def saved(server: ComfyServer) -> str:
    return schedule_file.save(LEARNED, server.base / "models" / "ld3", "listed").name


def both_ways() -> dict[str, Any]:
    """KSampler with the listed schedule, and core's SamplerCustom with the file's sigmas."""
    conds = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0]}
    conds["latent_image"] = ["1", 2]
    nodes = {
        "1": ("LD3DemoModel", {"batch_size": 1, "model": "eps"}),
        "2": ("LD3DemoPrompt", {"text": "fish"}),
        "3": ("LD3LoadSchedule", {"name": NAME}),
        "4": ("KSampler", conds | {"seed": 1, "steps": 4, "cfg": 1, "sampler_name": "dpmpp_2m",
                                   "scheduler": OFFERED, "denoise": 1}),
        "5": ("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
        "6": ("SamplerCustom", conds | {"add_noise": True, "noise_seed": 1, "cfg": 1,
                                        "sampler": ["5", 0], "sigmas": ["3", 0]}),
        "7": ("SaveLatent", {"samples": ["4", 0], "filename_prefix": "listed/core"}),
        "8": ("SaveLatent", {"samples": ["6", 0], "filename_prefix": "listed/custom"}),
    }  # fmt: skip
    return {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}


def mark(server: ComfyServer, listed: bool) -> None:
    server._post("/ld3/list", {"name": NAME, "listed": listed})


def offered(server: ComfyServer, node: str) -> list[str]:
    found = server.object_info(node)["input"]["required"]["scheduler"]
    return found[1]["options"] if found[0] == "COMBO" else found[0]


def test_core_samples_with_a_marked_schedule_and_refuses_it_unmarked(
    server: ComfyServer, saved: str
) -> None:
    with pytest.raises(PromptRefusedError, match="not in list"):
        server.queue(both_ways())
    mark(server, True)
    for node in ("KSampler", "KSamplerAdvanced", "BasicScheduler"):
        assert offered(server, node)[-1] == OFFERED
    outputs = server.run(both_ways(), timeout=120)
    records = [outputs[key]["latents"][0] for key in ("7", "8")]
    files = [server.output / record["subfolder"] / record["filename"] for record in records]
    core, custom = (load_file(file)["latent_tensor"] for file in files)
    assert torch.equal(core, custom) and core.std() > 0.1
    training = server.object_info("LD3TrainSchedule")["input"]["required"]["teacher_scheduler"]
    assert OFFERED not in str(training)
    mark(server, False)
    assert OFFERED not in offered(server, "KSampler")
    with pytest.raises(PromptRefusedError, match="not in list"):
        server.queue(both_ways())


@pytest.mark.parametrize("language", ["en", "ko"])
def test_help_pages_are_found_in_every_language(server: ComfyServer, language: str) -> None:
    url = f"{server.url}/extensions/ld3-schedules/docs"
    for node in server.pack_nodes():
        with urllib.request.urlopen(f"{url}/{node}/{language}.md", timeout=30) as answer:
            assert answer.read().decode().startswith("# LD3")
    for path in ("..%2f..%2f..%2fpyproject.toml%00", "LD3Unknown", "..%2f..%2fnodes"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/{path}/{language}.md", timeout=30)
        assert refused.value.code == 404
