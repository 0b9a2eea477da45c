"""Reverse mode through every sampler against central differences, and the laws of the descent."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling as model_sampling
import pytest
import torch
from torch import Tensor

from ld3.comfy.core_samplers import coordinate, sampler_object, traced_sampler
from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.solver_parameters import SolverParameters
from ld3.table import rollout
from ld3.teacher import TeacherSamples
from ld3.training.gradient.descent import GradientDescent, projected
from ld3.training.gradient.differentiable_rollout import (
    SoftmaxSteps,
    backward_loss,
    differentiable_rollout,
    differentiable_table,
)
from ld3.training.gradient.gradient_settings import ADAM, PAPER, GradientSettings
from ld3.training.gradient.recompute import GradientError, recomputed
from ld3.training.validation import Objective

from .exact_problems import parameters_of

DETERMINISTIC = (
    "euler", "heun", "heunpp2", "exp_heun_2_x0", "dpm_2", "lms", "dpmpp_2m", "ipndm", "ipndm_v",
    "deis", "res_multistep", "gradient_estimation", "uni_pc", "uni_pc_bh2", "ddim",
)  # fmt: skip
BASES = {
    "eps": (model_sampling.ModelSamplingContinuousEDM, model_sampling.EPS),
    "v": (model_sampling.ModelSamplingContinuousEDM, model_sampling.V_PREDICTION),
    "flow": (model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def sampling_of(kind: str) -> Any:
    sampling = type("Sampling", BASES[kind], {})()
    if kind != "flow":
        sampling.set_parameters(0.03, 20.0, 1.0)
    return sampling


def smooth_model(kind: str) -> tuple[Model, Any]:
    """A small smooth network of continuous time behind ComfyUI's own scalings, float64."""
    sampling = sampling_of(kind)
    generator = torch.Generator().manual_seed(1)
    first, last = (0.6 * torch.randn(6, 6, generator=generator).double() for _ in range(2))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x).reshape(-1, 1)
        time = level if kind == "flow" else level.log() / 4
        hidden = torch.tanh(sampling.calculate_input(level, x) @ first + torch.sin(time))
        return sampling.calculate_denoised(level, hidden @ last, x)

    least, most = (0.001, 1.0) if kind == "flow" else (0.03, 20.0)
    return Model(denoise, coordinate(sampling), least, most), sampling


def learned(
    kind: str, sampler: str, decoupled: bool = True, order: int = 0
) -> tuple[Model, SolverParameters]:
    """A smooth model, and what is learned of a sampler at 4 steps."""
    model, sampling = smooth_model(kind)
    traced = traced_sampler(sampler_object(sampler), sampling)
    return model, parameters_of(model, traced, 4, decoupled=decoupled, order=order)


def some_theta(parameters: SolverParameters) -> Tensor:
    """A theta without zeros."""
    upper, lower = parameters.levels.bounds()
    u = torch.linspace(upper, lower, parameters.steps + 1, dtype=torch.float64)[1:-1]
    offsets = 0.1 * torch.sin(torch.arange(parameters.size - len(u), dtype=torch.float64) + 1)
    return torch.cat([u, offsets])


def loss_of(
    model: Model, parameters: SolverParameters, theta: Tensor, x: Tensor, target: Tensor
) -> Tensor:
    weights, levels = differentiable_table(parameters, theta)
    result = differentiable_rollout(weights, levels, recomputed(model), x)
    return (result - target).square().mean()


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_gradients_to_everything_learned_and_to_noise_match_central_differences(
    sampler: str, kind: str
) -> None:
    model, parameters = learned(kind, sampler, order=1)
    generator = torch.Generator().manual_seed(2)
    noise, target = torch.randn(2, 3, 6, generator=generator).double()
    x = parameters.levels.start * noise
    theta, x = some_theta(parameters).requires_grad_(), x.requires_grad_()

    def loss(theta: Tensor, x: Tensor) -> Tensor:
        return loss_of(model, parameters, theta, x, target)

    to_theta, to_x = torch.autograd.grad(loss(theta, x), [theta, x])
    with torch.no_grad():
        measured = torch.zeros_like(theta)
        for k in range(len(theta)):
            h = torch.zeros_like(theta)
            h[k] = 1e-4
            # fourth order: rounding and truncation both stay below the tolerance
            near, far = (loss(theta + m * h, x) - loss(theta - m * h, x) for m in (1, 2))
            measured[k] = (8 * near - far) / 12e-4
        direction = to_x / to_x.norm()
        h = 1e-4 * parameters.levels.start
        near, far = (
            loss(theta, x + m * h * direction) - loss(theta, x - m * h * direction) for m in (1, 2)
        )
        along = (8 * near - far) / (12 * h)
    assert float((to_theta - measured).norm() / measured.norm()) <= 1e-6
    assert float(along) == pytest.approx(float(to_x.norm()), rel=1e-6)


def test_a_recomputed_call_counts_forward_repetition_and_backward() -> None:
    model, parameters = learned("eps", "euler")
    x = torch.randn(3, 6).double()
    loss_of(model, parameters, some_theta(parameters).requires_grad_(), x, x).backward()
    assert model.calls == 3 * parameters.calls * 4


def test_a_secant_over_time_replaces_the_networks_own_derivative() -> None:
    model = Model(lambda x, s: x * s.round().reshape(-1, 1), LOG_SIGMA, 0.1, 100.0)
    x, sigma = torch.ones(2, 3).double(), torch.full((2,), 10.4).double().requires_grad_()
    recomputed(model)(x, sigma).sum().backward()
    assert sigma.grad.tolist() == [0, 0]  # rounding has no gradient
    model.time_neighbours = lambda level: (level - 2, level + 2)
    sigma.grad, model.calls = None, 0
    recomputed(model)(x, sigma).sum().backward()
    assert sigma.grad.tolist() == [3.0, 3.0]
    assert model.calls == 2 + 2 * 2  # x needs no gradient: only the secant's two


