"""What the demo model learns to predict, and from which noise levels: eps or a flow's velocity."""

from __future__ import annotations

import math
from typing import Protocol

import torch

PIXEL_STD = 0.57  # of the pictures in [-1, 1]
MAX_WEIGHT = 50.0
# High noise gets a good share: it is where the caption, not the noisy picture, must decide.
MEAN, SPREAD = math.log(2.5), 1.5  # of the log of noise / picture


class Objective(Protocol):
    """The noise levels and the loss of one prediction type."""

    def sigmas(self, uniform: torch.Tensor) -> torch.Tensor:
        """Noise levels (batch,) of the training distribution from uniform numbers in [0, 1)."""
        ...

    def loss(
        self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor
    ) -> torch.Tensor:
        """Loss of the network's outputs; tensors (batch, 3, size, size) and sigmas (batch,)."""
        ...


class EpsObjective:
    """Predict the noise, at the levels of a discrete schedule.

    Args:
        levels: ComfyUI's `model_sampling.sigmas`, ascending.
    """

    def __init__(self, levels: torch.Tensor) -> None:
        self.levels = levels
        log_sigmas = levels.double().log()
        density = torch.exp(-0.5 * ((log_sigmas - MEAN) / SPREAD) ** 2)
        mass = density * torch.gradient(log_sigmas)[0]
        self.cumulative = (mass / mass.sum()).cumsum(0)

    def sigmas(self, uniform: torch.Tensor) -> torch.Tensor:
        """Log-normal levels, cut to the schedule's range."""
        index = torch.searchsorted(self.cumulative, uniform.double())
        return self.levels[index.clamp(max=len(self.levels) - 1)]

    def loss(
        self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor
    ) -> torch.Tensor:
        """Weighted squared error of the noise."""
        # The weight of v-prediction, capped: keeps colours right where noise drowns the picture.
        weight = (1 + (sigmas / PIXEL_STD) ** 2).clamp(max=MAX_WEIGHT)
        return (weight[:, None, None, None] * (output - noise) ** 2).mean()


class FlowObjective:
    """Predict the velocity noise - x0 of a rectified flow, x = (1 - sigma) x0 + sigma noise."""

    def sigmas(self, uniform: torch.Tensor) -> torch.Tensor:
        """Logit-normal levels: noise / picture, sigma / (1 - sigma), is log-normal.

        With the eps model's mean and spread: the start weights know these levels best.
        """
        # A uniform number may round to 0, whose quantile is infinite.
        return torch.sigmoid(MEAN + SPREAD * torch.special.ndtri(uniform.double().clamp(min=1e-6)))

    def loss(
        self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor
    ) -> torch.Tensor:
        """Squared error of the velocity, not weighted."""
        return ((output - (noise - x0)) ** 2).mean()
