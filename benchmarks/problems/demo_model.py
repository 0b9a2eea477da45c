"""The demo model, called through ComfyUI's guider as a sampler node calls it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.measures import sample_quality
from ld3.solver import Plan

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
        from demo import emoji
        from demo import model as demo

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

    def frechet(self, plan: Plan, seed: int) -> tuple[float | None, int]:
        """Frechet distance on principal components of the data; None except for seed 0."""
        if seed:
            return None, 0
        noise, parts = self.noises(self.frechet_noises, FRECHET_SEED), []
        for part, captions in zip(noise.split(BATCH), self._captions.split(BATCH), strict=True):
            prompts = [[captions, {"pooled_output": None}]]
            parts.append(self._guided(prompts, lambda live, part=part: live.samples(plan, part)))
        samples = torch.cat(parts).flatten(1)
        if not torch.isfinite(samples).all():
            return math.inf, len(samples)
        distance = sample_quality.frechet_distance(self._projection(samples), self._data)
        return distance, len(samples)

    def _guided(self, prompt: Any, task: Callable[[LiveModel], T]) -> T:
        return guided(self._patcher, prompt, torch.zeros(BATCH, *self.shape), task)


def guided(patcher: Any, prompt: Any, latent: Tensor, task: Callable[[LiveModel], T]) -> T:
    """The result of `task`, called where ComfyUI's guider calls a sampler, at cfg 1.

    Args:
        patcher: MODEL.
        prompt: CONDITIONING.
        latent: (batch, *shape), the largest batch that `task` evaluates.
    """
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    return _run(guider, latent, task)


def _run(guider: Any, latent: Tensor, task: Callable[[LiveModel], T]) -> T:
    """The one bridge from ComfyUI's guider to what is measured."""
    import comfy.samplers

    from ld3.comfy.denoiser import guided_model
    from ld3.comfy.differentiable import differentiable, time_neighbours

    results = []

    class Task(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *others, **more):
            sampling = model_wrap.inner_model.model_sampling
            with torch.no_grad(), differentiable(model_wrap, extra_args) as extra_args:
                model = guided_model(self, model_wrap, extra_args)
                model.time_neighbours = time_neighbours(sampling)
                patcher = guider.model_patcher
                results.append(task(LiveModel(model, sampling, patcher, model_wrap)))
            return noise

    levels = torch.tensor([1.0, 0.0])  # not used, but required
    zeros = torch.zeros_like(latent)
    guider.sample(zeros, latent, Task(), levels, disable_pbar=True, seed=0)
    return results[0]
