"""What the method needs to know about a diffusion model, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .parameters import Coordinate

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoise(x, sigma) -> x0`: x (batch, *latent), sigma (batch,), guidance applied."""


def scale_by_sigma(noise: Tensor, latent: Tensor, sigma: float) -> Tensor:
    """Start state of a variance-exploding model: latent + sigma * noise."""
    return latent + sigma * noise


@dataclass
class Model:
    """A denoiser with the facts a schedule depends on.

    Attributes:
        denoise: `Denoiser`; the network as it will be deployed, guidance included.
        coordinate: in which coordinate noise levels are learned (`LOG_SIGMA` or `LOGIT_SIGMA`).
        sigma_min, sigma_max: the range of noise levels the network knows.
        scale_noise: (noise, latent, sigma_0) -> start state, each (batch, *latent).
        begin_rollout: told the full sigmas of every rollout before its first call.
        device: where states live while the denoiser runs.
        time_neighbours: sigma -> a noise level below and one above, between which the derivative in
            time is taken as a secant; None where the network's own derivative serves.
        calls: network evaluations of one sample so far (guidance is not counted twice).
    """

    denoise: Denoiser
    coordinate: Coordinate
    sigma_min: float
    sigma_max: float
    scale_noise: Callable[[Tensor, Tensor, float], Tensor] = scale_by_sigma
    begin_rollout: Callable[[Tensor], None] = lambda sigmas: None
    device: torch.device | str = "cpu"
    time_neighbours: Callable[[float], tuple[float, float]] | None = None
    calls: int = field(default=0, init=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += x.shape[0]
        return self.denoise(x, sigma)
