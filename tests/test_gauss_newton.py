"""Gauss-Newton against autograd, against exact counts, and on problems whose optimum is known."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ld3.metrics import LATENT_DISTANCES, Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, LOGIT_SIGMA
from ld3.table import rollout
from ld3.teacher import TeacherSamples
from ld3.tracing import TracedSampler
from ld3.training.gauss_newton import (
    GaussNewton,
    GaussNewtonSettings,
    calls_per_noise,
    damped_step,
    normal_equations,
)
from ld3.training.gradient.differentiable_rollout import (
    differentiable_rollout,
    differentiable_table,
)
from ld3.training.validation import Objective

from .exact_problems import mixture_denoiser, parameters_of

VARIANCES = torch.tensor([4.0, 0.25, 0.01], dtype=torch.float64)


def euler(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """k-diffusion's signature, differentiable in sigmas."""
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (x - model(x, s * x.new_ones(len(x)))) / s * (t - s)
    return x


def midpoint(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """Two calls per step except the last; the second one between the levels."""
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - model(x, s * x.new_ones(len(x)))) / s
        if t > 0:
            middle = (s * t) ** 0.5
            x2 = x + slope * (middle - s)
            slope = (x2 - model(x2, middle * x.new_ones(len(x)))) / middle
        x = x + slope * (t - s)
    return x


EULER, MIDPOINT = TracedSampler(euler), TracedSampler(midpoint)


def mixture(flow: bool = False, batch_size: int = 4) -> Model:
    """Five components in four dimensions."""
    generator = torch.Generator().manual_seed(2)
    means = 2 * torch.randn(5, 4, generator=generator)
    denoise = mixture_denoiser(means, torch.full((5,), 0.8), torch.zeros(5), flow)
    if not flow:
        return Model(denoise, LOG_SIGMA, 0.03, 20.0, batch_size=batch_size)
    return Model(
        denoise, LOGIT_SIGMA, 0.001, 1.0, lambda n, x, s: s * n + (1 - s) * x, batch_size=batch_size
    )


