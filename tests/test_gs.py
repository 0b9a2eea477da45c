"""The re-implementation of the Generalised Solver's training, on problems with exact denoisers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

from benchmarks.methods import gs
from benchmarks.problems.mixtures import gmm16
from benchmarks.problems.noise_levels import karras
from ld3.comfy import core_samplers
from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.table import SolverTable, rollout
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.tracing import TracedSampler

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = replace(gs.PUBLISHED, training_pairs=10, updates=4)


def sampler(name: str, **options: Any) -> TracedSampler:
    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
        pass

    sampling = Sampling()
    sampling.set_parameters(0.03, 80.0, 1.0)
    return core_samplers.traced_sampler(comfy.samplers.ksampler(name, options), sampling)


def pairs_of(model: Model, count: int) -> TeacherSamples:
    sigmas = karras(20, model.sigma_min, model.sigma_max)
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    teacher = sampler("dpmpp_2m").discretization(sigmas)
    with torch.no_grad():
        return sample_teacher(model, teacher, noise, torch.zeros_like(noise))


def updates_of(weights: Tensor, levels: Tensor) -> Tensor:
    """What each step adds to sigma_{n+1} / sigma_n x_n: (N, 1+N) rows of outputs."""
    ratio = (levels[1:] / levels[:-1])[:, None]
    return weights[1:] - ratio * weights[:-1]


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_without_corrections_each_step_is_that_of_dpm_solver_pp(steps: int) -> None:
    """Orders 1 and 2 as core's dpmpp_2m, order 3 as its dpmpp_3m_sde without noise."""
    solver = gs.GeneralisedSolver(gmm16(), steps)
    levels, evaluated, weights = solver.table(solver.start())
    torch.testing.assert_close(evaluated, levels[:-1])
    found = updates_of(weights, levels)
    second, third = (
        updates_of(sampler(name, **options).table(levels).weights, levels)
        for name, options in (("dpmpp_2m", {}), ("dpmpp_3m_sde", {"eta": 0.0}))
    )
    torch.testing.assert_close(found[:2], second[:2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2:], third[2:], rtol=1e-9, atol=1e-12)


def test_times_start_evenly_spaced_between_the_models_levels() -> None:
    model = gmm16()
    solver = gs.GeneralisedSolver(model, 5)
    times = solver.times(solver.start().logits)
    even = torch.linspace(1, gs.LAST_TIME, 6, dtype=torch.float64)
    torch.testing.assert_close(times, even, rtol=0, atol=1e-9)
    ends = solver.sigma(times)[[0, -1]].tolist()
    assert ends == pytest.approx([model.sigma_max, model.sigma_min])
    moved = solver.times(torch.tensor([9.0, -9.0, 0.0, 3.0], dtype=torch.float64))
    assert (moved.diff() < 0).all()


def test_a_table_with_corrections_is_the_published_update() -> None:
    """Corrections, earlier states and decoupled times computed step by step, in scaled states."""
    solver = gs.GeneralisedSolver(gmm16(), 5)
    generator = torch.Generator().manual_seed(0)
    p = gs.Parameters(
        *(t + 0.05 * torch.randn(t.shape, generator=generator).double() for t in solver.start())
    )
    levels, evaluated, weights = solver.table(p)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x / (1 + sigma[:, None]))

    start = 80 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    reported = torch.arange(5)
    found = rollout(SolverTable(levels[:-1], evaluated, weights, reported), denoise, [start])[0]
    times = solver.times(p.logits)
    alpha = (1 + levels**2).rsqrt()
    lam = -levels.log()
    x, states, data = alpha[0] * start, [], []
    for n in range(5):
        other = solver.sigma(times[n] + p.times[n])
        other_alpha = (1 + other**2).rsqrt()
        answer = denoise(x / other_alpha, other.expand(3))
        noise = (x - other_alpha * answer) / (other_alpha * other)
        states.append(x)
        data.append((x - alpha[n] * levels[n] * noise) / alpha[n])
        h = lam[n + 1] - lam[n]
        phi_1 = torch.expm1(-h)
        ratio = alpha[n + 1] * levels[n + 1] / (alpha[n] * levels[n])
        c, a = p.outputs[n], p.states[n]
        after = (ratio + a[0]) * x - (alpha[n + 1] * phi_1 + c[0]) * data[n]
        if n >= 1:
            r_0 = (lam[n] - lam[n - 1]) / h
            first = (data[n] - data[n - 1]) / r_0
            after = after + a[1] * states[n - 1]
        if n == 1:
            after = after - (0.5 * alpha[n + 1] * phi_1 + c[1]) * first
        if n >= 2:
            r_1 = (lam[n - 1] - lam[n - 2]) / h
            earlier = (data[n - 1] - data[n - 2]) / r_1
            second = (first - earlier) / (r_0 + r_1)
            phi_2 = phi_1 / h + 1
            after = after + (alpha[n + 1] * phi_2 + c[1]) * (first + r_0 * second)
            after = after - (alpha[n + 1] * (phi_2 / h - 0.5) + c[2]) * second
        for k in range(2, n + 1):
            after = after + a[k] * states[n - k]
        for k in range(3, n + 1):
            after = after + c[k] * data[n - k]
        x = after
    assert torch.allclose(found, x / alpha[-1], rtol=1e-9, atol=1e-10)


def test_gradients_reach_every_parameter() -> None:
    model = gmm16()
    run = gs.GsTraining(model, 5, pairs_of(model, 8), 0, SETTINGS)
    run.update(run.pairs, torch.optim.SGD(run.learned, lr=0.0))
    with torch.enable_grad():
        levels, evaluated, weights = run.solver.table(run.learned)
        (weights.square().sum() + evaluated.sum()).backward()
    lower = torch.ones(5, 5).tril().bool()
    assert all((p.grad != 0).all() for p in run.learned[:2])
    for p in run.learned[2:]:
        assert (p.grad[lower] != 0).all() and (p.grad[~lower] == 0).all()


def test_derivatives_of_the_table_are_right() -> None:
    solver = gs.GeneralisedSolver(gmm16(), 4)
    start = [(p + 0.03).requires_grad_() for p in solver.start()]
    with torch.enable_grad():
        assert torch.autograd.gradcheck(lambda *p: solver.table(gs.Parameters(*p)), start)


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
    gs.GsTraining(model, 4, pairs, 0, SETTINGS).run()
    # 10 pairs are two batches of 4 per epoch
    assert model.calls == seen["forward"] + 2 * seen["backward"] == 3 * 4 * 4 * 4


def test_training_lowers_the_error_on_fresh_noises() -> None:
    model = gmm16()
    pairs = pairs_of(model, 64 + 128)
    fresh = pairs[64:]
    run = gs.GsTraining(model, 4, pairs[:64], 0, replace(gs.PUBLISHED, updates=150))
    errors = []
    for solver in (run.discretization(), run.run()):
        with torch.no_grad():
            samples = model.sample(solver, fresh.noise, fresh.latent)[0]
        errors.append(float((samples - fresh.target).abs().mean()))
    assert errors[1] < 0.8 * errors[0]
