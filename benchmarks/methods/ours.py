"""This pack's learning: whole runs, and one descent measured update by update."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.problems.noise_levels import uniform_log_snr
from ld3.metrics import Distance, rmse
from ld3.parameters import StepParameters, check_sigmas
from ld3.solver_parameters import SolverParameters
from ld3.table import Discretization
from ld3.teacher import TeacherSamples
from ld3.training.budget import calls_of
from ld3.training.gauss_newton import GaussNewton
from ld3.training.gradient.descent import GradientDescent
from ld3.training.gradient.gradient_settings import ADAM
from ld3.training.planning import within_budget
from ld3.training.problem import TrainingProblem
from ld3.training.settings import TrainingSettings
from ld3.training.steps_saved import (
    MOST_OWN,
    MOST_STANDARD,
    OWN_MULTIPLES,
    STANDARD_MULTIPLES,
    Rival,
)
from ld3.training.train import Learned, train
from ld3.training.validation import Objective

from .trial import Result, Trial

NOISES = 32
THOROUGH = ADAM.with_rounds(12)
"""The node's optimizer "gradient (Adam, thorough)"."""
GRADIENT_NOISES = {"training_noises": NOISES, "validation_noises": NOISES, "test_noises": 16}
"""Of the node, where the optimizer is a gradient: it has no quality."""
CHECK_CALLS = 280  # what the node's test of its teacher adds, at 20 steps
ITERATIONS = TrainingSettings.iterations  # of Gauss-Newton
EXTRAS: dict[str, dict[str, Any]] = {
    "": {},
    "decoupled": {"decoupled": True},
    "solver": {"decoupled": True, "order": 1},
    "solver+mix": {"decoupled": True, "order": 1, "output_mix": True},
}
"""What is learned besides steps, as fields of `TrainingSettings`."""
POINTS = 16  # of a descent by gradient, at which it is measured
LOWEST_START = 0.1  # sigma


def learn(
    trial: Trial,
    teacher: Discretization | None = None,
    calls: int | None = None,
    compared: bool = False,
    **changes: Any,
) -> Learned:
    """A whole learning run, with the node's numbers of noises and iterations.

    Args:
        teacher: the common one by default; D-ODE's always uses the common one's sampler.
        calls: of the model in all; by default those of the node's quality `normal`. Not used by
            gradient and where `changes` contain the number of training noises.
        compared: also count the steps saved, and the calls of the node's test of its teacher, which
            is not made here.
        changes: fields of `TrainingSettings`.
    """
    live = trial.live
    settings = TrainingSettings(**{"steps": trial.steps, "seed": trial.seed, **changes})
    task = TrainingProblem(
        live.model,
        live.traced(trial.sampler),
        teacher or live.teacher,
        live.model.sigma_max,
        live.schedules(trial.sampler, trial.steps),
        teacher_sampler=live.traced(live.recipe.sampler),
        schedules=partial(live.schedules, trial.sampler),
    )
    if compared:
        task = _with_rivals(trial, task)
    if settings.gradient:
        settings = replace(settings, **GRADIENT_NOISES)
    elif "training_noises" not in changes:
        calls = calls or calls_of("normal", trial.steps)
        settings = within_budget(task, settings, calls - (CHECK_CALLS if compared else 0))
    noise = trial.noises(settings.noises)
    with trial.training_batches():
        learned = train(task, settings, noise, torch.zeros_like(noise))
    if not compared:
        return learned
    teacher_calls = learned.report.teacher_calls + CHECK_CALLS
    return learned._replace(report=replace(learned.report, teacher_calls=teacher_calls))


