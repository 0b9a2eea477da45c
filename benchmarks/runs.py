"""One descent watched update by update, and whole learning runs with other settings than usual."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3.metrics import Distance, rmse
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.solver import Plan
from ld3.student import Student
from ld3.teacher import Pairs, student_samples
from ld3.training.gauss_newton import GaussNewton
from ld3.training.gradient import ADAM, GradientDescent
from ld3.training.loop import Learned, ScheduleTraining
from ld3.training.settings import TrainingSettings

from .problems import uniform_log_snr
from .subjects import TEACHER, TRAINING_SEED, Stage, Subject

NOISES, TEST_NOISES, BATCH = 32, 4, 64
POINTS = 16  # of a descent at which it is measured
LOWEST_START = 0.1  # sigma
ITERATIONS = TrainingSettings.iterations  # of Gauss-Newton


class Point(NamedTuple):
    """Where a descent is after so many updates and so many model calls."""

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


def descend(
    subject: Subject,
    stage: Stage,
    sampler: str,
    steps: int,
    method: str,
    radius: float | None,
    seed: int,
) -> list[Point]:
    """One descent of the steps on 32 noises, without any selection.

    It begins with levels evenly spaced in log sigma down to 0.1. (From karras, whose last level is
    sigma_min, the gradient's softmax can hardly lift that level: the share of its gap is 0.)

    Args:
        method: "gauss-newton" or "gradient", which are fed fresh batches as the training loop does.
        radius: of soft teacher forcing; the training error then starts from the moved noises.
    """
    model, traced = stage.model, stage.traced(sampler)
    levels = StepParameters(model.coordinate, model.sigma_max, model.sigma_min)
    start = stage.plan(sampler, uniform_log_snr(steps, LOWEST_START, model.sigma_max))
    student = Student(traced, levels, model, steps, start.table.model_calls)
    theta = levels.from_sigmas(start.sigmas)
    pairs = subject.pairs(stage, NOISES, TRAINING_SEED + seed)
    distance = Distance("pseudo-huber", float(_errors(model, start, pairs).median()))
    order = torch.Generator().manual_seed(seed)
    if method == "gauss-newton":
        descent = GaussNewton(student, theta, ITERATIONS)
    else:
        settings = replace(ADAM, radius=radius)
        descent = GradientDescent(student, theta, pairs, settings, updates_of(method)[-1])
    model.calls, points, done = 0, [], 0
    for wanted in updates_of(method):
        while done < wanted:
            if isinstance(descent, GaussNewton):
                chosen = torch.randperm(NOISES, generator=order)[: descent.settings.noises]
                descent.step(pairs[chosen], distance, BATCH)
            else:
                if done % math.ceil(NOISES / ADAM.batch) == 0:
                    batches = torch.randperm(NOISES, generator=order).split(ADAM.batch)
                descent.update(batches[done % len(batches)], distance)
            done += 1
        moved = pairs
        if isinstance(descent, GradientDescent):
            theta = descent.theta().detach()
            moved = Pairs(descent.noise, pairs.latent, pairs.target)
        else:
            theta = descent.theta
        plan = student.plan(theta)
        points.append(Point(done, model.calls, float(_errors(model, plan, moved).mean()), plan))
    return points


def _errors(model: Model, plan: Plan, pairs: Pairs) -> Tensor:
    before = model.calls
    found = rmse(samples(model, plan, pairs.noise) - pairs.target)
    model.calls = before
    return found


def samples(model: Model, plan: Plan, noise: Tensor) -> Tensor:
    """What a plan makes of noises (n, *shape)."""
    zeros = torch.zeros_like(noise)
    batches = Pairs(noise, zeros, zeros).batches(BATCH, model.device)
    return torch.cat([student_samples(model, plan, batch)[0].cpu() for batch in batches])


def learn(
    subject: Subject,
    stage: Stage,
    sampler: str,
    steps: int,
    seed: int,
    teacher: Plan | None = None,
    **changes: Any,
) -> Learned:
    """A whole learning run on 32 training and 32 validation noises.

    Args:
        teacher: the common one by default; D-ODE's is always that sampler.
        changes: fields of `TrainingSettings`.
    """
    settings = TrainingSettings(
        **{
            "steps": steps,
            "training_noises": NOISES,
            "validation_noises": NOISES,
            "test_noises": TEST_NOISES,
            "batch_size": subject.training_batch,
            "seed": seed,
            **changes,
        }
    )
    training = ScheduleTraining(
        stage.model,
        stage.traced(sampler),
        teacher or stage.teacher,
        stage.schedules(sampler, steps),
        settings,
        start_sigma=stage.model.sigma_max,
        teacher_sampler=stage.traced(TEACHER[0]),
    )
    stage.model.calls = 0
    noise = subject.noises(settings.noises, TRAINING_SEED + seed)
    return training.run(noise, torch.zeros_like(noise))


def plan_of(learned: Learned) -> Plan:
    """The way to sample that was learned."""
    return Plan(learned.sigmas, learned.table)


def best_standard(subject: Subject, stage: Stage, sampler: str, steps: int) -> tuple[str, Plan]:
    """The standard schedule that is best on the held-out noises themselves: hard to beat."""
    plans = {n: stage.plan(sampler, s) for n, s in stage.schedules(sampler, steps).items()}
    fair = {n: p for n, p in plans.items() if p.table.model_calls <= steps}
    name = min(fair, key=lambda n: subject.error(stage, fair[n]))
    return name, fair[name]
