"""A model where it can be called: behind ComfyUI's guider, or directly where it is exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3.model import Model
from ld3.table import Discretization
from ld3.teacher import TeacherSamples
from ld3.tracing import TracedSampler


class Recipe(NamedTuple):
    """A sampler of ComfyUI on a standard schedule."""

    sampler: str
    scheduler: str
    steps: int


TEACHER = Recipe("dpmpp_2m", "karras", 20)  # 20 calls per sample
BATCH = 64  # noises per model call, except while learning (`Trial.training_batches`)


class LiveModel:
    """A model that can be called now, with ComfyUI's samplers and schedulers for it.

    Args:
        model: its denoiser.
        sampling: ComfyUI's `model_sampling` object.
        patcher: what ComfyUI's schedulers take as MODEL; by default one that has only `sampling`.
        model_wrap: what ComfyUI's guider passes to a sampler, if there is a guider.
        recipe: of the teacher that all learning methods share.

    Attributes:
        model: counts its calls.
        recipe: as given.
    """

    def __init__(
        self,
        model: Model,
        sampling: Any,
        patcher: Any = None,
        model_wrap: Any = None,
        recipe: Recipe = TEACHER,
    ) -> None:
        self.model, self._sampling, self._wrap, self.recipe = model, sampling, model_wrap, recipe
        self._patcher = patcher or SimpleNamespace(
            get_model_object=lambda name: sampling, model_options={}
        )

    def traced(self, sampler: str) -> TracedSampler:
        """Core's sampler of that name."""
        from ld3.comfy import core_samplers

        core = core_samplers.sampler_object(sampler)
        return core_samplers.traced_sampler(core, self._sampling, self._wrap)

    def schedules(self, sampler: str, steps: int) -> dict[str, Tensor]:
        """What KSampler would use, for each scheduler that allows this number of steps."""
        from ld3.comfy import core_samplers

        return core_samplers.standard_schedules(self._patcher, sampler, steps, 1.0)

    def discretization(self, sampler: str, sigmas: Tensor) -> Discretization:
        """The sampler on sigmas (N+1,)."""
        return self.traced(sampler).discretization(sigmas)

    def standard(self, sampler: str, scheduler: str, steps: int) -> Discretization:
        """The sampler on a standard schedule."""
        return self.discretization(sampler, self.schedules(sampler, steps)[scheduler])

    @property
    def teacher(self) -> Discretization:
        """The teacher that all learning methods share."""
        return self.standard(*self.recipe)

    def samples(self, solver: Discretization, noise: Tensor, batch: int | None = None) -> Tensor:
        """The solver's samples from unit noises (n, *shape), on the CPU; its calls do not count.

        Args:
            batch: noises per model call in place of the model's `batch_size`.
        """
        model, before = self.model, (self.model.calls, self.model.batch_size)
        model.batch_size = batch or model.batch_size
        try:
            batches = TeacherSamples(noise, torch.zeros_like(noise), noise).batches(model)
            parts = [model.sample(solver, part.noise, part.latent)[0].cpu() for part in batches]
        finally:
            model.calls, model.batch_size = before
        return torch.cat(parts)