def _with_rivals(trial: Trial, task: TrainingProblem) -> TrainingProblem:
    """The task with what the node compares it with in more steps by default."""
    flow = task.model.coordinate.name == "logit"
    names = ("euler", "simple") if flow else (trial.sampler, "karras")

    def rival(sampler: str, scheduler: str, multiples: tuple[int, ...], most: int) -> Rival:
        def solver(steps: int) -> Discretization:
            return trial.live.standard(sampler, scheduler, steps)

        return Rival(f"{sampler} + {scheduler}", solver, multiples, most * trial.steps)

    def standard(scheduler: str) -> Rival:
        return rival(trial.sampler, scheduler, STANDARD_MULTIPLES, MOST_STANDARD)

    return replace(task, own=rival(*names, OWN_MULTIPLES, MOST_OWN), standard=standard)


def result(trial: Trial, teacher: Discretization | None = None, **changes: Any) -> Result:
    """The solver of a whole run (`learn`), with the calls of its search, report and teacher.

    As the node does, Gauss-Newton also counts the steps saved and tests its teacher.
    """
    learned = learn(trial, teacher, compared=not changes.get("gradient"), **changes)
    check_sigmas(learned.solver.sigmas)
    report = learned.report
    model_calls = report.training_calls + report.report_calls
    return Result(learned.solver, model_calls, report.teacher_calls)


class Point(NamedTuple):
    """The state of a descent after a number of updates and model calls."""

    update: int
    model_calls: int
    training_error: float
    solver: Discretization


def updates_of(method: str) -> list[int]:
    """The updates at which a descent is measured, the start included."""
    if method == "gauss-newton":
        return list(range(ITERATIONS + 1))
    planned = THOROUGH.steps_rounds * math.ceil(NOISES / THOROUGH.batch)
    return [round(planned * i / POINTS) for i in range(POINTS + 1)]


def descend(trial: Trial, method: str, radius: float | None) -> list[Point]:
    """One descent of the steps on 32 noises, without any selection.

    It starts from levels evenly spaced in log sigma down to 0.1. (From karras, whose last level is
    sigma_min, the gradient's softmax can barely raise that level: the share of its gap is 0.)

    Args:
        method: "gauss-newton" or "gradient", which receive new batches as in the training loop.
        radius: of soft teacher forcing; the training error then starts from the perturbed noises.
    """
    live, model = trial.live, trial.live.model
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    sigmas = uniform_log_snr(trial.steps, LOWEST_START, model.sigma_max)
    start, theta = live.discretization(trial.sampler, sigmas), levels.from_sigmas(sigmas)
    traced = live.traced(trial.sampler)
    parameters = SolverParameters.of_steps(traced, levels, model.sigma_max, trial.steps)
    samples = trial.teacher_samples(NOISES)

    def error(solver: Discretization, samples: TeacherSamples) -> torch.Tensor:
        return rmse(live.samples(solver, samples.noise) - samples.target)

    distance = Distance("pseudo-huber", float(error(start, samples).median()))
    # states are not matched: without data_std
    objective, order = Objective(model, distance), torch.Generator().manual_seed(trial.seed)
    if method == "gauss-newton":
        descent = GaussNewton(objective, parameters, theta, ITERATIONS)
    else:
        settings, updates = replace(THOROUGH, radius=radius), updates_of(method)[-1]
        descent = GradientDescent(objective, parameters, theta, samples, settings, updates)
    model.calls, points, done = 0, [], 0
    for update in updates_of(method):
        while done < update:
            if isinstance(descent, GaussNewton):
                chosen = torch.randperm(NOISES, generator=order)[: descent.settings.noises]
                descent.step(samples[chosen])
            else:
                if done % math.ceil(NOISES / THOROUGH.batch) == 0:
                    batches = torch.randperm(NOISES, generator=order).split(THOROUGH.batch)
                descent.update(batches[done % len(batches)])
            done += 1
        used = samples
        if isinstance(descent, GradientDescent):
            theta = descent.theta().detach()
            used = TeacherSamples(descent.noise, samples.latent, samples.target)
        else:
            theta = descent.theta
        solver = parameters.discretization(theta)
        points.append(Point(done, model.calls, float(error(solver, used).mean()), solver))
    return points
