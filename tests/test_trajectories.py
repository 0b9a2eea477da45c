"""The teacher's way between its calls, and states that are held to it."""

from __future__ import annotations

from pathlib import Path

import comfy.k_diffusion.sampling as k_diffusion
import pytest
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.problems.mixtures import gmm16
from benchmarks.problems.noise_levels import karras
from ld3.metrics import LATENT_DISTANCES, Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.rollout import combine, rollout
from ld3.solver import Plan, Sampler
from ld3.student import Student
from ld3.teacher import Pairs, TargetStore, student_samples, teach
from ld3.training.gauss_newton import normal_equations
from ld3.training.guide import Guide
from ld3.trajectories import Trajectories, few_elements

EULER, DPMPP_2M = Sampler(k_diffusion.sample_euler), Sampler(k_diffusion.sample_dpmpp_2m)
HEUN = Sampler(k_diffusion.sample_heun)
DEVIATION, START, WEIGHT = 0.7, 80.0, 2.0


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data N(0, DEVIATION^2)."""
    return DEVIATION**2 / (DEVIATION**2 + sigma.reshape(-1, 1) ** 2) * x


def exact_state(x: Tensor, sigma: float) -> Tensor:
    """Where the ODE takes states at START: they scale as their spread."""
    return x * ((DEVIATION**2 + sigma**2) / (DEVIATION**2 + START**2)) ** 0.5


def noises(count: int = 4) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0))


def exact_trajectories(steps: int) -> tuple[Trajectories, Tensor, Tensor]:
    """A teacher whose states at its levels are exact: table of euler, outputs read off them."""
    sigmas = karras(steps, 0.03, START).double()
    x = START * noises().double()
    states = [exact_state(x, float(s)) for s in sigmas]
    outputs = [  # the constant answer with which euler goes from one state exactly to the next
        (after - state * b / a) / (1 - b / a)
        for state, after, a, b in zip(states, states[1:], sigmas, sigmas[1:], strict=False)
    ]
    history = torch.stack([x, *outputs], 1).float()
    return Trajectories(EULER.table(sigmas.float()), history, LOG_SIGMA), x, sigmas


def test_at_the_teachers_levels_the_states_are_its_own() -> None:
    trajectories, x, sigmas = exact_trajectories(12)
    for sigma in sigmas[:-1].tolist():
        found = trajectories.states(sigma).double()
        torch.testing.assert_close(found, exact_state(x, sigma), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [EULER, DPMPP_2M, HEUN], ids=["euler", "dpmpp_2m", "heun"])
def test_a_rollouts_inputs_lie_on_its_trajectory(sampler: Sampler) -> None:
    sigmas = karras(10, 0.03, START)
    table = sampler.table(sigmas)
    history = rollout(table, gmm16(), [START * noises()])[1]
    few = torch.stack([few_elements(state) for state in history], 1)
    trajectories = Trajectories(table, few, LOG_SIGMA)
    last_calls = {float(s): m for m, s in enumerate(table.state_sigmas)}
    for sigma, m in last_calls.items():
        state = combine(table.weights[m, : m + 1], history)
        torch.testing.assert_close(trajectories.states(sigma), state, rtol=1e-5, atol=1e-4)


def test_between_levels_a_good_teachers_states_are_the_odes() -> None:
    """The cubic is of fourth order; a finer teacher is the rest of the error."""
    table = DPMPP_2M.table(karras(80, 0.03, START))
    x = START * noises()
    history = torch.stack(rollout(table, gaussian, [x])[1], 1)
    trajectories = Trajectories(table, history, LOG_SIGMA)
    levels = karras(80, 0.03, START)
    for sigma in (levels[:-2] * levels[1:-1]).sqrt().tolist():
        exact = exact_state(x, sigma)
        off = (trajectories.states(sigma) - exact).pow(2).mean().sqrt()
        assert float(off) < 2e-3 * float(exact.pow(2).mean().sqrt())


def test_below_the_last_level_states_go_straight_to_the_last_output() -> None:
    sigmas = karras(6, 0.5, START)
    table = EULER.table(sigmas)
    result, history = rollout(table, gmm16(), [START * noises()])
    trajectories = Trajectories(table, torch.stack(history, 1), LOG_SIGMA)
    torch.testing.assert_close(trajectories.states(1e-9), result, rtol=1e-5, atol=1e-5)


def guided(name: str) -> tuple[Student, Tensor, Pairs, Distance, Guide]:
    model = gmm16()
    sigmas = karras(20, 0.03, START)
    teacher = Plan(sigmas, DPMPP_2M.table(sigmas))
    noise = noises(6)
    pairs = teach(model, teacher, noise, torch.zeros_like(noise))
    levels = StepParameters(LOG_SIGMA, START, model.sigma_min)
    student = Student(EULER, levels, model, 4, 4)
    theta = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    return student, theta, pairs, Distance(name), Guide(teacher.table, DEVIATION, LOG_SIGMA)


def weighted_squares(
    student: Student, at: Tensor, pairs: Pairs, guide: Guide, weights: list[Tensor]
) -> float:
    """Half the sum that Gauss-Newton's weighted least squares reduce, written down again."""
    plan = student.plan(at)
    result, history = student_samples(student.model, plan, pairs)
    off = guide.deviations(plan.table, history, guide.trajectories(pairs))
    terms = [(w * r**2).double().mean() for w, r in zip(weights[1:], off, strict=True)]
    final = (weights[0] * (result - pairs.target) ** 2).double().mean()
    return 0.5 * float(final + WEIGHT * sum(terms) / len(terms))


