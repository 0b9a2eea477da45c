"""What learning another number of steps costs, and what competes there (`other_steps`)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..schedule import MOST_CALLS
from .candidates import Competitors
from .gauss_newton import Parameters, calls_per_noise
from .problem import TrainingProblem, competitors_of
from .settings import TrainingSettings

STANDARDS = 2  # standard schedules that the model ranks
STANDARD_SAMPLINGS = STANDARDS + 1  # per noise, with the test
SAMPLINGS = 3 + 1  # a stretched, a searched and a descended student, and the test
LEAST_NOISES = 4  # to rank and to test
MOST_ITERATIONS = 4


def competitors_in_other_steps(
    problem: TrainingProblem, settings: TrainingSettings
) -> dict[int, Competitors]:
    """What competes in each of the settings' other numbers of steps.

    Raises:
        ValueError: a number that the teacher, the noise levels or files do not allow; names
            also_steps.
    """
    found = {}
    for steps in settings.also_steps:
        assert problem.schedules is not None
        other = replace(problem, baselines=problem.schedules(steps), always=())
        try:
            found[steps] = competitors_of(other, replace(settings, steps=steps))
        except ValueError as error:
            raise ValueError(f"also_steps contains {steps}: {error}") from error
        calls = found[steps].parameters.calls
        if calls > MOST_CALLS:
            raise ValueError(
                f"also_steps contains {steps}, in which sampler {problem.sampler.name!r} makes "
                f"{calls} model calls; a schedule can have {MOST_CALLS} at most: use fewer steps"
            )
    return found


def planned_calls(
    problem: TrainingProblem, others: dict[int, Competitors], settings: TrainingSettings
) -> int:
    """Model calls of `learn_other_steps`, at most."""
    planned = 0
    for competitors in others.values():
        few = competitors.parameters
        kinds = few, few.all
        planned += max(plan_of(problem, competitors, kind, settings).calls for kind in kinds)
    return planned


class Plan(NamedTuple):
    """How a number of calls is spent: noises to rank and test, iterations with their noises."""

    standard: int  # most calls of a standard schedule's sampling
    noises: int
    iterations: int
    descent_noises: int
    calls: int


def plan_of(
    problem: TrainingProblem,
    competitors: Competitors,
    parameters: Parameters,
    settings: TrainingSettings,
) -> Plan:
    """For about `also_calls` model calls, more above 6 steps: half of them to rank and test."""
    budget = settings.also_calls * max(parameters.steps, 6) // 6
    z = parameters.extended(parameters.levels.even(parameters.steps))
    sharing = problem.model.stateless
    shared = problem.shares_first_call(parameters.discretization(z).table)
    sampling = parameters.calls - shared
    # ddim_uniform begins lower than the teacher, shares no call and is left out; below denoise 1
    # all standard schedules may begin elsewhere
    standard = min(calls_of_standards(problem, competitors).values(), default=0)
    standard = max(standard, sampling)
    each = SAMPLINGS * sampling + STANDARD_SAMPLINGS * standard
    most = min(settings.validation_noises, settings.test_noises)
    noises = min(max(LEAST_NOISES, budget // 2 // each), most)
    difference = settings.gauss_newton.difference
    evaluation = calls_per_noise(parameters, z, difference, sharing) - shared
    evaluations = max(0, budget - noises * each) // evaluation
    iterations = min(MOST_ITERATIONS, evaluations)
    descent_noises = min(evaluations // max(iterations, 1), settings.training_noises)
    calls = noises * each + iterations * descent_noises * evaluation
    return Plan(standard, noises, iterations, descent_noises, calls)


def calls_of_standards(problem: TrainingProblem, competitors: Competitors) -> dict[str, int]:
    """By scheduler, the model calls of a sampling besides those it shares with the teacher."""
    tables = {name: solver.table for name, solver in competitors.baselines.items()}
    return {name: t.model_calls - problem.shares_first_call(t) for name, t in tables.items()}
