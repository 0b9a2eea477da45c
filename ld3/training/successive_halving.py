"""Gauss-Newton from several starts, by successive halving (Jamieson & Talwalkar 2016).

Where a descent begins matters more than how it continues: with decoupled times the same settings
end anywhere within a factor of two. So several descend for a few iterations, and the best of them
continue. Decoupled times are learned together with the steps from the first iteration on: a basin
that is good for steps alone need not be good for both. Extras have few numbers (`FewParameters`),
which few noises suffice for, until the last iterations learn them one by one: smooth networks gain
from that, and for others the validation noises keep what was clearly better.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..few_parameters import FewParameters
from ..teacher import TeacherSamples
from .candidates import Start
from .gauss_newton import GaussNewton, GaussNewtonSettings, calls_per_noise
from .settings import ITERATIONS_PER_VALIDATION, Round, TrainingSettings
from .validation import Validation

EXTRAS_LARGEST_STEP = 0.6  # decoupled times and corrections are small numbers
EXTRAS_SMALLEST_STEP = 0.03
EXTRAS_TRAJECTORY_WEIGHT = 10.0  # times that of steps alone: with extras a student can follow

Descents = list[tuple[str, GaussNewton]]


def descend_by_gauss_newton(
    parameters: FewParameters,
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
    constants = descent_settings(parameters, settings)
    order = torch.Generator().manual_seed(settings.seed)
    total = sum(r.iterations for r in settings.rounds)
    done = 0
    descents: Descents = [
        (s.name, GaussNewton(validation.objective, parameters, s.theta, total, constants))
        for s in starts
    ]
    learning = f"learning {settings.steps} steps"
    for number, planned in enumerate(settings.rounds):
        if number:
            descents = _best(descents, planned.descents, validation)
        last = number == len(settings.rounds) - 1
        for left in reversed(range(planned.iterations)):
            if last and left + 1 == _single_iterations(parameters, planned):
                name, descent = descents[0]
                theta = parameters.expanded(descent.theta)
                # with running averages of its own
                single = GaussNewton(
                    validation.objective, parameters.all, theta, total, constants, done
                )
                descents = [(name, single)]
            for _, descent in descents:
                chosen = torch.randperm(len(training), generator=order)[: planned.noises]
                descent.step(training[chosen])
                validation.progress.stage(f"{learning}: iteration {done + 1} of {total}")
            if last and left % ITERATIONS_PER_VALIDATION == 0:
                _consider(*descents[0], validation)
            done += 1


def _single_iterations(parameters: FewParameters, last: Round) -> int:
    """How many iterations at the end learn all extras one by one."""
    return last.iterations // 2 if parameters.extras else 0


def descent_settings(parameters: FewParameters, settings: TrainingSettings) -> GaussNewtonSettings:
    """Gauss-Newton's constants for these parameters."""
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
    parameters, theta = descent.parameters, descent.theta
    if isinstance(parameters, FewParameters):
        parameters, theta = parameters.all, parameters.expanded(theta)
    return validation.consider(name, parameters.discretization(theta), theta, descended=True)


def _best(descents: Descents, count: int, validation: Validation) -> Descents:
    """The best descents on the validation noises."""
    errors = [_consider(name, descent, validation) for name, descent in descents]
    return [descents[i] for i in sorted(range(len(descents)), key=errors.__getitem__)[:count]]


def planned_calls(
    parameters: FewParameters, settings: TrainingSettings, sharing: bool = True
) -> int:
    """Model calls of `descend_by_gauss_newton` if there are as many starts as it can use.

    Args:
        sharing: whether the model is stateless.
    """
    z = parameters.extended(parameters.levels.even(settings.steps))
    difference = settings.gauss_newton.difference
    few = calls_per_noise(parameters, z, difference, sharing)
    single = calls_per_noise(parameters.all, parameters.expanded(z), difference, sharing)
    late = _single_iterations(parameters, settings.rounds[-1]) * settings.noises_per_iteration
    evaluated, validated = _samplings(settings)
    return (evaluated - late) * few + late * single + validated * parameters.calls


def samplings(settings: TrainingSettings) -> int:
    """How many samplings of students `descend_by_gauss_newton` makes, each with a first call."""
    return sum(_samplings(settings))


def _samplings(settings: TrainingSettings) -> tuple[int, int]:
    """For normal equations, and for validation."""
    made = sum(descents * iterations for descents, iterations, _ in settings.rounds)
    evaluated = made * settings.noises_per_iteration
    return evaluated, settings.validations * settings.validation_noises
