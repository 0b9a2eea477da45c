"""A model where it can be called: behind ComfyUI's guider, or directly where it is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ld3.model import Model
from ld3.solver import Plan, Sampler
from ld3.teacher import Pairs, student_samples

TEACHER = ("dpmpp_2m", "karras", 20)  # 20 calls per sample
BATCH = 64  # noises per model call


class LiveModel:
    """A model that can be called now, with ComfyUI's samplers and schedulers for it.

    Args:
        model: its denoiser.
        sampling: ComfyUI's `model_sampling` object.
        patcher: what ComfyUI's schedulers take as MODEL.
        model_wrap: what ComfyUI's guider passes to a sampler, if there is a guider.

    Attributes:
        model: counts its calls.
    """

    def __init__(self, model: Model, sampling: Any, patcher: Any, model_wrap: Any = None) -> None:
        self.model, self._sampling, self._patcher = model, sampling, patcher
        self._wrap = model_wrap

    def traced(self, sampler: str) -> Sampler:
        """Core's sampler of that name."""
        from ld3.comfy import samplers

        return samplers.traceable(samplers.sampler_object(sampler), self._sampling, self._wrap)

    def schedules(self, sampler: str, steps: int) -> dict[str, Tensor]:
        """What KSampler would use, for each scheduler that allows this number of steps."""
        from ld3.comfy import samplers

        return samplers.standard_schedules(self._patcher, sampler, steps, 1.0)

    def plan(self, sampler: str, sigmas: Tensor) -> Plan:
        """The sampler on sigmas (N+1,)."""
        return Plan(sigmas, self.traced(sampler).table(sigmas))

    def standard(self, sampler: str, scheduler: str, steps: int) -> Plan:
        """The sampler on a standard schedule."""
        return self.plan(sampler, self.schedules(sampler, steps)[scheduler])

    @property
    def teacher(self) -> Plan:
        """The teacher that all learning methods share."""
        return self.standard(*TEACHER)

    def samples(self, plan: Plan, noise: Tensor) -> Tensor:
        """The plan's samples from unit noises (n, *shape), on the CPU; its calls do not count."""
        before = self.model.calls
        zeros = torch.zeros_like(noise)
        batches = Pairs(noise, zeros, zeros).batches(BATCH, self.model.device)
        parts = [student_samples(self.model, plan, batch)[0].cpu() for batch in batches]
        self.model.calls = before
        return torch.cat(parts)
