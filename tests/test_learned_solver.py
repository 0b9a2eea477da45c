"""Laws of what is learned of a solver: D-ODE's lambdas, corrections, and the output mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ld3.metrics import Distance, rmse
from ld3.model import Model
from ld3.parameters import LOG_SIGMA
from ld3.table import Discretization, Extra, rollout
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.training.dode import (
    distill,
    planned_calls,
    previous_calls,
    teacher_sigmas,
    teacher_states,
    with_lambdas,
)
from ld3.training.output_mix import output_mix
from ld3.training.validation import Objective, errors

from .exact_problems import digits, gmm16, levels_of, parameters_of, sampler_of, scheduled

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "ipndm", "deis", "uni_pc")


def noises(shape: tuple[int, ...], count: int, seed: int = 0) -> TeacherSamples:
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return TeacherSamples(noise, torch.zeros_like(noise), noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_table_with_lambdas_is_the_sampler_with_extrapolated_outputs(sampler: str) -> None:
    """D_m + lambda_m (D_m - D_p) in the sampler's loop gives what the changed table gives."""
    model = gmm16()
    table = scheduled(model, sampler, 4).table
    lambdas = torch.linspace(-0.7, 0.9, table.model_calls, dtype=torch.float64)
    before = previous_calls(table)
    raw: list[Tensor] = []

    def extrapolating(x: Tensor, sigma: Tensor) -> Tensor:
        raw.append(model.denoise(x, sigma))
        m, p = len(raw) - 1, before[len(raw) - 1]
        return raw[m] if p is None else raw[m] + lambdas[m] * (raw[m] - raw[p])

    x = 80 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double()
    wanted = rollout(table, extrapolating, [x])[0]
    found = rollout(with_lambdas(table, lambdas), model.denoise, [x])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_rows_weights_keep_their_sum(sampler: str) -> None:
    model = gmm16()
    plain = scheduled(model, sampler, 4)
    lambdas = torch.linspace(-1, 1, plain.table.model_calls, dtype=torch.float64)
    sums = plain.table.weights[:, 1:].sum(1)
    torch.testing.assert_close(with_lambdas(plain.table, lambdas).weights[:, 1:].sum(1), sums)
    parameters = parameters_of(model, sampler_of(model, sampler), 4, order=2)
    theta = parameters.extended(parameters.levels.from_sigmas(plain.sigmas))
    uncorrected = parameters.discretization(theta).table
    theta[parameters.free_levels :] = torch.linspace(-1, 1, len(parameters.corrections))
    corrected = parameters.discretization(theta).table
    assert not torch.equal(corrected.weights, uncorrected.weights)
    torch.testing.assert_close(corrected.weights[:, 1:].sum(1), uncorrected.weights[:, 1:].sum(1))


def test_no_extras_are_the_samplers_own_table_bit_for_bit() -> None:
    model = gmm16()
    traced, plain = sampler_of(model, "dpmpp_2m"), scheduled(model, "dpmpp_2m", 5, "beta")
    parameters = parameters_of(model, traced, 5, decoupled=True, order=2)
    u = levels_of(model).from_sigmas(plain.sigmas)
    found = parameters.discretization(parameters.extended(u))
    own = traced.table(found.sigmas)
    assert torch.equal(found.table.weights, own.weights)
    assert torch.equal(found.table.eval_sigmas, own.eval_sigmas)


def test_the_previous_call_is_the_latest_at_another_noise_level() -> None:
    heun = scheduled(gmm16(), "heun", 4).table  # sigma_0, sigma_1, sigma_1, sigma_2, sigma_2, ..
    assert previous_calls(heun) == [None, 0, 0, 2, 2, 4, 4]
    assert previous_calls(scheduled(gmm16(), "euler", 3).table) == [None, 0, 1]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m"])
def test_the_teacher_passes_through_every_state_of_the_student(sampler: str, flow: bool) -> None:
    model = gmm16(flow)
    student = scheduled(model, sampler, 5, "simple" if flow else "karras")
    sigmas = teacher_sigmas(model, student)
    assert (sigmas.diff() < 0).all() and float(sigmas[-1]) == 0
    assert 0.9 <= (len(sigmas) - 1) / 50 <= 1.1
    for level in student.table.state_sigmas.float():
        assert (sigmas == level).any()
    samples = noises((16,), 4)
    teacher = sampler_of(model, "dpmpp_2m").discretization(sigmas)
    states = teacher_states(model, teacher, student, samples)
    assert len(states) == student.table.model_calls
    result, _ = model.sample(teacher, samples.noise, samples.latent)
    torch.testing.assert_close(states[-1], result)


def test_a_lambda_is_the_best_there_is_for_the_next_state() -> None:
    model = digits()
    model.batch_size = 8
    traced, levels = sampler_of(model, "dpmpp_2m"), torch.tensor([80.0, 1.5, 0.0])
    student = sampler_of(model, "euler").discretization(levels)
    training, validation = noises((1, 8, 8), 16), noises((1, 8, 8), 16, seed=1)
    found = distill(model, student, traced, training, validation)
    teacher = traced.discretization(teacher_sigmas(model, student))
    target = teacher_states(model, teacher, student, training)[-1]

    def error(value: float) -> float:
        lambdas = torch.tensor([0.0, value], dtype=torch.float64)
        changed = Discretization(student.sigmas, with_lambdas(student.table, lambdas))
        result, _ = model.sample(changed, training.noise, training.latent)
        return float((result - target).double().square().sum())

    best = float(found.lambdas[1])
    assert found.lambdas[0] == 0 and 0 < abs(best) < 2
    # the ridge makes lambda smaller by a thousandth
    assert error(best) < 1.0001 * min(error(best + step) for step in (-0.02, -0.005, 0.005, 0.02))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "ipndm", "deis", "dpmpp_2m", "heun", "dpm_2"])
