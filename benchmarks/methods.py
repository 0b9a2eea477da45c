"""The methods of the benchmark `learning`: each finds a way to sample, and tells what it cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ld3.parameters import check_sigmas
from ld3.solver import Plan
from ld3.teacher import Pairs, student_samples
from ld3.training.gradient import ADAM
from ld3.training.loop import Learned

from . import baselines, runs
from .official import NOISE_PREDICTING, OfficialSettings, OfficialTraining
from .subjects import TRAINING_SEED, Stage, Subject

DMN_ORDER = {"euler": 1, "dpmpp_2m": 2}  # the others are of order 3
GITS_NOISES = 256
EXTRAS: dict[str, dict[str, Any]] = {
    "": {},
    "decoupled": {"decoupled": True},
    "solver": {"decoupled": True, "order": 1},
    "solver+mix": {"decoupled": True, "order": 1, "output_mix": True},
}
"""What is learned besides steps, as fields of `TrainingSettings`."""


class Made(NamedTuple):
    """A way to sample, and the calls it took to find it."""

    plan: Plan
    model_calls: int = 0
    teacher_calls: int = 0


def make(subject: Subject, stage: Stage, sampler: str, steps: int, method: str, seed: int) -> Made:
    """The plan a method comes to, with its calls."""
    model, kind = stage.model, method.partition(":")
    if method == "teacher":
        return Made(stage.teacher)
    if kind[0] == "scheduler":
        return Made(stage.standard(sampler, kind[2], steps))
    if method == "ays":
        return Made(stage.plan(sampler, baselines.ays(steps)))
    if method == "gits":
        return Made(stage.plan(sampler, baselines.gits_table(steps)))
    if method == "dmn":
        order = DMN_ORDER.get(sampler, 3)
        found = baselines.dmn(steps, model.sigma_max, model.sigma_min, order)
        return Made(stage.plan(sampler, found))
    learn: Callable[[Subject, Stage, str, int, str, int], Made] = {
        "gits-dp": _gits,
        "ld3-official": _official,
    }.get(method, _ours)
    return learn(subject, stage, sampler, steps, method, seed)


def _gits(subject: Subject, stage: Stage, sampler: str, steps: int, method: str, seed: int) -> Made:
    costs = subject.once(f"gits {seed}", lambda: gits_costs(subject, stage, seed))
    teacher = stage.teacher
    found = stage.plan(sampler, teacher.sigmas[baselines.cheapest_path(costs, steps)])
    return Made(found, teacher_calls=GITS_NOISES * teacher.table.model_calls)


def gits_costs(subject: Subject, stage: Stage, seed: int) -> Tensor:
    """Mean costs along the teacher's trajectories of fresh noises: the same for all students."""
    noise = subject.noises(GITS_NOISES, TRAINING_SEED + seed)
    zeros, costs = torch.zeros_like(noise), []
    teacher = stage.teacher
    for batch in Pairs(noise, zeros, zeros).batches(subject.batch, stage.model.device):
        result, history = student_samples(stage.model, teacher, batch)
        states, outputs = baselines.trajectory(teacher.table, history, result)
        costs.append(baselines.gits_costs(states, outputs, teacher.sigmas))
    return torch.stack(costs).mean(0)


def _official(
    subject: Subject, stage: Stage, sampler: str, steps: int, method: str, seed: int
) -> Made:
    settings, model = OfficialSettings(), stage.model
    model.calls = 0
    pairs = subject.pairs(
        stage, settings.training_pairs + settings.validation_pairs, TRAINING_SEED + seed
    )
    teacher_calls, model.calls = model.calls, 0
    training = OfficialTraining(
        model,
        stage.traced(sampler),
        steps,
        pairs,
        seed,
        sampler in NOISE_PREDICTING,
        subject.variance_preserving,
        settings,
    )
    return Made(training.run(), model.calls, teacher_calls)


def _ours(subject: Subject, stage: Stage, sampler: str, steps: int, method: str, seed: int) -> Made:
    base, _, extra = method.partition("+")
    learned = runs.learn(
        subject,
        stage,
        sampler,
        steps,
        seed,
        **EXTRAS[extra],
        gradient=ADAM if base == "gradient" else None,
    )
    return made(learned, stage.teacher)


def made(learned: Learned, teacher: Plan) -> Made:
    """A learning run's plan and calls; its test noises only report, and are not counted."""
    check_sigmas(learned.sigmas)
    report = learned.report
    unused = runs.TEST_NOISES * teacher.table.model_calls
    return Made(runs.plan_of(learned), report.training_calls, report.teacher_calls - unused)
