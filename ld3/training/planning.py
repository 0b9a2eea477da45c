"""How many model calls a training makes, and which settings a number of calls allows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from . import candidates, dode, other_steps_planning, steps_alone, successive_halving
from .budget import within
from .candidates import Competitors
from .gradient import descent as gradient_descent
from .other_steps_planning import competitors_in_other_steps
from .problem import TrainingProblem, competitors_of
from .settings import TrainingSettings
from .steps_saved import COMPARED_NOISES


def within_budget(
    problem: TrainingProblem, settings: TrainingSettings, calls: int
) -> TrainingSettings:
    """Settings for at most that many model calls in all; ValueError if they are too few."""
    competitors = competitors_of(problem, settings)
    others = competitors_in_other_steps(problem, settings)
    planned = partial(calls_with, problem, competitors, others=others)
    return within(calls, settings, problem.teacher.table.model_calls, planned)


def planned_calls(problem: TrainingProblem, s: TrainingSettings) -> int:
    """Model calls of a training, at most, if no sample of the teacher is stored.

    The sum of what its phases say of themselves.
    """
    others = competitors_in_other_steps(problem, s)
    return calls_with(problem, competitors_of(problem, s), s, others)


def calls_with(
    problem: TrainingProblem,
    competitors: Competitors,
    s: TrainingSettings,
    others: dict[int, Competitors],
) -> int:
    """`planned_calls`, where the competitors are known, those in other numbers of steps too."""
    parameters, calls = competitors.parameters, competitors.parameters.calls
    even = parameters.discretization(parameters.extended(parameters.levels.even(s.steps)))
    planned = s.noises * problem.teacher.table.model_calls + 1  # `_first_call_repeats`
    planned += candidates.planned_calls(competitors, s.validation_noises)
    if s.gradient:
        secant = problem.model.time_neighbours is not None
        learned = replace(parameters.all, decoupled=s.decoupled, order=s.order)
        planned += gradient_descent.planned_calls(learned, s, secant)
        samplings = gradient_descent.samplings(learned, s)
    else:
        planned += successive_halving.planned_calls(parameters, s, problem.model.stateless)
        samplings = successive_halving.samplings(s)
    alone = bool(parameters.extras) and not s.gradient
    if alone:
        planned += steps_alone.planned_calls(parameters, s, problem.model.stateless)
    if s.dode:
        sampler = problem.teacher_sampler or problem.sampler
        sizes = s.training_noises, s.validation_noises
        planned += dode.planned_calls(problem.model, even, sampler, *sizes)
        planned += s.validation_noises * calls
    if s.output_mix:
        planned += (s.training_noises + s.validation_noises) * calls
    planned += 2 * s.test_noises * calls
    rivals = [problem.own] if problem.own else []
    if problem.standard and competitors.baselines:
        rivals.append(problem.standard(next(iter(competitors.baselines))))
    compared = min(COMPARED_NOISES, s.test_noises)
    planned += compared * sum(rival.most_calls for rival in rivals)
    always = [competitors.baselines[name].table.model_calls for name in competitors.always]
    planned += s.test_noises * sum(always)
    planned += other_steps_planning.planned_calls(problem, others, s)
    if not problem.shares_first_call(even.table):
        return planned
    teacher = problem.teacher.table
    shared = candidates.shared_first_calls(competitors, teacher, s.validation_noises)
    shared += samplings + (steps_alone.samplings(s) if alone else 0)
    shared += s.dode * s.validation_noises
    shared += s.output_mix * (s.training_noises + s.validation_noises)
    return planned - shared - s.test_noises
