"""Laws of what is learned of a solver: D-ODE's lambdas, corrections, and the output mix."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling as model_sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

from benchmarks.problems.mixtures import digits, gmm16
from ld3.comfy.samplers import sampler_object, traceable
from ld3.metrics import Distance, rmse
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.rollout import rollout
from ld3.solver import Plan, Sampler
from ld3.student import Student
from ld3.teacher import Pairs, student_samples, teach
from ld3.training.dode import (
    distill,
    previous_calls,
    teacher_sigmas,
    teacher_states,
    with_lambdas,
)
from ld3.training.output_mix import output_mix

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "ipndm", "deis", "uni_pc")


def sampling_of(model: Model) -> Any:
    if model.coordinate.name == "logit":
        return type("Flow", (model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST), {})()
    bases = (model_sampling.ModelSamplingContinuousEDM, model_sampling.EDM)
    sampling = type("Sampling", bases, {})()
    sampling.set_parameters(model.sigma_min, model.sigma_max, 1.0)
    return sampling


def sampler_of(model: Model, name: str) -> Sampler:
    return traceable(sampler_object(name), sampling_of(model))


def plan_of(model: Model, sampler: str, steps: int, scheduler: str = "karras") -> Plan:
    sigmas = comfy.samplers.calculate_sigmas(sampling_of(model), scheduler, steps).float()
    return Plan(sigmas, sampler_of(model, sampler).table(sigmas))


def noises(shape: tuple[int, ...], count: int, seed: int = 0) -> Pairs:
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return Pairs(noise, torch.zeros_like(noise), noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_table_with_lambdas_is_the_sampler_with_extrapolated_outputs(sampler: str) -> None:
    """D_m + lambda_m (D_m - D_p), put in by hand, gives what the changed table gives."""
    model = gmm16()
    plan = plan_of(model, sampler, 4)
    lambdas = torch.linspace(-0.7, 0.9, plan.table.model_calls, dtype=torch.float64)
    before = previous_calls(plan.table)
    raw: list[Tensor] = []

    def extrapolating(x: Tensor, sigma: Tensor) -> Tensor:
        raw.append(model.denoise(x, sigma))
        m, p = len(raw) - 1, before[len(raw) - 1]
        return raw[m] if p is None else raw[m] + lambdas[m] * (raw[m] - raw[p])

    x = 80 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double()
    wanted = rollout(plan.table, extrapolating, [x])[0]
    found = rollout(with_lambdas(plan.table, lambdas), model.denoise, [x])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_rows_weights_keep_their_sum(sampler: str) -> None:
    model = gmm16()
    plan = plan_of(model, sampler, 4)
    calls = plan.table.model_calls
    lambdas = torch.linspace(-1, 1, calls, dtype=torch.float64)
    sums = plan.table.weights[:, 1:].sum(1)
    torch.testing.assert_close(with_lambdas(plan.table, lambdas).weights[:, 1:].sum(1), sums)
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    student = Student(sampler_of(model, sampler), levels, model, 4, calls, order=2)
    theta = student.start(levels.from_sigmas(plan.sigmas))
    plain = student.plan(theta).table
    theta[student.free_levels :] = torch.linspace(-1, 1, len(student.corrected))
    corrected = student.plan(theta).table
    assert not torch.equal(corrected.weights, plain.weights)
    torch.testing.assert_close(corrected.weights[:, 1:].sum(1), plain.weights[:, 1:].sum(1))


def test_no_extras_are_the_samplers_own_table_bit_for_bit() -> None:
    model = gmm16()
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    traced, plan = sampler_of(model, "dpmpp_2m"), plan_of(model, "dpmpp_2m", 5, "beta")
    student = Student(traced, levels, model, 5, 5, decoupled=True, order=2)
    found = student.plan(student.start(levels.from_sigmas(plan.sigmas)))
    own = traced.table(found.sigmas)
    assert torch.equal(found.table.weights, own.weights)
    assert torch.equal(found.table.eval_sigmas, own.eval_sigmas)


def test_the_previous_call_is_the_latest_at_another_noise_level() -> None:
    heun = plan_of(gmm16(), "heun", 4).table  # sigma_0, sigma_1, sigma_1, sigma_2, sigma_2, ..
    assert previous_calls(heun) == [None, 0, 0, 2, 2, 4, 4]
    assert previous_calls(plan_of(gmm16(), "euler", 3).table) == [None, 0, 1]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m"])
def test_the_teacher_passes_through_every_state_of_the_student(sampler: str, flow: bool) -> None:
    model = gmm16(flow)
    plan = plan_of(model, sampler, 5, "simple" if flow else "karras")
    sigmas = teacher_sigmas(model, plan, 5)
    assert (sigmas.diff() < 0).all() and float(sigmas[-1]) == 0
    assert 0.9 <= (len(sigmas) - 1) / 50 <= 1.1
    for level in plan.table.state_sigmas.float():
        assert (sigmas == level).any()
    traced = sampler_of(model, "dpmpp_2m")
    batch = noises((16,), 4)
    teacher = Plan(sigmas, traced.table(sigmas))
    states = teacher_states(model, teacher, plan, batch)
    assert len(states) == plan.table.model_calls
    torch.testing.assert_close(states[-1], student_samples(model, teacher, batch)[0])


def test_a_lambda_is_the_best_there_is_for_the_next_state() -> None:
    model = digits()
    traced, levels = sampler_of(model, "dpmpp_2m"), torch.tensor([80.0, 1.5, 0.0])
    plan = Plan(levels, sampler_of(model, "euler").table(levels))
    training, validation = noises((1, 8, 8), 16), noises((1, 8, 8), 16, seed=1)
    found = distill(model, plan, traced, training, validation, 8)
    sigmas = teacher_sigmas(model, plan, 2)
    target = teacher_states(model, Plan(sigmas, traced.table(sigmas)), plan, training)[-1]

    def error(value: float) -> float:
        lambdas = torch.tensor([0.0, value], dtype=torch.float64)
        changed = Plan(plan.sigmas, with_lambdas(plan.table, lambdas))
        return float(
            (student_samples(model, changed, training)[0] - target).double().square().sum()
        )

    best = float(found.lambdas[1])
    assert found.lambdas[0] == 0 and 0 < abs(best) < 2
    # the ridge holds lambda back by a thousandth
    assert error(best) < 1.0001 * min(error(best + step) for step in (-0.02, -0.005, 0.005, 0.02))


@pytest.mark.parametrize("sampler", ["euler", "ipndm", "deis", "dpmpp_2m", "heun", "dpm_2"])
def test_distilling_brings_new_noises_nearer_at_twelve_calls_a_call(sampler: str) -> None:
    model = digits()
    plan, traced = plan_of(model, sampler, 6), sampler_of(model, "dpmpp_2m")
    found = distill(model, plan, traced, noises((1, 8, 8), 16), noises((1, 8, 8), 16, 1), 16)
    assert model.calls <= 12 * plan.table.model_calls * 32
    assert found.error < found.plain_error
    fine = plan_of(model, "heun", 40)
    test = noises((1, 8, 8), 64, 2)
    target = teach(model, fine, test.noise, test.latent).target
    changed = Plan(plan.sigmas, with_lambdas(plan.table, found.lambdas))
    errors = [
        float(rmse(student_samples(model, p, test)[0] - target).mean()) for p in (plan, changed)
    ]
    assert errors[1] < errors[0]


def test_what_would_not_help_is_left_alone() -> None:
    """A denoiser that always answers the same has no change to go along: every step is exact."""
    answer = torch.linspace(-1, 1, 16)
    model = Model(lambda x, sigma: answer.expand_as(x).to(x), LOG_SIGMA, 0.002, 80.0)
    plan, traced = plan_of(model, "dpmpp_2m", 3), sampler_of(model, "dpmpp_2m")
    found = distill(model, plan, traced, noises((16,), 4), noises((16,), 4, 1), 4)
    assert not found.lambdas.any()
    assert found.error == found.plain_error


@pytest.mark.parametrize("flow", [False, True])
def test_the_teacher_ends_where_the_student_does(flow: bool) -> None:
    model = gmm16(flow)
    first = [1.0, 0.9999999, 0.9, 0.8, 0.79] if flow else [80.0, 10.0, 3.0, 2.0]
    sigmas = torch.tensor(first)
    plan = Plan(sigmas, sampler_of(model, "euler").table(sigmas))
    levels = teacher_sigmas(model, plan, len(sigmas) - 1)
    assert (levels.diff() < 0).all() and levels[-1] == sigmas[-1]


def test_of_two_calls_at_a_level_the_teachers_corrected_state_counts() -> None:
    """exp_heun's second call at a level sees a state of higher order; so does the student then."""
    model = digits()
    plan = plan_of(model, "euler", 4)
    sigmas = teacher_sigmas(model, plan, 4)
    batch = noises((1, 8, 8), 8)
    fine = Plan(sigmas, sampler_of(model, "dpmpp_2m").table(sigmas))
    twice = Plan(sigmas, sampler_of(model, "exp_heun_2_x0").table(sigmas))
    found, wanted = (teacher_states(model, p, plan, batch)[1] for p in (twice, fine))
    assert float(rmse(found - wanted).mean()) < 0.01


def test_the_output_mix_finds_a_mix_that_made_the_targets() -> None:
    model = gmm16()
    plan = plan_of(model, "dpmpp_2m", 4)
    mixed = plan.table.weights.clone()
    mixed[-1, 1:] += torch.tensor([0.1, -0.2, 0.15, -0.05])
    batch = noises((16,), 32)
    target = rollout(
        type(plan.table)(
            plan.table.state_sigmas, plan.table.eval_sigmas, mixed, plan.table.callback_calls
        ),
        model.denoise,
        [80 * batch.noise],
    )[0]
    pairs = Pairs(batch.noise, batch.latent, target)
    found = output_mix(model, plan, pairs, Distance("l2"), 8)
    assert found is not None
    near = student_samples(model, found, pairs)[0]
    before = student_samples(model, plan, pairs)[0]
    assert float(rmse(near - target).mean()) < 0.1 * float(rmse(before - target).mean())
    torch.testing.assert_close(found.table.weights.sum(), plan.table.weights.sum())
