"""Constants of Gauss-Newton: the progress of a descent from two starts, on a smooth exact problem.

The digits' kernel density with std 0.35 and Stable Diffusion's noise levels is about as smooth as a
trained network. Teacher: Heun, 20 Karras steps. Each row is one descent of 12 iterations (`long`:
40, on 64 fixed noises); its best schedule on 32 validation noises is measured on 400 new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.comparison import geometric_mean
from benchmarks.problems.mixtures import digits
from ld3.metrics import Distance
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.solver_parameters import SolverParameters
from ld3.teacher import TeacherSamples, sample_teacher
from ld3.training.gauss_newton import GaussNewton, GaussNewtonSettings
from ld3.training.validation import Objective, errors

TITLE = "Gauss-Newton's constants on digits (std 0.35): test error / best standard scheduler's"
KEYS = ("settings", "sampler", "steps", "start")
COLUMNS = {
    "settings": 18,
    "sampler": 9,
    "steps": 5,
    "start": 7,
    "ratio": 7,
    "error_learned": 13,
    "model_calls": 11,
}
DEFAULT = GaussNewtonSettings()
SETTINGS = {
    "default": (12, DEFAULT),
    "largest_step 0.3": (12, replace(DEFAULT, largest_step=0.3)),
    "damping 0.1": (12, replace(DEFAULT, damping=0.1)),
    "memory 0.85": (12, replace(DEFAULT, memory=0.85)),
    "long": (40, replace(DEFAULT, memory=0.0, damping=0.01, noises=64, smallest_step=0.02)),
}
SCHEDULERS = ("karras", "beta", "exponential", "normal")
NOISES = 64, 32, 400  # for training, validation and test


def cells() -> Iterator[dict[str, Any]]:
    """Every combination measured."""
    for settings in SETTINGS:
        for sampler in ("dpmpp_2m", "euler", "ipndm"):
            for steps in (4, 6):
                for start in ("karras", "beta"):
                    yield {"settings": settings, "sampler": sampler, "steps": steps, "start": start}


def row(settings: str, sampler: str, steps: int, start: str) -> dict[str, Any]:
    """One descent."""
    import comfy.model_sampling
    import comfy.samplers

    from ld3.comfy import core_samplers

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    sampling = Sampling(None)
    sigma_min, sigma_max = float(sampling.sigma_min), float(sampling.sigma_max)
    denoise = digits(std=0.35).denoise
    model = Model(denoise, LOG_SIGMA, sigma_min, sigma_max, batch_size=sum(NOISES))
    traced = core_samplers.traced_sampler(core_samplers.sampler_object(sampler), sampling)
    training, validation, test = _samples(model, sampling)
    schedules = {n: comfy.samplers.calculate_sigmas(sampling, n, steps) for n in SCHEDULERS}
    standard = {name: traced.discretization(sigmas) for name, sigmas in schedules.items()}
    best = min(float(errors(model, solver, test).mean()) for solver in standard.values())
    scale = float(errors(model, standard["karras"], validation).median())
    iterations, constants = SETTINGS[settings]
    levels = StepParameters(LOG_SIGMA, sigma_max, sigma_min)
    parameters = SolverParameters.of_steps(traced, levels, sigma_max, steps)
    # states are not matched: without data_std
    objective = Objective(model, Distance("pseudo-huber", scale))
    theta = levels.from_sigmas(schedules[start])
    descent = GaussNewton(objective, parameters, theta, iterations, constants)
    order = torch.Generator().manual_seed(0)
    model.calls, visited = 0, []
    for _ in range(iterations):
        chosen = torch.randperm(len(training), generator=order)[: constants.noises]
        solver = parameters.discretization(descent.step(training[chosen]))
        visited.append((objective.error(solver, validation), solver))
    calls = model.calls
    error = float(errors(model, min(visited, key=lambda v: v[0])[1], test).mean())
    return {
        "settings": settings,
        "sampler": sampler,
        "steps": steps,
        "start": start,
        "ratio": error / best,
        "error_learned": error,
        "model_calls": calls,
    }


def _samples(model: Model, sampling: Any) -> tuple[TeacherSamples, TeacherSamples, TeacherSamples]:
    """The teacher's samples for training, validation and test."""
    import comfy.samplers

    from ld3.comfy import core_samplers

    heun = core_samplers.traced_sampler(core_samplers.sampler_object("heun"), sampling)
    teacher = heun.discretization(comfy.samplers.calculate_sigmas(sampling, "karras", 20))
    noise = torch.randn(sum(NOISES), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    samples = sample_teacher(model, teacher, noise, torch.zeros_like(noise))
    test = NOISES[0] + NOISES[1]
    return samples[: NOISES[0]], samples[NOISES[0] : test], samples[test:]


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric mean ratio per setting."""
    lines = []
    for settings in dict.fromkeys(row["settings"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["settings"] == settings]
        lines.append(f"{settings:>18}: geometric mean ratio {geometric_mean(ratios):.3f}")
    return "\n".join(lines)
