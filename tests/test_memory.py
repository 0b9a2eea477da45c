"""How activations grow with steps, on a network with activations much larger than its latents."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.measures.peak_bytes import PeakBytes, peak_bytes
from benchmarks.suites.memory import parameters_of, work_of
from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.teacher import TeacherSamples
from ld3.tracing import TracedSampler

pytestmark = pytest.mark.usefixtures("one_thread")
MEGABYTE = 2**20


def euler(model, x: Tensor, sigmas: Tensor, **keywords) -> Tensor:
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - model(x, s * x.new_ones(len(x)))) / s * (t - s)
    return x


def convolutions() -> Model:
    """Three layers, 256 channels between them, on one-channel latents."""
    torch.manual_seed(0)
    network = torch.nn.Sequential()
    for a, b, size in [(1, 256, 3), (256, 256, 1), (256, 1, 3)]:
        network.extend([torch.nn.SiLU(), torch.nn.Conv2d(a, b, size, padding="same")])
    network.requires_grad_(False)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scale = (1 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
        return x * scale**2 + scale * network(x * scale)

    return Model(denoise, LOG_SIGMA, 0.03, 20.0)


@cache
def measured(mode: str, steps: int) -> int:
    noise = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    samples = TeacherSamples(noise, torch.zeros_like(noise), 0.5 * noise)
    model = convolutions()
    parameters = parameters_of(model, TracedSampler(euler), steps)
    return peak_bytes(work_of(mode, model, parameters, samples))


@pytest.mark.slow
def test_gradient_needs_the_same_memory_for_any_number_of_steps() -> None:
    assert measured("gradient", 12) <= 1.05 * measured("gradient", 3)
    assert measured("gradient-no-checkpoint", 12) > 3 * measured("gradient-no-checkpoint", 3)
    assert measured("gradient", 3) < measured("gradient-no-checkpoint", 3)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 6, 12])
def test_gauss_newton_needs_the_memory_of_sampling(steps: int) -> None:
    assert measured("gauss-newton", steps) <= 1.05 * measured("sampling", steps)


def test_peak_counts_what_is_alive_at_once_and_neither_views_nor_arguments() -> None:
    given = torch.zeros(MEGABYTE, dtype=torch.uint8)
    with PeakBytes() as memory:
        for _ in range(3):
            made = given + 1
            made[::2].add_(1)
            given.t().reshape(2, -1)
        assert memory.now == MEGABYTE
        torch.stack([made, made])
        del made
        assert memory.now == 0
    assert memory.peak == 3 * MEGABYTE


def test_the_same_work_has_the_same_peak() -> None:
    first = measured("gradient", 3)
    measured.cache_clear()
    assert measured("gradient", 3) == first
