"""The teacher's trajectory between its calls, and students' states that are matched to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comfy.k_diffusion.sampling as k_diffusion
import pytest
import torch
from torch import Tensor

from ld3.metrics import LATENT_DISTANCES, Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, LOGIT_SIGMA, Coordinate
from ld3.solver_parameters import SolverParameters
from ld3.table import SolverTable, combine, rollout
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.teacher_store import TeacherStore
from ld3.tracing import TracedSampler
from ld3.training.gauss_newton import normal_equations
from ld3.training.trajectory_matching import TrajectoryResiduals
from ld3.training.validation import Objective
from ld3.trajectories import TeacherTrajectories, subsample

from .exact_problems import gmm16, karras, parameters_of

EULER = TracedSampler(k_diffusion.sample_euler)
DPMPP_2M = TracedSampler(k_diffusion.sample_dpmpp_2m)
HEUN = TracedSampler(k_diffusion.sample_heun)
DEVIATION, START, WEIGHT = 0.7, 80.0, 2.0


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(0, DEVIATION^2)."""
    return DEVIATION**2 / (DEVIATION**2 + sigma.reshape(-1, 1) ** 2) * x


def exact_state(x: Tensor, sigma: float) -> Tensor:
    """Where the ODE takes states at START: they scale as their spread."""
    return x * ((DEVIATION**2 + sigma**2) / (DEVIATION**2 + START**2)) ** 0.5


def noises(count: int = 4) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0))


def exact_trajectories(steps: int) -> tuple[TeacherTrajectories, Tensor, Tensor]:
    """A teacher whose states at its levels are exact: table of euler, outputs read off them."""
    sigmas = karras(steps, 0.03, START).double()
    x = START * noises().double()
    states = [exact_state(x, float(s)) for s in sigmas]
    outputs = [  # the constant output with which euler goes from one state exactly to the next
        (after - state * b / a) / (1 - b / a)
        for state, after, a, b in zip(states, states[1:], sigmas, sigmas[1:], strict=False)
    ]
    history = torch.stack([x, *outputs], 1).float()
    return TeacherTrajectories(EULER.table(sigmas.float()), history, LOG_SIGMA), x, sigmas


def test_at_the_teachers_levels_the_states_are_its_own() -> None:
    trajectories, x, sigmas = exact_trajectories(12)
    for sigma in sigmas[:-1].tolist():
        found = trajectories.states(sigma).double()
        torch.testing.assert_close(found, exact_state(x, sigma), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [EULER, DPMPP_2M, HEUN], ids=["euler", "dpmpp_2m", "heun"])
def test_a_rollouts_inputs_lie_on_its_trajectory(sampler: TracedSampler) -> None:
    sigmas = karras(10, 0.03, START)
    table = sampler.table(sigmas)
    history = rollout(table, gmm16(), [START * noises()])[1]
    few = torch.stack([subsample(state) for state in history], 1)
    trajectories = TeacherTrajectories(table, few, LOG_SIGMA)
    last_calls = {float(s): m for m, s in enumerate(table.state_sigmas)}
    for sigma, m in last_calls.items():
        state = combine(table.weights[m, : m + 1], history)
        torch.testing.assert_close(trajectories.states(sigma), state, rtol=1e-5, atol=1e-4)


def test_between_levels_a_good_teachers_states_are_the_odes() -> None:
    """The cubic is of fourth order; a finer teacher is the rest of the error."""
    table = DPMPP_2M.table(karras(80, 0.03, START))
    x = START * noises()
    history = torch.stack(rollout(table, gaussian, [x])[1], 1)
    trajectories = TeacherTrajectories(table, history, LOG_SIGMA)
    levels = karras(80, 0.03, START)
    for sigma in (levels[:-2] * levels[1:-1]).sqrt().tolist():
        exact = exact_state(x, sigma)
        off = (trajectories.states(sigma) - exact).pow(2).mean().sqrt()
        assert float(off) < 2e-3 * float(exact.pow(2).mean().sqrt())


@pytest.mark.parametrize("sampler", [EULER, DPMPP_2M, HEUN], ids=["euler", "dpmpp_2m", "heun"])
def test_at_the_teachers_levels_the_outputs_are_its_own(sampler: TracedSampler) -> None:
    table = sampler.table(karras(10, 0.03, START))
    history = rollout(table, gmm16(), [START * noises()])[1]
    trajectories = TeacherTrajectories(table, torch.stack(history, 1), LOG_SIGMA)
    last_calls = {float(s): m for m, s in enumerate(table.state_sigmas)}
    for sigma, m in last_calls.items():
        torch.testing.assert_close(trajectories.outputs(sigma), history[m + 1], atol=1e-5, rtol=0)
    lowest, highest = min(last_calls), max(last_calls)
    for outside, nearest in ((0.1 * lowest, lowest), (10 * highest, highest)):
        assert torch.equal(trajectories.outputs(outside), trajectories.outputs(nearest))


