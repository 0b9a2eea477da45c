"""This pack's learning: whole runs, and one descent measured update by update."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.problems.live_model import BATCH, TEACHER
from benchmarks.problems.noise_levels import uniform_log_snr
from ld3.metrics import Distance, rmse
from ld3.parameters import StepParameters, check_sigmas
from ld3.solver import Plan
from ld3.student import Student
from ld3.teacher import Pairs
from ld3.training.gauss_newton import GaussNewton
from ld3.training.gradient import ADAM, GradientDescent
from ld3.training.loop import Learned, ScheduleTraining
from ld3.training.settings import TrainingSettings

from .trial import Result, Trial

NOISES, TEST_NOISES = 32, 4
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


def learn(trial: Trial, teacher: Plan | None = None, **changes: Any) -> Learned:
    """A whole learning run on 32 training and 32 validation noises.

    Args:
        teacher: the common one by default; D-ODE's always uses the common one's sampler.
        changes: fields of `TrainingSettings`.
    """
    live = trial.live
    settings = TrainingSettings(
        **{
            "steps": trial.steps,
            "training_noises": NOISES,
            "validation_noises": NOISES,
            "test_noises": TEST_NOISES,
            "batch_size": trial.problem.training_batch,
            "seed": trial.seed,
            **changes,
        }
    )
    training = ScheduleTraining(
        live.model,
        live.traced(trial.sampler),
        teacher or live.teacher,
        live.schedules(trial.sampler, trial.steps),
        settings,
        start_sigma=live.model.sigma_max,
        teacher_sampler=live.traced(TEACHER[0]),
    )
    live.model.calls = 0
    noise = trial.noises(settings.noises)
    return training.run(noise, torch.zeros_like(noise))


def plan_of(learned: Learned) -> Plan:
    """The solver and schedule that were learned."""
    return Plan(learned.sigmas, learned.table)


def result_of(learned: Learned, teacher: Plan) -> Result:
    """A run's plan and calls, without its test noises, which only its report uses."""
    check_sigmas(learned.sigmas)
    report = learned.report
    unused = TEST_NOISES * teacher.table.model_calls
    return Result(plan_of(learned), report.training_calls, report.teacher_calls - unused)


class Point(NamedTuple):
    """The state of a descent after a number of updates and model calls."""

    update: int
    model_calls: int
    training_error: float
    plan: Plan


def updates_of(method: str) -> list[int]:
    """The updates at which a descent is measured, the start included."""
    if method == "gauss-newton":
        return list(range(ITERATIONS + 1))
    planned = ADAM.steps_rounds * math.ceil(NOISES / ADAM.batch)
    return [round(planned * i / POINTS) for i in range(POINTS + 1)]


def descend(trial: Trial, method: str, radius: float | None) -> list[Point]:
    """One descent of the steps on 32 noises, without any selection.

    It starts from levels evenly spaced in log sigma down to 0.1. (From karras, whose last level is
    sigma_min, the gradient's softmax can barely raise that level: the share of its gap is 0.)

    Args:
        method: "gauss-newton" or "gradient", which receive new batches as in the training loop.
        radius: of soft teacher forcing; the training error then starts from the perturbed noises.
    """
    live, model, seed = trial.live, trial.live.model, trial.seed
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    start = live.plan(trial.sampler, uniform_log_snr(trial.steps, LOWEST_START, model.sigma_max))
    traced = live.traced(trial.sampler)
    student = Student(traced, levels, model, trial.steps, start.table.model_calls)
    theta = levels.from_sigmas(start.sigmas)
    pairs = trial.pairs(NOISES)

    def error(plan: Plan, pairs: Pairs) -> torch.Tensor:
        return rmse(live.samples(plan, pairs.noise) - pairs.target)

    distance = Distance("pseudo-huber", float(error(start, pairs).median()))
    order = torch.Generator().manual_seed(seed)
    if method == "gauss-newton":
        descent = GaussNewton(student, theta, ITERATIONS)
    else:
        settings = replace(ADAM, radius=radius)
        descent = GradientDescent(student, theta, pairs, settings, updates_of(method)[-1])
    model.calls, points, done = 0, [], 0
    for update in updates_of(method):
        while done < update:
            if isinstance(descent, GaussNewton):
                chosen = torch.randperm(NOISES, generator=order)[: descent.settings.noises]
                descent.step(pairs[chosen], distance, BATCH)
            else:
                if done % math.ceil(NOISES / ADAM.batch) == 0:
                    batches = torch.randperm(NOISES, generator=order).split(ADAM.batch)
                descent.update(batches[done % len(batches)], distance)
            done += 1
        used = pairs
        if isinstance(descent, GradientDescent):
            theta = descent.theta().detach()
            used = Pairs(descent.noise, pairs.latent, pairs.target)
        else:
            theta = descent.theta
        plan = student.plan(theta)
        points.append(Point(done, model.calls, float(error(plan, used).mean()), plan))
    return points
