"""A Gaussian with the spectrum of photographs: its denoiser and its ODE's solution are linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ld3.model import Denoiser

SIZE, PIXEL_STD = 16, 0.5


def power_law_spectrum(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Principal axes (d, d), one per row, and variances (d,) of size x size images, float64.

    The axes are cosine waves (the orthonormal two-dimensional DCT); the power of frequency (i, j)
    is proportional to 1 / (1 + i^2 + j^2), as photographs' falls with the square of the frequency
    (Field 1987), scaled to pixels of standard deviation 0.5.
    """
    index = torch.arange(size, dtype=torch.float64)
    waves = math.sqrt(2 / size) * torch.cos(math.pi / size * torch.outer(index, index + 0.5))
    waves[0] /= math.sqrt(2)
    power = 1 / (1 + index[:, None] ** 2 + index**2).flatten()
    return torch.kron(waves, waves), PIXEL_STD**2 * power / power.mean()


def linear_denoiser(axes: Tensor, variances: Tensor) -> Denoiser:
    """The exact E[x0 | x] of a centred Gaussian: C (C + sigma^2)^-1 x.

    Args:
        axes: (d, d), orthonormal rows; variances: (d,), the data's along them.

    Returns:
        `denoise(x, sigma)` for x (batch, *shape) with d elements, sigma (batch,).
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], -1)
        basis, variance = axes.to(flat), variances.to(flat)
        share = variance / (variance + sigma.to(flat).reshape(-1, 1) ** 2)
        return ((flat @ basis.T * share) @ basis).reshape(x.shape)

    return denoise


def gaussian_moments(axes: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the data of `linear_denoiser`."""
    return torch.zeros_like(variances), (axes.T * variances) @ axes
