"""Counting the steps of others that come as close to the teacher as what was learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ld3.comfy.rivals import most_calls
from ld3.metrics import Distance
from ld3.table import Discretization
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.training.report import StepsCurve
from ld3.training.steps_saved import MOST_OWN, OWN_MULTIPLES, Rival, steps_curve
from ld3.training.validation import Objective, errors

from .exact_problems import Problem, problem, scheduled

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, NOISES = 4, 4


@pytest.fixture(scope="module")
def given() -> Problem:
    return problem("digits")


@pytest.fixture(scope="module")
def samples(given: Problem) -> TeacherSamples:
    noise = torch.randn(NOISES, *given.shape, generator=torch.Generator().manual_seed(0))
    teacher = scheduled(given.model, "dpmpp_2m", 40)
    return sample_teacher(given.model, teacher, noise, torch.zeros_like(noise))


def euler(given: Problem) -> Rival:
    def solver(steps: int) -> Discretization:
        return scheduled(given.model, "euler", steps)

    return Rival("euler + karras", solver, OWN_MULTIPLES, MOST_OWN * STEPS)


def error_of(given: Problem, samples: TeacherSamples, steps: int) -> float:
    return float(errors(given.model, euler(given).solver(steps), samples).mean())


def curve_at(given: Problem, samples: TeacherSamples, learned_error: float) -> StepsCurve:
    objective = Objective(given.model, Distance())
    return steps_curve(euler(given), (STEPS, learned_error), objective, samples)


@pytest.mark.parametrize(
    ("between", "measured"),
    [((1, 2), [4, 8, 12]), ((2, 3), [8, 12]), ((3, 5), [12, 20])],
)
def test_points_are_measured_on_both_sides_of_the_learned_error(
    between: tuple[int, int], measured: list[int], given: Problem, samples: TeacherSamples
) -> None:
    few, many = (n * STEPS for n in between)
    learned = 0.5 * (error_of(given, samples, few) + error_of(given, samples, many))
    before = given.model.calls
    curve = curve_at(given, samples, learned)
    assert given.model.calls - before <= NOISES * euler(given).most_calls
    assert curve.steps == measured and curve.errors == sorted(curve.errors, reverse=True)
    equal, more = curve.equal_steps()
    assert few <= equal <= many and not more


def test_an_error_that_most_steps_do_not_reach_needs_more(
    given: Problem, samples: TeacherSamples
) -> None:
    learned = 0.5 * error_of(given, samples, 5 * STEPS)
    assert curve_at(given, samples, learned).equal_steps() == (5 * STEPS, True)


def test_numbers_of_steps_that_cannot_be_made_are_left_out(
    given: Problem, samples: TeacherSamples
) -> None:
    def few_levels(steps: int) -> Discretization:
        if steps > 2 * STEPS:
            raise ValueError("not so many levels")
        return scheduled(given.model, "euler", steps)

    rival = replace(euler(given), solver=few_levels)
    objective = Objective(given.model, Distance())
    learned = 0.5 * error_of(given, samples, 2 * STEPS)
    curve = steps_curve(rival, (STEPS, learned), objective, samples)
    assert curve.steps == [2 * STEPS] and curve.equal_steps() == (2 * STEPS, True)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_runs_make_no_more_calls_than_planned_for_samplers_of_fewer_last_calls(
    given: Problem, sampler: str
) -> None:
    """heun makes 2 N - 1 calls."""
    calls = {n: scheduled(given.model, sampler, n * STEPS).table.model_calls for n in (1, 2, 3, 5)}
    most = most_calls(scheduled(given.model, sampler, STEPS), MOST_OWN)
    assert calls[3] + calls[5] <= most < calls[3] + calls[5] + STEPS


def test_known_errors_are_not_measured_again(given: Problem, samples: TeacherSamples) -> None:
    known = {n: error_of(given, samples, n) for n in (8, 12)}
    learned = 0.5 * (known[8] + known[12])
    before = given.model.calls
    curve = steps_curve(
        euler(given), (STEPS, learned), Objective(given.model, Distance()), samples, known
    )
    assert given.model.calls == before and curve.steps == [8, 12]
