"""Learned solvers: what each extra of a sampler is worth, at counted model calls.

Three models: digits and gmm16, whose denoisers are exact, and the demo model (cfg 1, one prompt).
A row is one sampler in so many steps with one extra, and one seed, which draws the training noises.

`schedule` "standard:<name>" is one of ComfyUI's; the extra is fitted to it as LD3 Distill Solver
does:

- `none`: the sampler itself; no seed changes it.
- `d-ode`: D-ODE's lambdas from 16 training and 16 validation noises. Its model calls are those of
  its teacher too (dpmpp_2m in ten times the steps), which passes through the student's states and
  serves nobody else; `teacher_calls` are 0.

`schedule` "learned": a whole learning run by Gauss-Newton on 64 training and 64 validation noises
with 20 iterations, twice what the benchmark `learning` takes:

- `none`: time steps alone; `d-ode`: lambdas fitted to them; `decoupled`: decoupled times;
  `solver`: these and corrections of the sampler's coefficients, one output back; `solver+mix`:
  these and the output mix, which is the node's "time steps + full solver".
- `gs-published`: `benchmarks.gs` at the least of its published budgets; `gs-long` at the largest,
  some 30 times that, for one seed on the exact problems. A solver of its own, found once for
  (model, steps, seed) and repeated beside every sampler; on the demo model in 4 and 6 steps only.

`heldout_error` is the mean RMSE over noises nobody trained on (512; demo 64) to one reference, Heun
with 60 karras steps. `frechet` compares 4,096 samples with the data's exact moments; not on the
demo model, where samples cost most. `model_calls` are network evaluations of one sample that
learning took, a backward pass counted as two, a repeated forward pass as one, screening and
validation included; `teacher_calls` those of the teacher that is common to all (dpmpp_2m, 20 karras
steps). `sample_calls` is what a sample then costs.

`trajectory_distance`, of `none` and `d-ode`: after each call, how far the student's state is from
the state of D-ODE's teacher at the same noise level, RMSE, mean over 24 held-out noises; the last
entry is the result's. Its calls are nobody's.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ld3.metrics import rmse
from ld3.rollout import combine
from ld3.solver import Plan
from ld3.teacher import Pairs, student_samples
from ld3.training.dode import distill, teacher_sigmas, teacher_states, with_lambdas

from . import gs, runs, subjects
from .methods import EXTRAS, Made, made
from .plot_solvers import plot  # noqa: F401
from .subjects import HELDOUT_SEED, TEACHER, TRAINING_SEED, Stage, Subject
from .summary_solvers import DISTILL_NOISES, summary  # noqa: F401

TITLE = "Solvers: error to a common reference with each learned extra, at counted calls"
KEYS = ("model", "sampler", "steps", "seed", "schedule", "extras")
COLUMNS = {
    "model": 6,
    "sampler": 8,
    "steps": 5,
    "seed": 4,
    "schedule": 20,
    "extras": 12,
    "heldout_error": 13,
    "frechet": 9,
    "model_calls": 11,
    "teacher_calls": 13,
    "sample_calls": 12,
    "seconds": 8,
}
EXACT, STEPS, SEEDS = ("digits", "gmm16"), (3, 4, 5, 6, 8), (0, 1, 2)
STANDARD_SAMPLERS = ("euler", "ipndm", "deis", "dpmpp_2m", "heun", "dpm_2")
SCHEDULERS = ("karras", "exponential", "beta")
DEMO_SCHEDULERS = (*SCHEDULERS, "normal")  # on the exact problems that is exponential
DEMO_STANDARD_STEPS = (4, 6, 8)
LEARNED_SAMPLERS = ("dpmpp_2m", "ipndm", "euler")
DEMO_LEARNED_SAMPLERS = ("dpmpp_2m",)
DEMO_LEARNED_STEPS = (4, 6, 8, 3, 5)  # what the summary asks for comes first
LEARNED = {
    "none": EXTRAS[""],
    "d-ode": {"dode": True},
    **{name: EXTRAS[name] for name in ("decoupled", "solver", "solver+mix")},
}
BUDGET = {"training_noises": 64, "validation_noises": 64, "iterations": 20}
GS = {"gs-published": gs.PUBLISHED, "gs-long": gs.LONG}
GS_STEPS = (4, 6)  # of the summary
TRAJECTORY_NOISES = 24


def cells() -> Iterator[dict[str, Any]]:
    """Every row: exact problems first, what costs most last in each part."""
    once, learned = SEEDS[:1], tuple(LEARNED)
    for model in EXACT:
        yield from _standard_cells(model, STEPS, SEEDS)
    for model in EXACT:
        yield from _learned_cells(model, LEARNED_SAMPLERS, STEPS, SEEDS, (*learned, "gs-published"))
    for model in EXACT:
        yield from _learned_cells(model, LEARNED_SAMPLERS, GS_STEPS, once, ("gs-long",))
    yield from _standard_cells("demo", DEMO_STANDARD_STEPS, once)
    yield from _learned_cells("demo", DEMO_LEARNED_SAMPLERS, DEMO_LEARNED_STEPS, once, learned)
    yield from _learned_cells("demo", DEMO_LEARNED_SAMPLERS, GS_STEPS, once, ("gs-published",))


def _standard_cells(
    model: str, all_steps: tuple[int, ...], seeds: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    for sampler in STANDARD_SAMPLERS:
        for steps in all_steps:
            for scheduler in SCHEDULERS if model in EXACT else DEMO_SCHEDULERS:
                for extras, seed in [("none", 0), *(("d-ode", seed) for seed in seeds)]:
                    schedule = f"standard:{scheduler}"
                    yield _cell(model, sampler, steps, seed, schedule, extras)


def _learned_cells(
    model: str,
    samplers: tuple[str, ...],
    all_steps: tuple[int, ...],
    seeds: tuple[int, ...],
    all_extras: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    for steps in all_steps:
        for seed in seeds:
            for extras in all_extras:
                for sampler in samplers:  # innermost, so that a repeated row follows the first
                    yield _cell(model, sampler, steps, seed, "learned", extras)


def _cell(*values: Any) -> dict[str, Any]:
    return dict(zip(KEYS, values, strict=True))


def row(**cell: Any) -> dict[str, Any]:
    """Find one way to sample and measure it."""
    torch.set_num_threads(1)  # more make small tensors slower
    subject = subjects.load(cell["model"])
    measure = functools.partial(_measured, subject, cell)
    if cell["extras"] not in GS:
        return cell | measure()
    return cell | subject.once(f"{cell['extras']} {cell['steps']} {cell['seed']}", measure)


def _measured(subject: Subject, cell: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()

    def task(stage: Stage) -> tuple[Made, float, list[float] | None]:
        found = find(subject, stage, **cell)
        followed = cell["extras"] in ("none", "d-ode")
        distances = trajectory_distance(subject, stage, found.plan) if followed else None
        return found, subject.error(stage, found.plan), distances

    found, error, distances = subject.run(task)
    exact = cell["model"] in EXACT
    frechet, samples = subject.frechet(found.plan, cell["seed"]) if exact else (None, 0)
    return {
        "heldout_error": error,
        "frechet": frechet,
        "frechet_samples": samples,
        "model_calls": found.model_calls,
        "teacher_calls": found.teacher_calls,
        "sample_calls": found.plan.table.model_calls,
        "trajectory_distance": distances,
        "sigmas": found.plan.sigmas.tolist(),
        "eval_sigmas": found.plan.table.eval_sigmas.tolist(),
        "seconds": time.monotonic() - started,
    }


def find(
    subject: Subject,
    stage: Stage,
    model: str,
    sampler: str,
    steps: int,
    seed: int,
    schedule: str,
    extras: str,
) -> Made:
    """A cell's plan, with the calls it took."""
    kind, _, scheduler = schedule.partition(":")
    if kind == "standard":
        plan = stage.standard(sampler, scheduler, steps)
        return Made(plan) if extras == "none" else distilled(subject, stage, plan, seed)
    if extras in GS:
        return generalised(subject, stage, steps, seed, GS[extras])
    learned = runs.learn(subject, stage, sampler, steps, seed, **LEARNED[extras], **BUDGET)
    return made(learned, stage.teacher)


