"""Learned solvers: what each extra of a sampler contributes, at counted model calls.

Three models: digits and gmm16, whose denoisers are exact, and the demo model (cfg 1, one prompt).
A row is one sampler with a number of steps, one extra, and one seed, which determines the training
noises.

`schedule` "standard:<name>" is one of ComfyUI's; the extra is fitted to it as in LD3 Distill
Solver:

- `none`: the sampler itself, which does not depend on the seed; also for `OFTEN_CHOSEN`.
- `d-ode`: D-ODE's lambdas from 16 training and 16 validation noises. Its model calls include those
  of its own teacher (dpmpp_2m in ten times the steps, through the student's states);
  `teacher_calls` are 0.

`schedule` "learned": a whole learning run by Gauss-Newton with the node's quality best:

- `none`: time steps alone; `d-ode`: lambdas fitted to them; `decoupled`: decoupled times;
  `solver`: these and corrections of the sampler's coefficients, one output back; `solver+mix`:
  these and the output mix, which is the node's "time steps + full solver".
- `gs-published`: `methods.gs` with the smallest of its published budgets, Stable Diffusion's;
  `gs-edm` with that for EDM's pixel models, 30 times as much; `gs-long` with that for other latent
  models, as much again, for one seed. It is an independent solver, trained once for (model, steps,
  seed) and repeated for every sampler; the larger budgets and the demo model in 4 and 6 steps only.

`heldout_error` is the mean RMSE over noises that no method was trained on (512; demo 64) to one
reference, Heun with 60 karras steps. `frechet` compares 4,096 samples with the data's exact
moments; not on the demo model, where samples are expensive. `model_calls` are the network
evaluations that learning needed, one per call and sample in the batch: a backward pass counts as
two, a recomputed forward pass as one; screening and validation are included. `teacher_calls` are
those of the teacher that all methods share (dpmpp_2m, 20 karras steps). `sample_calls` is then the
cost of one sample.

`trajectory_distance`, for `none` and `d-ode`: after each call, the distance of the student's state
to the state of D-ODE's teacher at the same noise level (RMSE, mean over 24 held-out noises); the
last entry is for the result. Its calls do not count.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import gs, ours
from benchmarks.methods.trial import Result, Trial
from benchmarks.problems import registry
from benchmarks.problems.live_model import LiveModel
from benchmarks.problems.problem import HELDOUT_SEED, Problem
from ld3.metrics import rmse
from ld3.table import Discretization, combine
from ld3.teacher import TeacherSamples
from ld3.training.budget import calls_of
from ld3.training.dode import distill, teacher_sigmas, teacher_states

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
OFTEN_CHOSEN = tuple(
    (sampler, scheduler)
    for sampler in ("euler", "res_multistep")
    for scheduler in ("simple", "beta")
)
"""What ComfyUI's users often sample with: measured as it is."""
STANDARD_SAMPLERS = ("euler", "ipndm", "deis", "dpmpp_2m", "heun", "dpm_2")
SCHEDULERS = ("karras", "exponential", "beta")
DEMO_SCHEDULERS = (*SCHEDULERS, "normal")  # on the exact problems that is exponential
DEMO_STANDARD_STEPS = (4, 6, 8)
LEARNED_SAMPLERS = ("dpmpp_2m", "ipndm", "euler")
DEMO_LEARNED_SAMPLERS = ("dpmpp_2m",)
DEMO_LEARNED_STEPS = (4, 6, 8, 3, 5)  # those of the summary come first
LEARNED = {
    "none": ours.EXTRAS[""],
    "d-ode": {"dode": True},
    **{name: ours.EXTRAS[name] for name in ("decoupled", "solver", "solver+mix")},
}
GS = {"gs-published": gs.PUBLISHED, "gs-edm": gs.EDM, "gs-long": gs.LONG}
GS_STEPS = (4, 6)  # of the summary
TRAJECTORY_NOISES = 24
DISTILL_NOISES = 16  # for training, and as many for validation