def test_a_model_with_a_memory_is_refused() -> None:
    calls = []

    def remembers(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(1)
        return x * len(calls)

    x = torch.ones(1, 2, requires_grad=True)
    output = recomputed(Model(remembers, LOG_SIGMA, 0.1, 10.0))(x, torch.ones(1))
    with pytest.raises(GradientError, match="different outputs for the same input"):
        output.sum().backward()


def test_softmax_steps_begin_at_their_schedule_and_stay_ordered() -> None:
    levels = StepParameters(LOG_SIGMA, 20.0, 0.03)
    u = torch.tensor([2.0, 0.3, -1.0], dtype=torch.float64)
    steps = SoftmaxSteps(levels, u)
    torch.testing.assert_close(steps.u(torch.zeros(3).double()), u)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = steps.u(4 * torch.randn(3, generator=generator).double())
        assert (moved.diff() < 0).all()
        assert math.log(0.03) < float(moved[-1]) and float(moved[0]) < math.log(20)


def test_noises_are_projected_onto_the_nearest_point_of_their_ball() -> None:
    center = torch.randn(4, 3, 2)
    moved = center + torch.tensor([0.1, 0.5, 2.0, 10.0]).reshape(4, 1, 1) * torch.ones(4, 3, 2)
    found = projected(moved, center, 1.3)
    distance = (moved - center).flatten(1).norm(dim=1)
    for i in range(4):
        if distance[i] <= 1.3:
            assert torch.allclose(found[i], moved[i])
        else:
            assert float((found[i] - center[i]).norm()) == pytest.approx(1.3, rel=1e-5)
            assert torch.allclose((found - center)[i] / 1.3, (moved - center)[i] / distance[i])


def descent(settings: GradientSettings, decoupled: bool = False) -> GradientDescent:
    model, parameters = learned("eps", "dpmpp_2m", decoupled=decoupled)
    smooth = model.denoise
    model.denoise = lambda x, sigma: smooth(x.double(), sigma.double()).to(x)
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))
    levels = torch.linspace(3, -3.5, 30, dtype=torch.float64).exp()
    exact = parameters.sampler.table(torch.cat([levels, torch.zeros(1)]))
    target = rollout(exact, model.denoise, [parameters.levels.start * noise])[0]
    samples = TeacherSamples(noise, torch.zeros_like(noise), target)
    theta = parameters.extended(torch.tensor([2.5, 2.0, 1.5], dtype=torch.float64))
    objective = Objective(model, Distance("l2"))
    return GradientDescent(objective, parameters, theta, samples, settings, 60)


def mean_loss(run: GradientDescent, noise: Tensor) -> Tensor:
    """Loss of each training sample when its student starts from `noise`."""
    table = run.parameters.discretization(run.theta().detach()).table
    model, start = run.objective.model, run.parameters.levels.start
    result = rollout(table, model.denoise, [start * noise])[0]
    return Distance("l2").value(result - run.samples.target)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PAPER, ADAM], ids=["paper", "adam"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_descent_lowers_the_loss(settings: GradientSettings, decoupled: bool) -> None:
    run = descent(settings, decoupled)
    before = float(mean_loss(run, run.samples.noise).mean())
    for _ in range(60):
        run.update(torch.arange(8))
    after = float(mean_loss(run, run.samples.noise).mean())
    assert after < (0.7 if settings.adam else 0.95) * before


def test_soft_starts_stay_in_their_ball_and_only_help() -> None:
    run = descent(GradientSettings(radius=0.3, adam=True, noise_rate=0.5, steps_rate=1e-9))
    before = mean_loss(run, run.noise)
    for _ in range(5):
        run.update(torch.arange(8))
    moved = (run.noise - run.samples.noise).norm(dim=1)
    after = mean_loss(run, run.noise)
    assert 0 < float(moved.max()) <= 0.3 * (1 + 1e-5)
    assert (after[moved > 0] < before[moved > 0]).all()
    assert torch.equal(after[moved == 0], before[moved == 0])


def test_radius_zero_moves_no_noise_and_the_default_radius_is_the_papers() -> None:
    assert descent(PAPER).radius == pytest.approx(0.001 * 6 / 4**2)
    run = descent(GradientSettings(radius=0.0))
    run.update(torch.arange(8))
    assert torch.equal(run.noise, run.samples.noise)
    hard = 8 * 4 * 4
    assert run.objective.model.calls == hard


def test_decoupled_times_stay_within_half_the_smallest_gap_of_the_steps() -> None:
    run = descent(GradientSettings(radius=0.0), decoupled=True)
    with torch.no_grad():
        run.extras += 50
        run.z += torch.tensor([0.4, -0.2, 0.1])
    theta = run.theta().detach()
    ends = torch.tensor([math.log(20), *theta[:3].tolist(), math.log(0.03)])
    assert theta[3:].tolist() == pytest.approx([0.5 * float(-ends.diff().max())] * 3, rel=1e-5)


def test_a_loss_of_images_is_differentiated_image_by_image_with_the_same_result() -> None:
    calls = []

    def features(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.tanh(x)

    result = torch.randn(4, 6, requires_grad=True)
    target = torch.randn(4, 6)
    values = backward_loss(1.0 * result, target, Distance("pixel-l2", 1.0, features))
    expected = torch.autograd.grad(
        (torch.tanh(result) - torch.tanh(target)).square().mean(), [result]
    )[0]
    torch.testing.assert_close(result.grad, expected)
    assert set(calls) == {1} and values.shape == (4,)
