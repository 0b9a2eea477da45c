"""Schedules in closed form, for models that ComfyUI's schedulers do not know."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, eq. 5, with the trailing zero: (steps+1,) float32."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(ends[0] + ramp * (ends[1] - ends[0])) ** rho, torch.zeros(1)]).float()


def uniform_log_snr(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced log(sigma) with the trailing zero: (steps+1,) float32."""
    ramp = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([ramp.exp(), torch.zeros(1)]).float()
