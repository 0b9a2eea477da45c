"""Basic questions about the method, each on a problem where the answer can be computed.

A row is one number: `value` of `quantity` in an `experiment`, with what it depends on.

- convergence: one descent on a mixture in one dimension, update by update (`heldout_error`).
- kl: KL between teacher and student distributions (`kl`) against Theorem 1's bound at the `radius`
  used in learning (`bound`), which is valid if the remaining `soft_loss` is 0; and at the smallest
  radius for which it is 0 (`zero_loss_radius`, `zero_loss_bound`). See `measures.divergence`.
- loss: one descent on digits, hard and soft: `training_error` from the perturbed start noises,
  `heldout_error` from unperturbed ones.
- heavy-tails: 24 modes with Student t tails, learned schedules against the best standard one.
- measures: digits in 4 steps by several measures, against new samples of the exact data.

`spread_to_teacher` is the mean distance of two samples over that of the teacher's samples: below 1
if modes collapse. `heldout_error` is the mean RMSE of 512 samples to Heun with 60 karras steps.
`model_calls` are those of learning, up to that update. Whole trainings are the node's: Gauss-Newton
with quality normal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measures import divergence, sample_quality
from benchmarks.methods import baselines, ours
from benchmarks.methods.trial import Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.mixtures import digits_components
from benchmarks.problems.problem import FRECHET_SEED
from ld3.metrics import spread
from ld3.table import Discretization

TITLE = "Theory: first experiments on exact problems"
KEYS = (
    "experiment", "model", "sampler", "steps", "method", "seed", "radius", "update", "quantity",
)  # fmt: skip
COLUMNS = {
    "experiment": 11,
    "model": 10,
    "sampler": 8,
    "steps": 5,
    "method": 22,
    "seed": 4,
    "radius": 7,
    "update": 6,
    "quantity": 18,
    "value": 9,
    "model_calls": 11,
}
SEEDS = (0, 1, 2)
RADII = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
POINTS, SAMPLES = 2048, 2048  # of the average over noises, and in each set that is compared
KL = ("kl", "bound", "soft_loss", "zero_loss_radius", "zero_loss_bound", "inverted")
STRESS = ("heldout_error", "spread_to_teacher")
MEASURES = (
    "frechet", "sliced_wasserstein", "precision", "recall", "coverage", "inception_score",
    "spread_to_teacher", "heldout_error",
)  # fmt: skip
Measured = dict[tuple[int | None, str], tuple[float, int]]
"""(update, quantity) -> value and model calls."""


def cells() -> Iterator[dict[str, Any]]:
    """Every number, experiment by experiment."""
    for fixed, methods, quantities in _experiments():
        for seed in SEEDS:
            for method, radius in methods:
                by_update = fixed["experiment"] in ("convergence", "loss")
                for update in ours.updates_of(method) if by_update else [None]:
                    for quantity in quantities:
                        yield {
                            **fixed,
                            "method": method,
                            "seed": seed,
                            "radius": radius,
                            "update": update,
                            "quantity": quantity,
                        }


def _experiments() -> Iterator[tuple[dict[str, Any], list[tuple[str, float | None]], Any]]:
    def cell(experiment: str, model: str, sampler: str, steps: int) -> dict[str, Any]:
        return {"experiment": experiment, "model": model, "sampler": sampler, "steps": steps}

    newton = ("gauss-newton", None)
    descents_1d = [newton, ("gradient", 0.0), ("gradient", 0.03)]
    for sampler in ("dpmpp_2m", "euler"):
        yield cell("convergence", "mixture-1d", sampler, 4), descents_1d, ("heldout_error",)
    for model in ("mixture-1d", "mixture-2d"):
        learned = [("gradient", radius) for radius in RADII]
        yield cell("kl", model, "dpmpp_2m", 4), [("scheduler:karras", None), newton, *learned], KL
    published, large = 0.001 * 64 / 4**2, 0.03 * math.sqrt(64)
    descents_digits = [newton, *(("gradient", radius) for radius in (0.0, published, large))]
    errors = ("training_error", "heldout_error")
    yield cell("loss", "digits", "dpmpp_2m", 4), descents_digits, errors
    learners = [newton, ("gauss-newton+decoupled", None), ("gauss-newton+solver+mix", None)]
    for sampler in ("dpmpp_2m", "ipndm"):
        for steps in (4, 6):
            methods = [
                ("teacher", None), ("scheduler:karras", None), ("scheduler:best", None), *learners,
                ("gradient+decoupled", 0.0),
            ]  # fmt: skip
            yield cell("heavy-tails", "heavy16", sampler, steps), methods, STRESS
    for sampler in ("dpmpp_2m", "ipndm"):
        standard = [("scheduler:karras", None), ("scheduler:best", None)]
        methods = [*standard, *learners, ("teacher", None), ("reference", None)]
        yield cell("measures", "digits", sampler, 4), methods, MEASURES


def row(update: int | None, quantity: str, **cell: Any) -> dict[str, Any]:
    """One number; those of one run are computed together."""
    torch.set_num_threads(1)  # more make small tensors slower
    value, calls = _measured(**cell)[update, quantity]
    return {**cell, "update": update, "quantity": quantity, "value": value, "model_calls": calls}


@functools.lru_cache(maxsize=4)
def _measured(
    experiment: str, model: str, sampler: str, steps: int, seed: int, **method: Any
) -> Measured:
    problem = registry.load(model)

    def task(live: LiveModel) -> Measured:
        trial = Trial(problem, live, sampler, steps, seed)
        if experiment in ("convergence", "loss"):
            return _descent(trial, **method)
        solver, calls = _solver(trial, **method)
        if experiment == "kl":
            found = _divergence(trial, solver, method["radius"] or 0.0)
        else:
            found = (_stress if experiment == "heavy-tails" else _measures)(trial, solver)
        return {(None, quantity): (value, calls) for quantity, value in found.items()}

    return problem.run(task)


def _descent(trial: Trial, method: str, radius: float | None) -> Measured:
    found: Measured = {}
    for point in ours.descend(trial, method, radius):
        found[point.update, "training_error"] = point.training_error, point.model_calls
        error = trial.problem.error(trial.live, point.solver)
        found[point.update, "heldout_error"] = error, point.model_calls
    return found


def _solver(trial: Trial, method: str, radius: float | None) -> tuple[Discretization, int]:
    """The solver that a method finds, and the model calls needed."""
    live = trial.live
    kind, _, name = method.partition(":")
    if kind == "scheduler":
        if name == "best":
            return baselines.best_scheduler(trial)[1], 0
        return live.standard(trial.sampler, name, trial.steps), 0
    if kind in ("teacher", "reference"):
        return live.teacher if kind == "teacher" else live.standard(*trial.problem.reference), 0
    optimizer, _, extra = method.partition("+")
    gradient = replace(ours.THOROUGH, radius=radius) if optimizer == "gradient" else None
    result = ours.result(trial, **ours.EXTRAS[extra], gradient=gradient)
    return result.solver, result.model_calls


def _divergence(trial: Trial, solver: Discretization, radius: float) -> dict[str, float]:
    student, teacher = (
        divergence.sampling_map(trial.live.model, s) for s in (solver, trial.live.teacher)
    )
    z = divergence.normal_points(POINTS, trial.problem.shape[0], trial.seed)
    found = divergence.compare(student, teacher, z)
    return {
        "kl": found.kl,
        "bound": found.bound(radius),
        "soft_loss": divergence.soft_loss(student, teacher, found, radius),
        "zero_loss_radius": found.radius,
        "zero_loss_bound": found.bound(found.radius),
        "inverted": found.inverted,
    }


def _stress(trial: Trial, solver: Discretization) -> dict[str, float]:
    noise, live = trial.problem.noises(SAMPLES, FRECHET_SEED + trial.seed), trial.live
    student, teacher = (live.samples(s, noise) for s in (solver, live.teacher))
    ratio = spread(student) / spread(teacher)
    return {"heldout_error": trial.problem.error(live, solver), "spread_to_teacher": ratio}


def _measures(trial: Trial, solver: Discretization) -> dict[str, float]:
    means, stds, _ = digits_components()
    generator = torch.Generator().manual_seed(trial.seed)
    chosen = torch.randint(len(means), (SAMPLES,), generator=generator)
    real = means[chosen] + stds[0] * torch.randn(SAMPLES, 64, generator=generator)
    noise = trial.problem.noises(SAMPLES, FRECHET_SEED + trial.seed)
    samples = trial.live.samples(solver, noise)
    found = sample_quality.measures(real, samples, seed=trial.seed)
    found["inception_score"] = sample_quality.inception_score(_classifier()(samples))
    return found | _stress(trial, solver)


@functools.cache
def _classifier() -> Any:
    return sample_quality.digits_classifier()
