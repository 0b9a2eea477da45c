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
from ld3.metrics import Distance, rmse
from ld3.model import Model
from ld3.parameters import LOG_SIGMA, StepParameters
from ld3.solver import Plan
from ld3.student import Student
from ld3.teacher import Pairs, student_samples, teach
from ld3.training.gauss_newton import GaussNewton, GaussNewtonSettings

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

    from ld3.comfy import samplers

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    sampling = Sampling(None)
    model = Model(
        digits(std=0.35).denoise, LOG_SIGMA, float(sampling.sigma_min), float(sampling.sigma_max)
    )
    traced = samplers.traceable(samplers.sampler_object(sampler), sampling)

    def plan(sigmas: torch.Tensor) -> Plan:
        return Plan(sigmas, traced.table(sigmas))

    training, validation, test = _pairs(model, sampling)

    def residuals(sigmas: torch.Tensor, pairs: Pairs, measure: Any) -> torch.Tensor:
        return measure(student_samples(model, plan(sigmas), pairs)[0] - pairs.target)

    schedules = {n: comfy.samplers.calculate_sigmas(sampling, n, steps) for n in SCHEDULERS}
    best = min(float(residuals(s, test, rmse).mean()) for s in schedules.values())
    distance = Distance(
        "pseudo-huber", float(residuals(schedules["karras"], validation, rmse).median())
    )
    iterations, constants = SETTINGS[settings]
    parameters = StepParameters(LOG_SIGMA, model.sigma_max, model.sigma_min)
    student = Student(traced, parameters, model, steps, plan(schedules[start]).table.model_calls)
    descent = GaussNewton(student, parameters.from_sigmas(schedules[start]), iterations, constants)
    order = torch.Generator().manual_seed(0)
    model.calls, visited = 0, []
    for _ in range(iterations):
        chosen = torch.randperm(len(training), generator=order)[: constants.noises]
        u = descent.step(training[chosen], distance, batch_size=64)
        sigmas = parameters.sigmas(u)
        visited.append((float(residuals(sigmas, validation, distance.value).mean()), sigmas))
    calls = model.calls
    error = float(residuals(min(visited, key=lambda v: v[0])[1], test, rmse).mean())
    return {
        "settings": settings,
        "sampler": sampler,
        "steps": steps,
        "start": start,
        "ratio": error / best,
        "error_learned": error,
        "model_calls": calls,
    }


def _pairs(model: Model, sampling: Any) -> tuple[Pairs, Pairs, Pairs]:
    """64 training, 32 validation and 400 test noises with their teacher."""
    import comfy.samplers

    from ld3.comfy import samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 20)
    table = samplers.traceable(samplers.sampler_object("heun"), sampling).table(sigmas)
    noise = torch.randn(496, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    pairs = teach(model, Plan(sigmas, table), noise, torch.zeros_like(noise))
    return pairs[:64], pairs[64:96], pairs[96:]


def summary(rows: list[dict[str, Any]]) -> str:
    """Geometric mean ratio per setting."""
    lines = []
    for settings in dict.fromkeys(row["settings"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["settings"] == settings]
        lines.append(f"{settings:>18}: geometric mean ratio {geometric_mean(ratios):.3f}")
    return "\n".join(lines)
