"""The noise levels alone, learned beside the full solver, for samplers that accept only SIGMAS.

The levels of a solver with extras are right with these extras only: without them they can be worse
than a standard schedule. A short descent from the best standard schedule, whose error is known,
gives levels for the plain sampler at little cost.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..few_parameters import FewParameters
from ..table import Discretization
from ..teacher import TeacherSamples
from .candidates import Start
from .gauss_newton import GaussNewton, calls_per_noise
from .report import ProgressReporter
from .settings import TrainingSettings
from .validation import Objective

MOST_ITERATIONS = 3


def learn_steps_alone(
    objective: Objective,
    parameters: FewParameters,
    start: Start,
    sets: tuple[TeacherSamples, TeacherSamples],
    settings: TrainingSettings,
    progress: ProgressReporter,
) -> Discretization:
    """A schedule without extras, or the start if that is better on the validation noises.

    Args:
        parameters: of the full solver.
        start: a standard schedule, or one whose error without extras is unknown (infinite); of its
            theta only the noise levels are used.
        sets: training and validation samples.
    """
    training, validating = sets
    alone = without_extras(parameters)
    # another order of noises than the full solver's: its first rollouts would be repeated
    order = torch.Generator().manual_seed(settings.seed + 1)
    u = start.theta[: alone.free_levels]
    iterations = _iterations(settings)
    descent = GaussNewton(objective, alone, u, iterations, settings.gauss_newton)
    learning = f"learning {settings.steps} steps for the plain sampler"
    for iteration in range(iterations):
        chosen = torch.randperm(len(training), generator=order)[: settings.gauss_newton.noises]
        descent.step(training[chosen])
        progress.stage(f"{learning}: iteration {iteration + 1} of {iterations}")
    learned = alone.discretization(descent.theta)
    better = objective.error(learned, validating) < start.error
    return learned if better else alone.discretization(u)


def without_extras(parameters: FewParameters) -> FewParameters:
    """The noise levels of these parameters."""
    return FewParameters(replace(parameters.all, decoupled=False, order=0))


def planned_calls(
    parameters: FewParameters, settings: TrainingSettings, sharing: bool = True
) -> int:
    """Model calls of `learn_steps_alone`, and of its test; `sharing` as the model is stateless."""
    alone = without_extras(parameters)
    theta = alone.levels.even(settings.steps)
    cost = calls_per_noise(alone, theta, settings.gauss_newton.difference, sharing)
    evaluated, judged = _samplings(settings)
    return evaluated * cost + judged * parameters.calls


def samplings(settings: TrainingSettings) -> int:
    """How many samplings both make, each with a first call."""
    return sum(_samplings(settings))


def _samplings(settings: TrainingSettings) -> tuple[int, int]:
    """For normal equations, and for validation and test."""
    evaluated = _iterations(settings) * settings.noises_per_iteration
    return evaluated, settings.validation_noises + settings.test_noises


def _iterations(settings: TrainingSettings) -> int:
    return min(MOST_ITERATIONS, settings.iterations)
