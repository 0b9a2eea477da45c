"""ComfyUI's noise levels for exact models, and schedules in closed form."""

from __future__ import annotations

import math
from typing import Any

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


def flow_levels(shift: float = 1.0) -> Any:
    """ComfyUI's `model_sampling` of flow models: 1,000 levels up to 1, above 1 shifted upwards."""
    import comfy.model_sampling as core

    class Flow(core.ModelSamplingDiscreteFlow, core.CONST):
        pass

    sampling = Flow()
    sampling.set_parameters(shift=shift, multiplier=1000)
    return sampling


def edm_levels(sigma_min: float, sigma_max: float) -> Any:
    """ComfyUI's `model_sampling` of variance-exploding models with continuous noise levels."""
    import comfy.model_sampling as core

    class Sampling(core.ModelSamplingContinuousEDM, core.EDM):
        pass

    sampling = Sampling()
    sampling.set_parameters(sigma_min, sigma_max, 1.0)
    return sampling