def cells() -> Iterator[dict[str, Any]]:
    """Every row: exact problems first, in each part the most expensive last."""
    once, learned = SEEDS[:1], tuple(LEARNED)
    for model in EXACT:
        yield from _standard_cells(model, STEPS, SEEDS)
    for model in EXACT:
        yield from _learned_cells(model, LEARNED_SAMPLERS, STEPS, SEEDS, (*learned, "gs-published"))
    for model in EXACT:
        yield from _learned_cells(model, LEARNED_SAMPLERS, GS_STEPS, SEEDS, ("gs-edm",))
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
    for sampler, scheduler in OFTEN_CHOSEN:
        if sampler not in STANDARD_SAMPLERS or scheduler not in SCHEDULERS:
            for steps in all_steps:
                yield _cell(model, sampler, steps, 0, f"standard:{scheduler}", "none")


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
    """Find one solver and measure it."""
    torch.set_num_threads(1)  # more make small tensors slower
    problem = registry.load(cell["model"])
    measure = functools.partial(_measured, problem, cell)
    if cell["extras"] not in GS:
        return cell | measure()
    return cell | problem.cached(f"{cell['extras']} {cell['steps']} {cell['seed']}", measure)


def _measured(problem: Problem, cell: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()

    def task(live: LiveModel) -> tuple[Result, float, list[float] | None]:
        trial = Trial(problem, live, cell["sampler"], cell["steps"], cell["seed"])
        result, distances = find(trial, cell["schedule"], cell["extras"]), None
        if cell["extras"] in ("none", "d-ode"):
            distances = trajectory_distance(problem, live, result.solver)
        return result, problem.error(live, result.solver), distances

    result, error, distances = problem.run(task)
    exact = cell["model"] in EXACT
    frechet, samples = problem.frechet(result.solver, cell["seed"]) if exact else (None, 0)
    return {
        "heldout_error": error,
        "frechet": frechet,
        "frechet_samples": samples,
        "model_calls": result.model_calls,
        "teacher_calls": result.teacher_calls,
        "sample_calls": result.solver.table.model_calls,
        "trajectory_distance": distances,
        "sigmas": result.solver.sigmas.tolist(),
        "eval_sigmas": result.solver.table.eval_sigmas.tolist(),
        "seconds": time.monotonic() - started,
    }


def find(trial: Trial, schedule: str, extras: str) -> Result:
    """A cell's solver, with the calls needed to find it."""
    live = trial.live
    kind, _, scheduler = schedule.partition(":")
    if kind == "standard":
        solver = live.standard(trial.sampler, scheduler, trial.steps)
        return Result(solver) if extras == "none" else distilled(trial, solver)
    if extras in GS:
        return generalised(trial, GS[extras])
    return ours.result(trial, calls=calls_of("best", trial.steps), **LEARNED[extras])


def distilled(trial: Trial, solver: Discretization) -> Result:
    """The solver with D-ODE's lambdas."""
    live, noise = trial.live, trial.noises(2 * DISTILL_NOISES)
    samples = TeacherSamples(noise, torch.zeros_like(noise), noise)  # targets are not used
    training, validation = samples[:DISTILL_NOISES], samples[DISTILL_NOISES:]
    live.model.calls = 0
    with trial.training_batches():
        found = distill(live.model, solver, live.traced(live.recipe.sampler), training, validation)
    return Result(found.student, live.model.calls)


def generalised(trial: Trial, settings: gs.GsSettings) -> Result:
    """The Generalised Solver, trained as published."""
    model = trial.live.model
    pairs, teacher_calls = gs.training_pairs(trial, settings)  # counted in every row
    model.calls = 0
    solver = gs.GsTraining(model, trial.steps, pairs, trial.seed, settings).run()
    return Result(solver, model.calls, teacher_calls)


def trajectory_distance(problem: Problem, live: LiveModel, solver: Discretization) -> list[float]:
    """Distances of the states after each call, and of the result, to D-ODE's teacher: M numbers."""
    model, table, before = live.model, solver.table, live.model.calls
    noise = problem.noises(problem.heldout_noises, HELDOUT_SEED)[:TRAJECTORY_NOISES]
    (batch,) = TeacherSamples(noise, torch.zeros_like(noise), noise).batches(model)

    def sampled() -> list[Tensor]:
        teacher = live.discretization(live.recipe.sampler, teacher_sigmas(model, solver))
        return teacher_states(model, teacher, solver, batch)

    # the same for all samplers and extras whose states are at these levels
    targets = problem.cached(f"trajectory {table.state_sigmas.tolist()}", sampled)
    _, history = model.sample(solver, batch.noise, batch.latent)
    model.calls = before
    return [
        float(rmse(combine(table.weights[m + 1, : m + 2], history) - targets[m]).mean())
        for m in range(table.model_calls)
    ]