def outputs_of(function: Callable[[Tensor], Tensor], u: Tensor) -> TeacherTrajectories:
    """Trajectories whose outputs are a function of the coordinate, at these coordinates."""
    table = EULER.table(torch.cat([u.exp(), torch.zeros(1)]))
    values = torch.stack([torch.zeros(()), *function(table.state_sigmas.log())])
    return TeacherTrajectories(table, values[None, :, None].float(), LOG_SIGMA)


def test_outputs_that_are_parabolas_in_the_coordinate_are_exact_between_inner_levels() -> None:
    """At any distances of the levels; in the first and last interval straight lines are."""
    u = torch.tensor([4.0, 3.7, 2.0, 1.5, -0.5, -2.0, -2.2], dtype=torch.float64)
    parabola = outputs_of(lambda u: 3 - 2 * u + 0.5 * u**2, u)
    line = outputs_of(lambda u: 3 - 2 * u, u)
    for level in torch.linspace(3.7, -2.0, 30, dtype=torch.float64):
        found = float(parabola.outputs(float(level.exp())))
        assert found == pytest.approx(float(3 - 2 * level + 0.5 * level**2), abs=1e-4)
    for level in torch.linspace(4.0, -2.2, 30, dtype=torch.float64):
        found = float(line.outputs(float(level.exp())))
        assert found == pytest.approx(float(3 - 2 * level), abs=1e-4)


def test_two_levels_have_a_straight_line_of_outputs_between_them() -> None:
    u = torch.tensor([2.0, 0.0], dtype=torch.float64)
    found = outputs_of(lambda u: 1 + u, u).outputs(float(torch.tensor(0.5).exp()))
    assert float(found) == pytest.approx(1.5, abs=1e-5)


def test_of_levels_that_are_the_same_in_the_coordinate_the_highest_counts() -> None:
    """A shifted flow schedule of many steps has several where its coordinate is clipped."""
    sigmas = torch.tensor([1.0, 0.99995, 0.99992, 0.99, 0.8, 0.5, 0.1, 0.0])
    table = EULER.table(sigmas)
    history = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    trajectories = TeacherTrajectories(table, history, LOGIT_SIGMA)
    assert torch.equal(trajectories.outputs(1.0), history[:, 1])
    assert torch.equal(trajectories.states(1.0), history[:, 0])
    for sigma in (0.99997, 0.9999, 0.995, 0.6, 0.05):
        assert torch.isfinite(trajectories.outputs(sigma)).all()
        assert torch.isfinite(trajectories.states(sigma)).all()


def test_between_levels_outputs_converge_cubically() -> None:
    errors = []
    for steps in (20, 40):
        u = torch.linspace(4, -3, steps, dtype=torch.float64)
        u = u + 0.1 * (u.diff(append=u[-1:] - 7 / steps)) * (torch.arange(steps) % 2)
        trajectories = outputs_of(torch.sin, u)
        levels = torch.lerp(u[1:-2], u[2:-1], torch.tensor(0.4, dtype=torch.float64))
        found = [float(trajectories.outputs(float(level.exp()))) for level in levels]
        errors.append(float((torch.tensor(found) - levels.sin()).abs().max()))
    assert errors[0] / errors[1] > 7


def test_below_the_last_level_states_are_on_the_straight_line_to_the_last_output() -> None:
    sigmas = karras(6, 0.5, START)
    table = EULER.table(sigmas)
    result, history = rollout(table, gmm16(), [START * noises()])
    trajectories = TeacherTrajectories(table, torch.stack(history, 1), LOG_SIGMA)
    torch.testing.assert_close(trajectories.states(1e-9), result, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coordinate", [LOG_SIGMA, LOGIT_SIGMA], ids=["log", "logit"])
def test_a_sampler_that_begins_lower_has_the_same_latents_and_noises(
    coordinate: Coordinate,
) -> None:
    latent, noise = noises(), torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    sigmas = karras(6, 0.02, 0.9)
    x = coordinate.signal(0.9) * latent + 0.9 * noise
    history = torch.stack([x, *[torch.zeros_like(x)] * 6], 1)
    trajectories = TeacherTrajectories(EULER.table(sigmas), history, coordinate, latent)
    for sigma in (0.9, 0.7, 0.1):
        expected = coordinate.signal(sigma) * latent + sigma * noise
        torch.testing.assert_close(trajectories.start(sigma), expected, rtol=1e-5, atol=1e-5)


class Case(NamedTuple):
    """A student with a teacher's samples to match."""

    objective: Objective
    parameters: SolverParameters
    theta: Tensor
    samples: TeacherSamples


def some_case(name: str) -> Case:
    model = gmm16()
    teacher, noise = DPMPP_2M.discretization(karras(20, 0.03, START)), noises(6)
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise))
    objective = Objective(model, Distance(name), DEVIATION)
    theta = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    return Case(objective, parameters_of(model, EULER, 4), theta, samples)


def residuals(samples: TeacherSamples, table: SolverTable, history: list[Tensor]) -> list[Tensor]:
    """Of all states of a student after the first."""
    return TrajectoryResiduals(samples, LOG_SIGMA, DEVIATION, table, history).values