def test_distilling_improves_unseen_samples_at_twelve_calls_per_call(sampler: str) -> None:
    model = digits()
    model.batch_size = 16
    student, traced = scheduled(model, sampler, 6), sampler_of(model, "dpmpp_2m")
    found = distill(model, student, traced, noises((1, 8, 8), 16), noises((1, 8, 8), 16, 1))
    calls = student.table.model_calls
    assert model.calls <= 12 * calls * 32
    assert model.calls in (
        planned_calls(model, student, traced, 16, 16) - unused for unused in (0, 16 * calls)
    )
    assert found.error < found.plain_error
    changed = with_lambdas(student.table, found.lambdas)
    assert torch.equal(found.student.table.weights, changed.weights)
    assert found.student.extras == (Extra.D_ODE,)
    test = noises((1, 8, 8), 64, 2)
    test = sample_teacher(model, scheduled(model, "heun", 40), test.noise, test.latent)
    plain, distilled = (float(errors(model, s, test).mean()) for s in (student, found.student))
    assert distilled < plain


def test_lambdas_that_do_not_help_stay_zero() -> None:
    """A denoiser with a constant output has no change to follow: every step is exact."""
    answer = torch.linspace(-1, 1, 16)
    model = Model(lambda x, sigma: answer.expand_as(x).to(x), LOG_SIGMA, 0.002, 80.0)
    student, traced = scheduled(model, "dpmpp_2m", 3), sampler_of(model, "dpmpp_2m")
    found = distill(model, student, traced, noises((16,), 4), noises((16,), 4, 1))
    assert not found.lambdas.any()
    assert found.error == found.plain_error
    assert found.student is student


@pytest.mark.parametrize("flow", [False, True])
def test_the_teacher_ends_where_the_student_does(flow: bool) -> None:
    model = gmm16(flow)
    first = [1.0, 0.9999999, 0.9, 0.8, 0.79] if flow else [80.0, 10.0, 3.0, 2.0]
    sigmas = torch.tensor(first)
    levels = teacher_sigmas(model, sampler_of(model, "euler").discretization(sigmas))
    assert (levels.diff() < 0).all() and levels[-1] == sigmas[-1]


def test_of_two_calls_at_a_level_the_teachers_corrected_state_is_used() -> None:
    """exp_heun's second call at a level sees a state of higher order; so does the student then."""
    model = digits()
    student = scheduled(model, "euler", 4)
    sigmas = teacher_sigmas(model, student)
    samples = noises((1, 8, 8), 8)
    fine = sampler_of(model, "dpmpp_2m").discretization(sigmas)
    twice = sampler_of(model, "exp_heun_2_x0").discretization(sigmas)
    found, wanted = (teacher_states(model, t, student, samples)[1] for t in (twice, fine))
    assert float(rmse(found - wanted).mean()) < 0.01


def test_the_output_mix_finds_a_mix_that_made_the_targets() -> None:
    model = gmm16()
    model.batch_size = 8
    student = scheduled(model, "dpmpp_2m", 4)
    weights = student.table.weights.clone()
    weights[-1, 1:] += torch.tensor([0.1, -0.2, 0.15, -0.05])
    mixed = replace(student.table, weights=weights)
    noise = noises((16,), 32).noise
    target = rollout(mixed, model.denoise, [80 * noise])[0]
    samples = TeacherSamples(noise, torch.zeros_like(noise), target)
    found = output_mix(Objective(model, Distance("l2")), student, samples)
    assert found is not None and found.extras == (Extra.OUTPUT_MIX,)
    after, before = (float(errors(model, s, samples).mean()) for s in (found, student))
    assert after < 0.1 * before
    torch.testing.assert_close(found.table.weights.sum(), student.table.weights.sum())


def test_the_output_mix_of_an_image_distance_does_not_depend_on_the_images_unit() -> None:
    """Latents are compared, whose errors have another one."""
    model = gmm16()
    model.batch_size = 8
    student, noise = scheduled(model, "dpmpp_2m", 4), noises((16,), 32).noise
    target = model.sample(scheduled(model, "dpmpp_2m", 20), noise, torch.zeros_like(noise))[0]
    samples = TeacherSamples(noise, torch.zeros_like(noise), target)
    found = [
        output_mix(Objective(model, Distance("pixel-l2", scale, torch.flatten)), student, samples)
        for scale in (1e-6, 1.0)
    ]
    assert found[0] is not None and found[1] is not None
    assert torch.equal(found[0].table.weights, found[1].table.weights)
    latent = output_mix(Objective(model, Distance("l2")), student, samples)
    assert latent is not None and not torch.equal(latent.table.weights, found[0].table.weights)
