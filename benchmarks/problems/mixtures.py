"""Gaussian mixtures: their denoisers are known exactly, so errors measure the solver alone.

A mixture is given by its components: means (K, d), standard deviations (K,), log weights (K,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ld3.model import Denoiser, Model
from ld3.parameters import LOG_SIGMA

from .flow_models import flow_denoiser, flow_model

Components = tuple[Tensor, Tensor, Tensor]
PATCH, PATCH_STD = 8, 0.1
PHOTO_SHRINK, PATCH_STRIDE = 4, 4  # photographs 640 wide are too smooth at the size of a patch
MOONS, MOONS_STD = 400, 0.1
HEAVY_MODES, HEAVY_SCALES, HEAVY_FREEDOM = 24, 16, 2.0


def mixture_denoiser(
    means: Tensor, stds: Tensor, log_weights: Tensor, flow: bool = False
) -> Denoiser:
    """The exact E[x0 | x] of an isotropic Gaussian mixture.

    Args:
        means: (K, d) component means; stds, log_weights: (K,).
        flow: x = (1 - sigma) x0 + sigma noise instead of x = x0 + sigma noise.

    Returns:
        `denoise(x, sigma)` for x (batch, d) or any (batch, *shape) with d elements, sigma (batch,).
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], -1)
        mu, std, logw = (t.to(flat) for t in (means, stds, log_weights))
        level = sigma.to(flat).reshape(-1, 1)
        variance = std**2 + level**2
        squared = (flat**2).sum(1, keepdim=True) - 2 * flat @ mu.T + (mu**2).sum(1)
        share = torch.softmax(
            logw - 0.5 * squared / variance - 0.5 * mu.shape[1] * variance.log(), dim=1
        )
        shrink = share * std**2 / variance
        out = (share - shrink) @ mu + shrink.sum(1, keepdim=True) * flat
        return out.reshape(x.shape)

    return flow_denoiser(denoise) if flow else denoise


def mixture_moments(means: Tensor, stds: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the mixture of `mixture_denoiser`, float64."""
    mu, variance, share = means.double(), stds.double() ** 2, log_weights.double().softmax(0)
    mean = share @ mu
    centred = mu - mean
    spread = (share * variance).sum() * torch.eye(mu.shape[1], dtype=torch.float64)
    return mean, (share[:, None] * centred).T @ centred + spread


def digits_data() -> Tensor:
    """scikit-learn's 1797 8x8 digits, (1797, 1, 8, 8) float32 in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1


def digits(std: float = 0.15) -> Model:
    """Kernel density of the digits, sigma in [0.03, 80]."""
    denoise = mixture_denoiser(*digits_components(std))
    return Model(denoise, LOG_SIGMA, sigma_min=0.03, sigma_max=80.0)


def digits_components(std: float = 0.15) -> Components:
    """Components of the digits' kernel density."""
    data = digits_data().flatten(1)
    return data, torch.full((len(data),), std), torch.zeros(len(data))


def patches_components() -> Components:
    """A kernel density of grey 8x8 patches of scikit-learn's two photographs, in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo, dtype=torch.float32) for photo in load_sample_images().images]
    grey = torch.stack([photo.mean(2) for photo in photos])[:, None] / 127.5 - 1
    small = torch.nn.functional.avg_pool2d(grey, PHOTO_SHRINK)
    patches = torch.nn.functional.unfold(small, PATCH, stride=PATCH_STRIDE)  # (2, 64, places)
    data = patches.transpose(1, 2).flatten(0, 1)
    return data, torch.full((len(data),), PATCH_STD), torch.zeros(len(data))


def moons_components() -> Components:
    """A kernel density of scikit-learn's two moons, centred: curved, and smooth between them."""
    from sklearn.datasets import make_moons

    points = torch.tensor(make_moons(MOONS, shuffle=False)[0], dtype=torch.float32)
    return points - points.mean(0), torch.full((MOONS,), MOONS_STD), torch.zeros(MOONS)


def gmm16(flow: bool = False) -> Model:
    """A mixture of 40 components of very different sizes in 16 dimensions, shape (16,)."""
    denoise = mixture_denoiser(*gmm16_components())
    if flow:
        return flow_model(denoise, sigma_min=0.001)
    return Model(denoise, LOG_SIGMA, sigma_min=0.03, sigma_max=80.0)


def gmm16_components() -> Components:
    """Components of `gmm16`."""
    generator = torch.Generator().manual_seed(16)
    means = torch.randn(40, 16, generator=generator)
    means *= torch.exp(0.6 * torch.randn(40, 1, generator=generator))
    stds = 0.1 * torch.exp(0.7 * torch.randn(40, generator=generator))
    return means, stds, torch.randn(40, generator=generator).log_softmax(0)


def mixture_1d() -> Components:
    """Three overlapping components in one dimension, where every sampling map is invertible."""
    weights = torch.tensor([0.3, 0.45, 0.25])
    return torch.tensor([[-1.5], [0.2], [1.8]]), torch.tensor([0.5, 0.4, 0.6]), weights.log()


def mixture_2d() -> Components:
    """Three overlapping components in two dimensions, smooth enough for invertible maps."""
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.9], [-0.4, -1.0]])
    return means, torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.3, 0.4, 0.3]).log()


def heavy16() -> Components:
    """A stress test: 24 modes in 16 dimensions, each nearly a Student t with 2 degrees of freedom.

    A Student t is a Gaussian whose variance is itself random, HEAVY_FREEDOM / chi^2; here it takes
    16 values, the midpoints of as many equally likely intervals.
    """
    from scipy.stats import chi2

    generator = torch.Generator().manual_seed(17)
    means = torch.randn(HEAVY_MODES, 16, generator=generator)
    means *= torch.exp(torch.randn(HEAVY_MODES, 1, generator=generator))
    stds = 0.15 * torch.exp(0.5 * torch.randn(HEAVY_MODES, generator=generator))
    parts = (torch.arange(HEAVY_SCALES) + 0.5) / HEAVY_SCALES
    scales = torch.from_numpy((HEAVY_FREEDOM / chi2.ppf(parts.numpy(), HEAVY_FREEDOM)) ** 0.5)
    log_weights = torch.randn(HEAVY_MODES, generator=generator).log_softmax(0)
    return (
        means.repeat_interleave(HEAVY_SCALES, 0),
        torch.outer(stds, scales.float()).flatten(),
        log_weights.repeat_interleave(HEAVY_SCALES),
    )
