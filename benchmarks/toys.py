"""Exact problems made for one question each: invertible ones to compare densities on, and a
heavy-tailed one to break things with."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ld3.model import Model
from ld3.parameters import LOG_SIGMA

from . import subjects
from .problems import mixture_denoiser, mixture_moments
from .subjects import Subject

MODES, SCALES, FREEDOM = 24, 16, 2.0


@functools.cache
def load(name: str) -> Subject:
    """The problem of that name, those of `benchmarks.subjects` included."""
    makers = {"mixture-1d": mixture_1d, "mixture-2d": mixture_2d, "heavy16": heavy16}
    if name not in makers:
        return subjects.load(name)
    means, stds, log_weights = makers[name]()
    model = Model(mixture_denoiser(means, stds, log_weights), LOG_SIGMA, 0.03, 20.0)
    moments = mixture_moments(means, stds, log_weights)
    return Subject(name, model, (means.shape[1],), moments)


def mixture_1d() -> tuple[Tensor, Tensor, Tensor]:
    """Means (3, 1), stds and log weights of three overlapping components."""
    weights = torch.tensor([0.3, 0.45, 0.25])
    return torch.tensor([[-1.5], [0.2], [1.8]]), torch.tensor([0.5, 0.4, 0.6]), weights.log()


def mixture_2d() -> tuple[Tensor, Tensor, Tensor]:
    """Means (3, 2), stds and log weights of three overlapping components."""
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.9], [-0.4, -1.0]])
    return means, torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.3, 0.4, 0.3]).log()


def heavy16() -> tuple[Tensor, Tensor, Tensor]:
    """24 modes in 16 dimensions, each about a multivariate Student t with 2 degrees of freedom.

    A Student t is a Gaussian whose variance is itself random, FREEDOM / chi^2; here it takes 16
    values, the middles of as many equally likely parts.
    """
    from scipy.stats import chi2

    generator = torch.Generator().manual_seed(17)
    means = torch.randn(MODES, 16, generator=generator)
    means *= torch.exp(torch.randn(MODES, 1, generator=generator))
    stds = 0.15 * torch.exp(0.5 * torch.randn(MODES, generator=generator))
    parts = (torch.arange(SCALES) + 0.5) / SCALES
    scales = torch.from_numpy((FREEDOM / chi2.ppf(parts.numpy(), FREEDOM)) ** 0.5).float()
    log_weights = torch.randn(MODES, generator=generator).log_softmax(0)
    return (
        means.repeat_interleave(SCALES, 0),
        torch.outer(stds, scales).flatten(),
        log_weights.repeat_interleave(SCALES),
    )
