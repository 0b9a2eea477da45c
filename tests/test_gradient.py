"""Reverse mode through every sampler against central differences, and the laws of the descent."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling as model_sampling
import pytest
import torch
from torch import Tensor

from ld3.comfy.samplers import coordinate, sampler_object, traceable
from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.recompute import GradientError, recomputed
from ld3.rollout import rollout
from ld3.student import Student
from ld3.teacher import Pairs
from ld3.training.gradient import (
    ADAM,
    PAPER,
    GradientDescent,
    GradientSettings,
    SoftmaxSteps,
    backward_loss,
    differentiable_rollout,
    differentiable_table,
    projected,
)

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


def student(
    kind: str, sampler: str, steps: int = 4, decoupled: bool = True, order: int = 0
) -> Student:
    model, sampling = smooth_model(kind)
    traced = traceable(sampler_object(sampler), sampling)
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    calls = traced.table(torch.linspace(1, 0, steps + 1) * model.sigma_max).model_calls
    return Student(traced, levels, model, steps, calls, decoupled, order)


def parameters(learned: Student) -> Tensor:
    """Some theta with all its entries in use."""
    upper, lower = learned.levels.bounds()
    u = torch.linspace(upper, lower, learned.steps + 1, dtype=torch.float64)[1:-1]
    offsets = 0.1 * torch.sin(torch.arange(learned.size - len(u), dtype=torch.float64) + 1)
    return torch.cat([u, offsets])


def loss_of(learned: Student, theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
    weights, levels = differentiable_table(learned, theta)
    result = differentiable_rollout(weights, levels, recomputed(learned.model), x)
    return (result - target).square().mean()


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_gradients_to_everything_learned_and_to_noise_match_central_differences(
    sampler: str, kind: str
) -> None:
    learned = student(kind, sampler, order=1)
    generator = torch.Generator().manual_seed(2)
    noise, target = torch.randn(2, 3, 6, generator=generator).double()
    x = learned.levels.start * noise
    theta, x = parameters(learned).requires_grad_(), x.requires_grad_()
    to_theta, to_x = torch.autograd.grad(loss_of(learned, theta, x, target), [theta, x])
    with torch.no_grad():
        measured = torch.zeros_like(theta)
        for k in range(len(theta)):
            h = torch.zeros_like(theta)
            h[k] = 1e-4
            # fourth order: rounding and truncation both stay below the tolerance
            near, far = (
                loss_of(learned, theta + m * h, x, target)
                - loss_of(learned, theta - m * h, x, target)
                for m in (1, 2)
            )
            measured[k] = (8 * near - far) / 12e-4
        direction = to_x / to_x.norm()
        h = 1e-4 * learned.levels.start
        near, far = (
            loss_of(learned, theta, x + m * h * direction, target)
            - loss_of(learned, theta, x - m * h * direction, target)
            for m in (1, 2)
        )
        along = (8 * near - far) / (12 * h)
    assert float((to_theta - measured).norm() / measured.norm()) <= 1e-6
    assert float(along) == pytest.approx(float(to_x.norm()), rel=1e-6)


def test_a_recomputed_call_counts_forward_repetition_and_backward() -> None:
    learned = student("eps", "euler")
    x = torch.randn(3, 6).double()
    loss_of(learned, parameters(learned).requires_grad_(), x, x).backward()
    assert learned.model.calls == 3 * learned.calls * 4


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
    asked = []

    def remembers(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(1)
        return x * len(asked)

    x = torch.ones(1, 2, requires_grad=True)
    output = recomputed(Model(remembers, LOG_SIGMA, 0.1, 10.0))(x, torch.ones(1))
    with pytest.raises(GradientError, match="differently the second time"):
        output.sum().backward()


def test_softmax_steps_begin_where_they_shall_and_stay_ordered() -> None:
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
    learned = student("eps", "dpmpp_2m", decoupled=decoupled)
    model = learned.model
    smooth = model.denoise
    model.denoise = lambda x, sigma: smooth(x.double(), sigma.double()).to(x)
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))
    levels = torch.linspace(3, -3.5, 30, dtype=torch.float64).exp()
    exact = learned.sampler.table(torch.cat([levels, torch.zeros(1)]))
    target = rollout(exact, model.denoise, [learned.levels.start * noise])[0]
    pairs = Pairs(noise, torch.zeros_like(noise), target)
    theta = learned.start(torch.tensor([2.5, 2.0, 1.5], dtype=torch.float64))
    return GradientDescent(learned, theta, pairs, settings, 60)


def mean_loss(run: GradientDescent, noise: Tensor) -> Tensor:
    """Loss of each training pair when its student starts from `noise`."""
    table = run.student.plan(run.theta().detach()).table
    model, start = run.student.model, run.student.levels.start
    result = rollout(table, model.denoise, [start * noise])[0]
    return Distance("l2").value(result - run.pairs.target)


@pytest.mark.parametrize("settings", [PAPER, ADAM], ids=["paper", "adam"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_descent_lowers_the_loss(settings: GradientSettings, decoupled: bool) -> None:
    run = descent(settings, decoupled)
    before = float(mean_loss(run, run.pairs.noise).mean())
    for _ in range(60):
        run.update(torch.arange(8), Distance("l2"))
    after = float(mean_loss(run, run.pairs.noise).mean())
    assert after < (0.7 if settings.adam else 0.95) * before


def test_soft_starts_stay_in_their_ball_and_only_help() -> None:
    run = descent(GradientSettings(radius=0.3, adam=True, noise_rate=0.5, steps_rate=1e-9))
    before = mean_loss(run, run.noise)
    for _ in range(5):
        run.update(torch.arange(8), Distance("l2"))
    moved = (run.noise - run.pairs.noise).norm(dim=1)
    after = mean_loss(run, run.noise)
    assert 0 < float(moved.max()) <= 0.3 * (1 + 1e-5)
    assert (after[moved > 0] < before[moved > 0]).all()
    assert torch.equal(after[moved == 0], before[moved == 0])


def test_radius_zero_is_hard_and_the_default_is_the_papers() -> None:
    assert descent(PAPER).radius == pytest.approx(0.001 * 6 / 4**2)
    run = descent(GradientSettings(radius=0.0))
    run.update(torch.arange(8), Distance("l2"))
    assert torch.equal(run.noise, run.pairs.noise)
    hard = 8 * 4 * 4
    assert run.student.model.calls == hard


def test_decoupled_times_stay_within_half_the_least_gap_of_the_steps() -> None:
    run = descent(GradientSettings(radius=0.0), decoupled=True)
    with torch.no_grad():
        run.extras += 50
        run.z += torch.tensor([0.4, -0.2, 0.1])
    theta = run.theta().detach()
    ends = torch.tensor([math.log(20), *theta[:3].tolist(), math.log(0.03)])
    assert theta[3:].tolist() == pytest.approx([0.5 * float(-ends.diff().max())] * 3, rel=1e-5)


def test_a_loss_of_images_goes_back_image_by_image_and_is_the_same() -> None:
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
