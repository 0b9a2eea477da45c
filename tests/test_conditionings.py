"""Conditionings at the edge: without tokens, without entries, and of different lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DualCFGGuider,
    KSamplerSelect,
)
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
NO_TOKENS: list[Any] = [[None, {}]]
TINY = {
    "steps": 3, "name": "edge", "seed": 0, "learn": "time steps", "quality": "fast",
    "retrain": False, "distance": "pseudo-huber", "iterations": 1, "training_noises": 4,
    "heldout_noises": 4, "batch_size": 4,
}  # fmt: skip
WIDGETS = {
    "sampler_name": "euler", "cfg": 1.0, "denoise": 1.0, "teacher_sampler": "euler",
    "teacher_scheduler": "simple", "teacher_steps": 8,
}  # fmt: skip


def without_prompt(apply: Any, arguments: dict[str, Any]) -> Tensor:
    """A flow model of two modes in each pixel, which needs no prompt."""
    x, sigma = arguments["input"], arguments["timestep"].reshape(-1, 1, 1, 1)
    return torch.tanh((1 - sigma) * x / (sigma**2).clamp_min(1e-6))


@pytest.fixture(scope="module")
def model(pack_nodes: dict[str, type]) -> Any:
    made = pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")[0]
    made.set_model_unet_function_wrapper(without_prompt)
    return made


@pytest.fixture(scope="module")
def train(
    pack_nodes: dict[str, type], demo_inputs: dict[str, Any], model: Any, ld3_folder: Path
) -> Any:
    def run(**changes: Any) -> Any:
        inputs = demo_inputs | {"model": model} | TINY | WIDGETS
        return pack_nodes["LD3TrainSchedule"].execute(**(inputs | changes))

    return run


def test_a_conditioning_without_tokens_is_a_prompt(train: Any) -> None:
    both = train(positive=NO_TOKENS, negative=NO_TOKENS, cfg=2.0, name="none")[0]
    assert len(both) == 4 and bool((both.diff() < 0).all())


def test_no_negative_prompt_is_needed_without_guidance(train: Any) -> None:
    assert len(train(negative=[], name="positive_only")[0]) == 4


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"positive": []}, "positive"), ({"negative": [], "cfg": 2.0}, "negative")],
    ids=["positive", "negative"],
)
def test_an_empty_conditioning_is_refused_and_named(
    changes: dict[str, Any], name: str, train: Any, ld3_folder: Path
) -> None:
    before = set(ld3_folder.iterdir())
    with pytest.raises(ValueError, match=f"^{name} is an empty conditioning .*connect a prompt"):
        train(**changes)
    assert set(ld3_folder.iterdir()) == before


@pytest.mark.parametrize("kind", ["basic", "cfg", "dual"])
def test_an_empty_conditioning_of_a_guider_is_refused_and_named(
    kind: str, model: Any, pack_nodes: dict[str, type], demo_inputs: dict[str, Any],
    ld3_folder: Path,
) -> None:  # fmt: skip
    prompt = demo_inputs["positive"]
    guider = {
        "basic": lambda: BasicGuider.execute(model, [])[0],
        "cfg": lambda: CFGGuider.execute(model, prompt, [], 3.0)[0],
        "dual": lambda: DualCFGGuider.execute(model, prompt, prompt, [], 3.0, 2.0, "regular")[0],
    }[kind]()
    inputs = {
        "guider": guider,
        "sampler": KSamplerSelect.execute("euler")[0],
        "sigmas": BasicScheduler.execute(model, "simple", 8, 1.0)[0],
        "latent_image": demo_inputs["latent_image"],
    }
    with pytest.raises(ValueError, match="(positive|negative) is an empty conditioning"):
        pack_nodes["LD3TrainScheduleAdvanced"].execute(**(inputs | TINY | {"minutes": 0.0}))


def test_prompts_of_different_lengths_are_learned_from_together(
    train: Any, pack_nodes: dict[str, type]
) -> None:
    """Text encoders give longer prompts more tokens; core can only batch equal ones."""
    demo = pack_nodes["LD3DemoModel"].execute(batch_size=1, model="flow")
    clip, lengths = demo[3], iter((3, 12, 5, 7))

    class Clip:
        tokenize = clip.tokenize

        def encode_from_tokens_scheduled(self, tokens: Any) -> list[Any]:
            tensor, options = clip.encode_from_tokens_scheduled(tokens)[0]
            return [[tensor[:, : next(lengths)], options]]

    text = "red apple\nheart\ncat face\nhamburger"
    prompts = pack_nodes["LD3PromptList"].execute(clip=Clip(), text=text)[0]
    assert [entry[0].shape[1] for entry in prompts] == [3, 12, 5, 7]
    schedule = train(model=demo[0], positive=prompts, name="lengths")[2]
    assert schedule.info.settings["prompts"] == 4 and schedule.info.report["heldout_error"] > 0
