"""Noise levels of ComfyUI's schedulers between any two levels, as BasicScheduler makes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..parameters import check_sigmas
from .core_samplers import scheduler_names

logger = logging.getLogger(__name__)
SAME_START = 1e-3  # relative: schedulers round their first level differently
SAME_SIGMAS = 1e-4  # relative
FINE_STEPS = 200  # of a scheduler, between whose levels is interpolated


@dataclass(frozen=True)
class Span:
    """The levels from `start` down to `end`, of a complete sampling or a part of one.

    Attributes:
        sampling: the model's `model_sampling`.
    """

    sampling: Any
    start: float
    end: float

    def sigmas(self, scheduler: str, steps: int) -> Tensor:
        """(steps+1,) float32: the scheduler's own, or for a part its levels there, as dense.

        Raises:
            ValueError: not strictly decreasing.
        """
        whole = comfy.samplers.calculate_sigmas(self.sampling, scheduler, steps).cpu().float()
        if not self._covers(whole):
            fine = comfy.samplers.calculate_sigmas(self.sampling, scheduler, FINE_STEPS)
            whole = self._part(fine.cpu().double(), steps)
        check_sigmas(whole)
        return whole

    def schedules(self, steps: int) -> dict[str, Tensor]:
        """By scheduler of this ComfyUI; those that fail are left out."""
        found = {}
        for name in scheduler_names():
            try:
                found[name] = self.sigmas(name, steps)
            except Exception as error:  # not every scheduler can make every number of steps
                logger.info("LD3: the scheduler %s cannot make %d steps: %s", name, steps, error)
        return found

    def name_of(self, sigmas: Tensor) -> str | None:
        """The scheduler that makes these sigmas (N+1,); None if there is none."""
        for name, others in self.schedules(len(sigmas) - 1).items():
            if others.shape == sigmas.shape and torch.allclose(
                others, sigmas, rtol=SAME_SIGMAS, atol=0
            ):
                return name
        return None

    def _covers(self, whole: Tensor) -> bool:
        start_differs = abs(float(whole[0]) - self.start) > SAME_START * self.start
        return not start_differs and float(whole[-1]) == self.end

    def _part(self, fine: Tensor, steps: int) -> Tensor:
        """Levels at even positions in a fine schedule between start and end."""
        fine = fine.flip(0)  # ascending
        ends = torch.tensor([self.start, self.end], dtype=torch.float64)
        above = torch.searchsorted(fine, ends).clamp(1, len(fine) - 1)
        low, high = fine[above - 1], fine[above]
        positions = above - 1 + (ends - low) / (high - low).clamp_min(1e-12)
        first, last = (float(position) for position in positions)
        at = torch.linspace(first, last, steps + 1, dtype=torch.float64)
        at = at.clamp(0, len(fine) - 1)
        below = at.floor().long().clamp(max=len(fine) - 2)
        levels = torch.lerp(fine[below], fine[below + 1], at - below)
        return torch.cat([ends[:1], levels[1:-1], ends[1:]]).float()


def resampled_levels(sigmas: Tensor, steps: int) -> Tensor:
    """Sigmas (N+1,) in another number of steps, at even positions: (steps+1,) float32."""
    at = torch.linspace(0, len(sigmas) - 1, steps + 1, dtype=torch.float64)
    low = at.floor().long().clamp(max=len(sigmas) - 2)
    exact = sigmas.double()
    levels = torch.lerp(exact[low], exact[low + 1], at - low)
    return torch.cat([sigmas[:1], levels[1:-1].float(), sigmas[-1:]])