def distilled(subject: Subject, stage: Stage, plan: Plan, seed: int) -> Made:
    """The plan with D-ODE's lambdas."""
    noise = subject.noises(2 * DISTILL_NOISES, TRAINING_SEED + seed)
    pairs = Pairs(noise, torch.zeros_like(noise), noise)  # targets are not used
    stage.model.calls = 0
    found = distill(
        stage.model,
        plan,
        stage.traced(TEACHER[0]),
        pairs[:DISTILL_NOISES],
        pairs[DISTILL_NOISES:],
        subject.training_batch,
    )
    table = with_lambdas(plan.table, found.lambdas)
    return Made(Plan(plan.sigmas, table), stage.model.calls)


def generalised(
    subject: Subject, stage: Stage, steps: int, seed: int, settings: gs.GsSettings
) -> Made:
    """The Generalised Solver, trained as published."""

    def taught() -> tuple[Pairs, int]:
        stage.model.calls = 0
        made = subject.pairs(stage, settings.training_pairs, TRAINING_SEED + seed)
        return made, stage.model.calls

    # paid for in every row, but made once
    pairs, teacher_calls = subject.once(f"gs pairs {settings.training_pairs} {seed}", taught)
    stage.model.calls = 0
    plan = gs.GsTraining(stage.model, steps, pairs, seed, settings).run()
    return Made(plan, stage.model.calls, teacher_calls)


def trajectory_distance(subject: Subject, stage: Stage, plan: Plan) -> list[float]:
    """How far the states after each call, and the result, are from D-ODE's teacher: M numbers."""
    model, table, before = stage.model, plan.table, stage.model.calls
    noise = subject.noises(subject.heldout_noises, HELDOUT_SEED)[:TRAJECTORY_NOISES]
    (batch,) = Pairs(noise, torch.zeros_like(noise), noise).batches(len(noise), model.device)

    def taught() -> list[Tensor]:
        sigmas = teacher_sigmas(model, plan, len(plan.sigmas) - 1)
        teacher = Plan(sigmas, stage.traced(TEACHER[0]).table(sigmas))
        return teacher_states(model, teacher, plan, batch)

    # the same for all samplers and extras whose states are at these levels
    wanted = subject.once(f"trajectory {table.state_sigmas.tolist()}", taught)
    _, history = student_samples(model, plan, batch)
    model.calls = before
    return [
        float(rmse(combine(table.weights[m + 1, : m + 2], history) - wanted[m]).mean())
        for m in range(table.model_calls)
    ]
