"""The demo model, called through ComfyUI's guider as a sampler node calls it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.measures import sample_quality
from ld3.table import Discretization

from .live_model import BATCH, LiveModel
from .problem import FRECHET_SEED, Problem

T = TypeVar("T")
PROMPT = "grinning face"
EMOJI_COMPONENTS = 64  # principal components of the data


class DemoProblem(Problem):
    """The demo model at cfg 1, which learns for one prompt.

    Its Frechet distance uses many prompts, the captions of the data, one per sample: together the
    samples should then be distributed as the data. Only for seed 0, because of its cost.
    """

    heldout_noises, frechet_noises = 64, 512
    training_batch = 16
    variance_preserving = True

    def __init__(self) -> None:
        from demo import demo_model as demo
        from demo import emoji

        super().__init__("demo", (3, demo.SIZE, demo.SIZE))
        self._patcher, self._prompt = demo.load_demo_model(), demo.encode_prompt(PROMPT)[0]
        images, captions = emoji.load_emoji(size=demo.SIZE)
        data = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).double() / 127.5 - 1
        self._projection = sample_quality.Projection(data, EMOJI_COMPONENTS)
        self._data = self._projection(data)
        chosen = torch.randint(
            len(captions), (self.frechet_noises,), generator=torch.Generator().manual_seed(0)
        )
        encoded = [demo.encode_prompt(text)[0][0][0] for text in captions]
        self._captions = torch.cat([encoded[i] for i in chosen.tolist()])

    def run(self, task: Callable[[LiveModel], T]) -> T:
        """The result of `task`, called inside ComfyUI's guider with the one prompt."""
        return self._guided(self._prompt, task)

    def frechet(self, solver: Discretization, seed: int) -> tuple[float | None, int]:
        """Frechet distance on principal components of the data; None except for seed 0."""
        if seed:
            return None, 0
        noise, parts = self.noises(self.frechet_noises, FRECHET_SEED), []
        for part, captions in zip(noise.split(BATCH), self._captions.split(BATCH), strict=True):
            prompts = [[captions, {"pooled_output": None}]]
            parts.append(self._guided(prompts, lambda live, part=part: live.samples(solver, part)))
        samples = torch.cat(parts).flatten(1)
        if not torch.isfinite(samples).all():
            return math.inf, len(samples)
        distance = sample_quality.frechet_distance(self._projection(samples), self._data)
        return distance, len(samples)

    def _guided(self, prompt: Any, task: Callable[[LiveModel], T]) -> T:
        return guided(self._patcher, prompt, torch.zeros(BATCH, *self.shape), task)


def guided(model: Any, prompt: Any, latents: Tensor, task: Callable[[LiveModel], T]) -> T:
    """The result of `task`, called where ComfyUI's guider calls a sampler, at cfg 1.

    Args:
        model: MODEL; for `task` autograd can differentiate it.
        prompt: CONDITIONING.
        latents: (batch, *shape), the largest batch that `task` evaluates.
    """
    from ld3.comfy.gradient.differentiable_model import differentiable_run
    from ld3.comfy.guided_run import GuidedRun, cfg_guider, run

    def called(guided: GuidedRun) -> T:
        with differentiable_run(guided) as live:
            wrap = live.model_wrap
            return task(LiveModel(live.model, live.sampling, wrap.model_patcher, wrap))

    levels = torch.tensor([1.0, 0.0])  # not used, but required
    return run(cfg_guider(model, prompt, prompt, 1.0), latents, levels, called)
