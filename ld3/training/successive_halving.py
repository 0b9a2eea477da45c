"""Gauss-Newton from several starts, by successive halving (Jamieson & Talwalkar 2016).

Where a descent begins matters more than how it continues: with decoupled times the same settings
end anywhere within a factor of two. So several descend for a few iterations, and the best of them
continue. Decoupled times are learned together with the steps from the first iteration on: a basin
that is good for steps alone need not be good for both. Corrections of the coefficients join in the
last round: with more free numbers, few noises choose a basin badly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..solver_parameters import SolverParameters
from ..teacher import TeacherSamples
from .candidates import RANKING_NOISES, Start
from .gauss_newton import GaussNewton, GaussNewtonSettings, calls_per_noise
from .settings import ITERATIONS_PER_VALIDATION, TrainingSettings
from .validation import Validation

EXTRAS_LARGEST_STEP = 0.6  # decoupled times and corrections are small numbers
EXTRAS_SMALLEST_STEP = 0.03
EXTRAS_TRAJECTORY_WEIGHT = 10.0  # times that of steps alone: with extras a student can follow

Descents = list[tuple[str, GaussNewton]]


def descend_by_gauss_newton(
    parameters: SolverParameters,
    starts: list[Start],
    training: TeacherSamples,
    validation: Validation,
    settings: TrainingSettings,
) -> None:
    """Run all rounds of the settings; `validation` keeps the best.

    Args:
        parameters: what to learn, extras included.
        starts: best first.
    """
    constants = _constants(parameters, settings)
    order = torch.Generator().manual_seed(settings.seed)
    uncorrected = replace(parameters, order=0)
    total = sum(r.iterations for r in settings.rounds)
    done = 0
    descents: Descents = []
    for start in starts:
        theta = uncorrected.extended(start.theta)
        descent = GaussNewton(validation.objective, uncorrected, theta, total, constants)
        descents.append((start.name, descent))
    for planned in settings.rounds:
        descents = _best(descents, planned.descents, validation)
        if planned.descents == 1 and parameters.extras:
            name, descent = descents[0]
            # with running averages of its own: those of a few noises are crude
            theta = parameters.extended(descent.theta)
            full = GaussNewton(validation.objective, parameters, theta, total, constants, done)
            descents = [(name, full)]
        learned = ", ".join(["time steps", *(e.value for e in descents[0][1].parameters.extras)])
        for left in reversed(range(planned.iterations)):
            for _, descent in descents:
                chosen = torch.randperm(len(training), generator=order)[: planned.noises]
                descent.step(training[chosen])
                validation.progress.stage(f"learning {learned}: iteration {done + 1} of {total}")
            if planned.descents == 1 and left % ITERATIONS_PER_VALIDATION == 0:
                _consider(*descents[0], validation)
            done += 1


def _constants(parameters: SolverParameters, settings: TrainingSettings) -> GaussNewtonSettings:
    constants = settings.gauss_newton
    if not parameters.extras:
        return constants
    return replace(
        constants,
        largest_step=EXTRAS_LARGEST_STEP,
        smallest_step=EXTRAS_SMALLEST_STEP,
        trajectory_weight=EXTRAS_TRAJECTORY_WEIGHT * constants.trajectory_weight,
    )


def _consider(name: str, descent: GaussNewton, validation: Validation) -> float:
    student = descent.parameters.discretization(descent.theta)
    return validation.consider(name, student, descent.theta)


def _best(descents: Descents, count: int, validation: Validation) -> Descents:
    """The best descents on validation noises."""
    if count == 1:
        errors = [_consider(name, descent, validation) for name, descent in descents]
    elif len(descents) <= count:
        return descents
    else:
        few = validation.samples[:RANKING_NOISES]
        errors = [
            validation.objective.error(d.parameters.discretization(d.theta), few)
            for _, d in descents
        ]
    return [descents[i] for i in sorted(range(len(descents)), key=errors.__getitem__)[:count]]


def planned_calls(parameters: SolverParameters, settings: TrainingSettings) -> int:
    """Model calls of `descend_by_gauss_newton` if there are as many starts as it can use."""
    u = parameters.levels.even(parameters.steps)
    validation, total, competing = settings.validation_noises * parameters.calls, 0, 0
    few = min(RANKING_NOISES, settings.validation_noises) * parameters.calls
    difference, plain = settings.gauss_newton.difference, replace(parameters, order=0)
    first = calls_per_noise(plain, plain.extended(u), difference)
    last = calls_per_noise(parameters, parameters.extended(u), difference)
    for descents, iterations, noises in settings.rounds:
        cost = last if descents == 1 else first
        total += descents * iterations * min(noises, settings.training_noises) * cost
        total += competing * (validation if descents == 1 else few)
        if descents == 1:
            total += math.ceil(iterations / ITERATIONS_PER_VALIDATION) * validation
        competing = descents
    return total