def gaussian() -> Model:
    """Data N(0, VARIANCES): a linear denoiser whose ODE has an exact solution."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        v = VARIANCES.to(x)
        return v / (v + sigma.reshape(-1, 1) ** 2) * x

    return Model(denoise, LOG_SIGMA, 0.01, 10.0, batch_size=8)


def exact_samples(count: int, start: float) -> TeacherSamples:
    """Start noises of `gaussian` and where the exact ODE takes them."""
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(4))
    scale = (VARIANCES / (VARIANCES + start**2)).sqrt()
    return TeacherSamples(noise, torch.zeros_like(noise), (start * noise * scale).float())


def some_samples(
    count: int, elements: int = 4, dtype: torch.dtype = torch.float32
) -> TeacherSamples:
    generator = torch.Generator().manual_seed(3)
    noise, target = torch.randn(2, count, elements, generator=generator).to(dtype)
    return TeacherSamples(noise, torch.zeros_like(noise), 2 * target)


@pytest.mark.parametrize("name", LATENT_DISTANCES)
@pytest.mark.parametrize("sampler", [EULER, MIDPOINT], ids=["euler", "midpoint"])
@pytest.mark.parametrize("flow", [False, True])
def test_normal_equations_are_those_of_autograd(
    name: str, sampler: TracedSampler, flow: bool
) -> None:
    model, samples = mixture(flow), some_samples(6, dtype=torch.float64)
    objective = Objective(model, Distance(name))
    parameters = parameters_of(model, sampler, 4)
    u = model.coordinate.from_sigma(model.sigma_max * torch.tensor([0.6, 0.25, 0.05]))
    a, g = normal_equations(objective, parameters, u, samples, difference=2e-3)

    def result(u: Tensor) -> Tensor:
        ends = u.new_tensor([model.sigma_max, 0.0])
        sigmas = torch.cat([ends[:1], model.coordinate.to_sigma(u), ends[1:]])
        return sampler.function(model.denoise, model.sigma_max * samples.noise, sigmas)

    jacobian = torch.func.jacrev(result)(u).reshape(6, 4, 3)
    residual = result(u) - samples.target
    weights = objective.distance.weights(residual).double().expand(6, 4)
    scale = a.diagonal().sqrt()
    exact_a = torch.einsum("bd,bdk,bdl->kl", weights, jacobian, jacobian) / residual.numel()
    exact_g = torch.einsum("bd,bdk,bd->k", weights, jacobian, residual) / residual.numel()
    size = (weights * residual**2).mean().sqrt()
    assert ((a - exact_a).abs() <= 1e-2 * scale[:, None] * scale).all()
    assert ((g - exact_g).abs() <= 1e-2 * scale * size).all()


@pytest.mark.parametrize(("steps", "noises", "batch_size"), [(2, 3, 3), (4, 5, 2), (6, 4, 1)])
def test_a_jacobian_costs_n_plus_n_over_two_times_n_minus_one_calls(
    steps: int, noises: int, batch_size: int
) -> None:
    model = mixture(batch_size=batch_size)
    u = torch.linspace(2.5, -2, steps - 1, dtype=torch.float64)
    parameters, objective = parameters_of(model, EULER, steps), Objective(model, Distance())
    normal_equations(objective, parameters, u, some_samples(noises), 0.05)
    assert model.calls == noises * (steps + steps * (steps - 1) // 2)
    assert calls_per_noise(parameters, u, 0.05) == steps + steps * (steps - 1) // 2


def test_normal_equations_do_not_depend_on_the_batch_size() -> None:
    u = torch.tensor([1.5, 0.0], dtype=torch.float64)
    results = []
    for size in (1, 2, 5):
        model = mixture(batch_size=size)
        objective, parameters = Objective(model, Distance()), parameters_of(model, EULER, 3)
        results.append(normal_equations(objective, parameters, u, some_samples(5), 0.05))
    for a, g in results[1:]:
        torch.testing.assert_close(a, results[0][0], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(g, results[0][1], rtol=1e-3, atol=1e-6)


def test_every_rollout_is_announced_with_its_own_sigmas() -> None:
    model, announced = mixture(batch_size=2), []
    model.begin_rollout = lambda sigmas: announced.append(sigmas.clone())
    u, parameters = torch.tensor([1.5, 0.0], dtype=torch.float64), parameters_of(model, EULER, 3)
    normal_equations(Objective(model, Distance()), parameters, u, some_samples(2), 0.05)
    assert len(announced) == 3 and torch.equal(announced[0], parameters.levels.sigmas(u))
    changed = [(s != announced[0]).nonzero().flatten().tolist() for s in announced]
    assert changed == [[], [2], [1]]


def test_a_damped_step_solves_the_damped_system() -> None:
    root = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, g = root.T @ root, torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for damping in (0.0, 0.1, 10.0):
        step = damped_step(a, g, damping)
        residual = (a + damping * torch.diag(a.diagonal())) @ step + g
        assert float(residual.abs().max()) < 1e-9
    # coordinates in other units make the same step
    units = torch.tensor([1.0, 20.0, 0.1, 10.0], dtype=torch.float64)
    scaled = damped_step(units[:, None] * a * units, units * g, 0.1)
    torch.testing.assert_close(units * scaled, damped_step(a, g, 0.1), rtol=1e-4, atol=1e-7)


def test_a_level_without_effect_does_not_move() -> None:
    a = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    g = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    step = damped_step(a, g, 0.1)
    alone = damped_step(a[::2, ::2], g[::2], 0.1)
    assert float(step[1]) == 0
    torch.testing.assert_close(step[::2], alone)


def test_where_no_level_has_an_effect_nothing_moves() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert damped_step(nothing, nothing[0], 0.1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("steps", [2, 3])
def test_the_descent_visits_the_best_schedule_of_a_grid(steps: int) -> None:
    model, samples = gaussian(), exact_samples(8, 10.0)
    parameters = parameters_of(model, EULER, steps)

    def error(u: Tensor) -> float:
        table = parameters.discretization(u).table
        result, _ = rollout(table, model.denoise, [10 * samples.noise])
        return float((result - samples.target).square().mean())

    axis = torch.linspace(1.8, -3.8, 57 if steps == 2 else 29, dtype=torch.float64).tolist()
    grid = itertools.combinations(axis, steps - 1)
    best = min(error(torch.tensor(u, dtype=torch.float64)) for u in grid)
    start = torch.tensor([-1.0, -3.0][: steps - 1], dtype=torch.float64)
    settings = GaussNewtonSettings(difference=0.02)
    descent = GaussNewton(Objective(model, Distance("l2")), parameters, start, 25, settings)
    # averaged over iterations it circles the optimum; a training keeps the best it visited
    visited = [error(descent.step(samples)) for _ in range(25)]
    assert min(visited) <= 1.002 * best < 0.7 * error(start)


def test_a_descent_moves_no_level_further_than_its_cap_and_keeps_the_order() -> None:
    settings = GaussNewtonSettings(largest_step=0.2, smallest_step=0.05)
    model = mixture(batch_size=8)
    u = torch.tensor([2.9, 2.7, -3.0, -3.3], dtype=torch.float64)
    objective, parameters = Objective(model, Distance()), parameters_of(model, EULER, 5)
    descent = GaussNewton(objective, parameters, u, 4, settings)
    caps = torch.logspace(0, 3, 4, base=0.25 ** (1 / 3)) * 0.2
    for cap in caps:
        old, new = descent.theta, descent.step(some_samples(8))
        assert 0 < float((new - old).abs().max()) <= float(cap) + 0.02
        assert bool((new.diff() < 0).all())


@pytest.mark.parametrize("sampler", [EULER, MIDPOINT], ids=["euler", "midpoint"])
@pytest.mark.parametrize("flow", [False, True])
def test_decoupled_times_are_differentiated_as_autograd_does(
    sampler: TracedSampler, flow: bool
) -> None:
    model, samples = mixture(flow), some_samples(6, dtype=torch.float64)
    parameters = parameters_of(model, sampler, 3, decoupled=True)
    u = model.coordinate.from_sigma(model.sigma_max * torch.tensor([0.5, 0.1]))
    offsets = torch.linspace(-0.3, 0.2, parameters.calls - 1, dtype=torch.float64)
    theta = torch.cat([u, offsets])
    objective = Objective(model, Distance("l2"))
    a, g = normal_equations(objective, parameters, theta, samples, difference=2e-3)

    def result(theta: Tensor) -> Tensor:
        weights, eval_sigmas = differentiable_table(parameters, theta)
        x = model.sigma_max * samples.noise
        return differentiable_rollout(weights, eval_sigmas, model.denoise, x)

    def loss(theta: Tensor) -> Tensor:
        return 0.5 * (result(theta) - samples.target).square().mean()

    leaf = theta.clone().requires_grad_()
    loss(leaf).backward()
    size = (result(theta) - samples.target).square().mean().sqrt()
    assert leaf.grad is not None
    assert ((g - leaf.grad).abs() <= 1e-2 * a.diagonal().sqrt() * size).all()


def test_decoupled_times_cost_the_calls_after_them_only() -> None:
    model = mixture(batch_size=3)
    parameters = parameters_of(model, EULER, 4, decoupled=True)
    theta = parameters.extended(torch.tensor([2.0, 0.5, -1.5], dtype=torch.float64))
    normal_equations(Objective(model, Distance()), parameters, theta, some_samples(3), 0.05)
    levels, times = 3 + 2 + 1, 3 + 2 + 1
    assert model.calls == 3 * (4 + levels + times)
    assert calls_per_noise(parameters, theta, 0.05) == 4 + levels + times


def test_images_are_compared_by_the_normal_equations_of_their_features() -> None:
    model, samples = mixture(), some_samples(5, dtype=torch.float64)
    parameters, seen = parameters_of(model, EULER, 3), []
    u = torch.tensor([1.5, 0.0], dtype=torch.float64)

    def features(x: Tensor) -> Tensor:
        seen.append(len(x))
        return torch.cat([torch.tanh(x), 0.3 * x**2], 1)

    objective = Objective(model, Distance("lpips-alex", 1.0, features))
    a, g = normal_equations(objective, parameters, u, samples, difference=2e-3)
    assert set(seen) == {1}  # a network's features of a whole batch would not fit

    leaf = u.clone().requires_grad_()
    weights, levels = differentiable_table(parameters, leaf)
    result = differentiable_rollout(weights, levels, model.denoise, 20 * samples.noise)
    residual = features(result) - features(samples.target)
    rows = [torch.autograd.grad(r, leaf, retain_graph=True)[0] for r in residual.flatten()]
    jacobian, residual = torch.stack(rows).reshape(5, 8, 2), residual.detach()
    exact_a = torch.einsum("bdk,bdl->kl", jacobian, jacobian) / residual.numel()
    exact_g = torch.einsum("bdk,bd->k", jacobian, residual) / residual.numel()
    scale, size = a.diagonal().sqrt(), residual.square().mean().sqrt()
    assert ((a - exact_a).abs() <= 1e-2 * scale[:, None] * scale).all()
    assert ((g - exact_g).abs() <= 1e-2 * scale * size).all()