def residuals_at(case: Case, theta: Tensor) -> list[Tensor]:
    """The result's residual, then those of the states."""
    student = case.parameters.discretization(theta)
    noise, latent = case.samples.noise, case.samples.latent
    result, history = case.objective.model.sample(student, noise, latent)
    return [result - case.samples.target, *residuals(case.samples, student.table, history)]


def weighted_squares(case: Case, theta: Tensor, weights: list[Tensor]) -> float:
    """Half the sum that Gauss-Newton's weighted least squares reduce, written down again."""
    final, *states = [
        (w * r**2).double().mean() for w, r in zip(weights, residuals_at(case, theta), strict=True)
    ]
    return 0.5 * float(final + WEIGHT * sum(states) / len(states))


@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_the_gradient_with_matched_trajectories_is_that_of_all_residuals(name: str) -> None:
    case = some_case(name)
    a, g = normal_equations(case.objective, case.parameters, case.theta, case.samples, 1e-3, WEIGHT)
    weights = [case.objective.distance.weights(r) for r in residuals_at(case, case.theta)]
    for k in range(3):
        h = torch.zeros(3, dtype=torch.float64)
        h[k] = 1e-2
        up, down = (weighted_squares(case, case.theta + s * h, weights) for s in (1, -1))
        assert float(g[k]) == pytest.approx(
            (up - down) / 2e-2, rel=0.1, abs=0.02 * float(g.abs().max())
        )
    assert torch.linalg.eigvalsh(a).min() >= 0


def test_changes_of_residuals_are_those_of_whole_perturbed_rollouts() -> None:
    """Also where the first entries of the history are shared, and their states not repeated."""
    case = some_case("l2")
    model, samples = case.objective.model, case.samples
    student = case.parameters.discretization(case.theta)
    history = model.sample(student, samples.noise, samples.latent)[1]
    matched = TrajectoryResiduals(samples, LOG_SIGMA, DEVIATION, student.table, history)
    for k in range(3):
        _, perturbed = case.parameters.perturbed(case.theta, k, 0.05)
        shared = student.table.first_change(perturbed.table) + 1
        assert shared == k + 2
        again = rollout(perturbed.table, model, history[:shared])[1]
        matched.perturb(k, perturbed.table, again, shared)
        whole = residuals(samples, perturbed.table, again)
        for change, after, before in zip(matched.changes[k], whole, matched.values, strict=True):
            torch.testing.assert_close(change.float(), after - before, rtol=5e-3, atol=1e-6)


def test_a_student_on_the_teachers_trajectory_has_no_residual() -> None:
    samples = some_case("l2").samples
    assert samples.table is not None
    history = rollout(samples.table, gmm16(), [START * samples.noise])[1]
    for residual in residuals(samples, samples.table, history):
        assert float(residual.abs().max()) < 1e-4


def test_samples_without_the_teachers_rollouts_have_no_trajectories() -> None:
    samples = some_case("l2").samples
    with pytest.raises(ValueError, match="use `sample_teacher`"):
        TeacherSamples(samples.noise, samples.latent, samples.target).trajectories(LOG_SIGMA)


def test_residuals_are_in_units_of_the_sample() -> None:
    """For Gaussian data a difference of states shrinks until the sample by exactly this factor."""
    teacher = DPMPP_2M.discretization(karras(40, 0.03, START))
    model = Model(gaussian, LOG_SIGMA, 0.03, START)
    noise = noises()
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise))
    result, history = rollout(teacher.table, model, [1.1 * START * noise])
    for residual in residuals(samples, teacher.table, history):
        torch.testing.assert_close(residual, result - samples.target, rtol=0.02, atol=1e-3)


def test_a_store_gives_back_what_the_teacher_made_without_a_call(tmp_path: Path) -> None:
    model, noise = gmm16(), noises()
    teacher = EULER.discretization(karras(12, 0.03, START))
    store = TeacherStore(tmp_path, 10**9).samples("one model, one teacher")
    made = sample_teacher(model, teacher, noise, torch.zeros_like(noise), store)
    calls = model.calls
    again = sample_teacher(model, teacher, noise, torch.zeros_like(noise), store)
    assert model.calls == calls == 12 * len(noise)
    assert made.history is not None and again.history is not None
    assert torch.equal(again.target, made.target) and torch.equal(again.history, made.history)


def test_batches_are_sampled_and_stored_one_by_one(tmp_path: Path) -> None:
    """An interrupted sampling continues with the first batch that is not stored."""
    model, noise = gmm16(), noises(10)
    teacher = EULER.discretization(karras(12, 0.03, START))
    store, begun = TeacherStore(tmp_path, 10**9).samples("one model, one teacher"), []

    def interrupt() -> None:
        begun.append(model.calls)
        if len(begun) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_teacher(model, teacher, noise, torch.zeros_like(noise), store, interrupt)
    assert begun == [0, 12 * 4, 12 * 8] and len(list(tmp_path.iterdir())) == 2
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise), store)
    assert model.calls == 12 * 10 and len(samples) == 10
    whole = gmm16()
    whole.batch_size = 10
    same = sample_teacher(whole, teacher, noise, torch.zeros_like(noise))
    torch.testing.assert_close(samples.target, same.target)
    assert samples.table is teacher.table and samples[4:].table is teacher.table
