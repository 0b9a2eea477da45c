"""Run a method by its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ld3.teacher import TeacherSamples
from ld3.training.gradient.gradient_settings import ADAM

from . import baselines, ours
from .official import NOISE_PREDICTING, OfficialSettings, OfficialTraining
from .trial import Result, Trial

DMN_ORDER = {"euler": 1, "dpmpp_2m": 2}  # the others are of order 3
GITS_NOISES = 256


def run(method: str, trial: Trial) -> Result:
    """The solver that a method finds, with its calls.

    Args:
        method: see `benchmarks.suites.learning`.
    """
    live, sampler, steps = trial.live, trial.sampler, trial.steps
    kind, _, name = method.partition(":")
    if method == "teacher":
        return Result(live.teacher)
    if kind == "scheduler":
        return Result(live.standard(sampler, name, steps))
    if method == "ays":
        return Result(live.discretization(sampler, baselines.ays(steps)))
    if method == "gits":
        return Result(live.discretization(sampler, baselines.gits_table(steps)))
    if method == "dmn":
        order, model = DMN_ORDER.get(sampler, 3), live.model
        sigmas = baselines.dmn(steps, model.sigma_max, model.sigma_min, order)
        return Result(live.discretization(sampler, sigmas))
    learned: dict[str, Callable[[Trial], Result]] = {"gits-dp": _gits, "ld3-official": _official}
    return learned[method](trial) if method in learned else _ours(method, trial)


def _gits(trial: Trial) -> Result:
    costs = trial.problem.cached(f"gits {trial.seed}", lambda: gits_costs(trial))
    teacher = trial.live.teacher
    sigmas = teacher.sigmas[baselines.cheapest_path(costs, trial.steps)]
    solver = trial.live.discretization(trial.sampler, sigmas)
    return Result(solver, teacher_calls=GITS_NOISES * teacher.table.model_calls)


def gits_costs(trial: Trial) -> Tensor:
    """Mean costs along the teacher's trajectories of training noises, the same for all students."""
    noise, model, teacher = trial.noises(GITS_NOISES), trial.live.model, trial.live.teacher
    costs = []
    for batch in TeacherSamples(noise, torch.zeros_like(noise), noise).batches(model):
        result, history = model.sample(teacher, batch.noise, batch.latent)
        states, outputs = baselines.trajectory(teacher.table, history, result)
        costs.append(baselines.gits_costs(states, outputs, teacher.sigmas))
    return torch.stack(costs).mean(0)


def _official(trial: Trial) -> Result:
    settings = OfficialSettings(
        noise_prediction=trial.sampler in NOISE_PREDICTING,
        variance_preserving=trial.problem.variance_preserving,
    )
    model = trial.live.model
    model.calls = 0
    pairs = trial.teacher_samples(settings.training_pairs + settings.validation_pairs)
    teacher_calls, model.calls = model.calls, 0
    traced = trial.live.traced(trial.sampler)
    training = OfficialTraining(model, traced, trial.steps, pairs, trial.seed, settings)
    return Result(training.run(), model.calls, teacher_calls)


def _ours(method: str, trial: Trial) -> Result:
    optimizer, _, extras = method.partition("+")
    gradient = ADAM if optimizer == "gradient" else None
    learned = ours.learn(trial, **ours.EXTRAS[extras], gradient=gradient)
    return ours.result_of(learned, trial.live.teacher)
