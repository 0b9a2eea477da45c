"""The re-implementation of LD3's published loop, on problems with exact denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_sampling
import pytest
import torch
from torch import Tensor

from benchmarks.methods import official
from benchmarks.problems.mixtures import gmm16
from benchmarks.problems.noise_levels import karras, uniform_log_snr
from ld3.comfy import core_samplers
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, check_sigmas
from ld3.table import Discretization, rollout
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.tracing import TracedSampler

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = official.OfficialSettings(training_pairs=6, validation_pairs=4, batch=2)


def sampler(name: str) -> TracedSampler:
    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
        pass

    sampling = Sampling()
    sampling.set_parameters(0.03, 80.0, 1.0)
    return core_samplers.traced_sampler(core_samplers.sampler_object(name), sampling)


def pairs_of(model: Model, count: int) -> TeacherSamples:
    sigmas = karras(20, model.sigma_min, model.sigma_max)
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    teacher = sampler("dpmpp_2m").discretization(sigmas)
    with torch.no_grad():
        return sample_teacher(model, teacher, noise, torch.zeros_like(noise))


def training(model: Model, pairs: TeacherSamples, name: str = "dpmpp_2m", **options: Any):
    noise_prediction = name in official.NOISE_PREDICTING
    settings = replace(SETTINGS, noise_prediction=noise_prediction, **options)
    return official.OfficialTraining(model, sampler(name), 4, pairs, 0, settings)


def loss(model: Model, solver: Discretization, pairs: TeacherSamples) -> float:
    with torch.no_grad():
        samples = model.sample(solver, pairs.noise, pairs.latent)[0]
    return float((samples - pairs.target).pow(2).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp_2m", "ipndm", "euler", "uni_pc"])
def test_training_lowers_the_error_of_uniform_log_snr(name: str) -> None:
    model = gmm16()
    pairs = pairs_of(model, 50 + 256)
    sizes = {"training_pairs": 24, "validation_pairs": 26, "steps_rounds": 2, "decoupled_rounds": 1}
    run = training(model, pairs[:50], name, **sizes)
    start = run.discretization()
    uniform = uniform_log_snr(5, model.sigma_min, model.sigma_max)
    assert torch.allclose(start.sigmas[:4], uniform[:4], rtol=1e-5)
    found = run.run()
    check_sigmas(found.sigmas)
    assert loss(model, found, pairs[50:]) < loss(model, start, pairs[50:])


def test_calls_counted_are_forward_passes_and_two_per_backward_pass() -> None:
    inner = gmm16()
    seen = {"forward": 0, "backward": 0}

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen["forward"] += len(x)
        output = inner.denoise(x, sigma)
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.update(backward=seen["backward"] + len(x)))
        return output

    model = Model(denoise, LOG_SIGMA, inner.sigma_min, inner.sigma_max)
    pairs = pairs_of(model, 10)
    model.calls, seen["forward"] = 0, 0
    training(model, pairs).run()
    assert model.calls == seen["forward"] + 2 * seen["backward"]
    # 7 rounds: forward, backward and the check of x' for both sets, validations around 3 updates
    assert seen["backward"] == 7 * 10 * 4
    validations = (model.calls - 4 * seen["backward"]) / (4 * 4)
    assert 7 * 4 <= validations <= 7 * 4 + 1


def test_start_noises_stay_in_their_balls() -> None:
    model = gmm16()
    pairs = pairs_of(model, 10)
    run = training(model, pairs, radius=0.05, steps_rounds=1, decoupled_rounds=1)
    run.run()
    moved = (run.state.training - pairs.noise[:6]).norm(dim=1)
    assert 0 < moved.max() <= 0.05 * 16 / 4**2 * (1 + 1e-5)


@pytest.mark.parametrize("noise_prediction", [False, True])
@pytest.mark.parametrize("preserving", [False, True])
def test_decoupled_weights_reproduce_the_calls_of_the_published_code(
    noise_prediction: bool, preserving: bool
) -> None:
    sigmas = karras(4, 0.03, 80.0)
    table = sampler("euler").table(sigmas)
    states = table.state_sigmas
    evaluated = states * torch.tensor([1.0, 0.9, 1.2, 1.1], dtype=torch.float64)
    scale = ((1 + evaluated**2) / (1 + states**2)).sqrt() if preserving else torch.ones(4)
    weights = official.decoupled_weights(table.weights, states, evaluated, scale, noise_prediction)
    start = 80 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x / (1 + sigma[:, None]))

    found = rollout(replace(table, weights=weights, eval_sigmas=evaluated), denoise, [start])[0]
    x = start
    for m, (state, level) in enumerate(zip(states, evaluated, strict=True)):
        after = sigmas[m + 1].double()
        output = denoise(scale[m] * x, level.expand(3))
        noise = (scale[m] * x - output) / level if noise_prediction else (x - output) / state
        x = x + (after - state) * noise
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-12)
