"""Run a method by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ld3.table import Discretization
from ld3.teacher import TeacherSamples

from . import baselines, ours
from .official import FASTER_DECOUPLED, NOISE_PREDICTING, OfficialSettings, OfficialTraining
from .trial import Result, Trial

DMN_ORDER = {"euler": 1, "dpmpp_2m": 2}  # the others are of order 3
GITS_NOISES = 256
GITS_EULER_STEPS = 60  # of the published trajectories, by Euler
OFFICIAL: dict[str, dict[str, Any]] = {
    "ld3-official": {},
    "ld3-official-uncounted": {"count_validation": False},
    "ld3-official-x100": {"decoupled_rate": FASTER_DECOUPLED},
}
"""The published method and variants of it, as fields of `OfficialSettings`."""


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
    if kind == "standard":
        return Result(live.standard(*name.split(":"), steps))
    if method == "ays":
        return Result(live.discretization(sampler, baselines.ays(steps)))
    if method == "gits":
        return Result(live.discretization(sampler, baselines.gits_table(steps)))
    if method == "dmn":
        order, model = DMN_ORDER.get(sampler, 3), live.model
        sigmas = baselines.dmn(steps, model.sigma_max, model.sigma_min, order)
        return Result(live.discretization(sampler, sigmas))
    if method == "gits-dp":
        return _gits(trial, live.teacher)
    if method == "gits-dp-euler60":
        return _gits(trial, live.standard("euler", live.recipe.scheduler, GITS_EULER_STEPS))
    if method in OFFICIAL:
        return _official(trial, OFFICIAL[method])
    return _ours(method, trial)


def _gits(trial: Trial, teacher: Discretization) -> Result:
    """GITS on the trajectories of a solver with one call per step."""
    name = f"gits {teacher.steps} {trial.seed}"
    costs = trial.problem.cached(name, lambda: gits_costs(trial, teacher))
    sigmas = teacher.sigmas[baselines.cheapest_path(costs, trial.steps)]
    solver = trial.live.discretization(trial.sampler, sigmas)
    return Result(solver, teacher_calls=GITS_NOISES * teacher.table.model_calls)


def gits_costs(trial: Trial, teacher: Discretization) -> Tensor:
    """Mean costs along a teacher's trajectories of training noises, the same for all students."""
    noise, model = trial.noises(GITS_NOISES), trial.live.model
    costs = []
    for batch in TeacherSamples(noise, torch.zeros_like(noise), noise).batches(model):
        result, history = model.sample(teacher, batch.noise, batch.latent)
        states, outputs = baselines.trajectory(teacher.table, history, result)
        costs.append(baselines.gits_costs(states, outputs, teacher.sigmas))
    return torch.stack(costs).mean(0)


def _official(trial: Trial, changes: dict[str, Any]) -> Result:
    settings = OfficialSettings(
        noise_prediction=trial.sampler in NOISE_PREDICTING,
        variance_preserving=trial.problem.variance_preserving,
        **changes,
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
    gradient = ours.THOROUGH if optimizer == "gradient" else None
    return ours.result(trial, **ours.EXTRAS[extras], gradient=gradient)