@pytest.mark.parametrize("name", LATENT_DISTANCES)
def test_the_guides_gradient_is_that_of_all_residuals(name: str) -> None:
    student, theta, pairs, distance, guide = guided(name)
    a, g = normal_equations(student, theta, pairs, distance, 4, 1e-3, guide, WEIGHT)
    plan = student.plan(theta)
    result, history = student_samples(student.model, plan, pairs)
    off = guide.deviations(plan.table, history, guide.trajectories(pairs))
    weights = [distance.weights(r) for r in (result - pairs.target, *off)]
    for k in range(3):
        h = torch.zeros(3, dtype=torch.float64)
        h[k] = 1e-2
        up, down = (
            weighted_squares(student, theta + s * h, pairs, guide, weights) for s in (1, -1)
        )
        assert float(g[k]) == pytest.approx(
            (up - down) / 2e-2, rel=0.1, abs=0.02 * float(g.abs().max())
        )
    assert torch.linalg.eigvalsh(a).min() >= 0


def test_a_student_on_the_teachers_way_has_no_deviation() -> None:
    _, _, pairs, _, guide = guided("l2")
    model = gmm16()
    plan = Plan(torch.zeros(1), guide.table)
    history = rollout(plan.table, model, [START * pairs.noise])[1]
    for off in guide.deviations(plan.table, history, guide.trajectories(pairs)):
        assert float(off.abs().max()) < 1e-4


def test_pairs_without_rollouts_are_refused() -> None:
    _, _, pairs, _, guide = guided("l2")
    with pytest.raises(ValueError, match="no rollouts of the teacher"):
        guide.trajectories(Pairs(pairs.noise, pairs.latent, pairs.target))


def test_deviations_are_in_units_of_the_sample() -> None:
    """For Gaussian data a difference of states shrinks on its way to the sample exactly so."""
    sigmas = karras(40, 0.03, START)
    table = DPMPP_2M.table(sigmas)
    model = Model(gaussian, LOG_SIGMA, 0.03, START)
    noise = noises()
    pairs = teach(model, Plan(sigmas, table), noise, torch.zeros_like(noise))
    guide = Guide(table, DEVIATION, LOG_SIGMA)
    moved = rollout(table, model, [1.1 * START * noise])
    wanted = moved[0] - pairs.target
    for off in guide.deviations(table, moved[1], guide.trajectories(pairs)):
        torch.testing.assert_close(off, wanted, rtol=0.02, atol=1e-3)


def test_a_store_gives_back_what_the_teacher_made_without_a_call(tmp_path: Path) -> None:
    model, sigmas = gmm16(), karras(12, 0.03, START)
    teacher, noise = Plan(sigmas, EULER.table(sigmas)), noises()
    store = TargetStore(tmp_path, "one model, one teacher")
    made = teach(model, teacher, noise, torch.zeros_like(noise), store)
    calls = model.calls
    again = teach(model, teacher, noise, torch.zeros_like(noise), store)
    assert model.calls == calls == 12 * len(noise)
    assert made.history is not None and again.history is not None
    assert torch.equal(again.target, made.target) and torch.equal(again.history, made.history)
    (file,) = tmp_path.iterdir()
    safetensors.torch.save_file({"target": made.target}, file)  # as an earlier version left it
    remade = teach(model, teacher, noise, torch.zeros_like(noise), store)
    assert remade.history is not None and torch.equal(remade.history, made.history)
    assert model.calls == 2 * calls
