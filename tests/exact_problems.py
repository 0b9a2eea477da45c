"""Problems whose denoiser is exact, with ComfyUI's noise levels, and trainings on them.

Test modules import this as `.exact_problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_sampling as model_sampling
import comfy.samplers
import torch
from torch import Tensor

from benchmarks.problems.mixtures import digits, gmm16, mixture_denoiser
from benchmarks.problems.noise_levels import karras
from ld3.comfy.core_samplers import sampler_object, traced_sampler
from ld3.few_parameters import FewParameters
from ld3.model import Model
from ld3.parameters import StepParameters
from ld3.solver_parameters import SolverParameters
from ld3.table import Discretization
from ld3.tracing import TracedSampler
from ld3.training.gauss_newton import GaussNewtonSettings
from ld3.training.problem import TrainingProblem
from ld3.training.report import Progress
from ld3.training.settings import TrainingSettings
from ld3.training.train import Learned, train

__all__ = ["digits", "gmm16", "karras", "mixture_denoiser"]

# heavy-tailed errors: one noise in a hundred falls into another mode, so many must judge
SETTINGS = TrainingSettings(
    steps=5, training_noises=64, validation_noises=256, test_noises=256, descents=3, iterations=8,
    gauss_newton=GaussNewtonSettings(noises=16),
)  # fmt: skip
SMOOTH = replace(SETTINGS, training_noises=32, validation_noises=32, test_noises=64)
SMALL = replace(
    SETTINGS, steps=3, training_noises=4, validation_noises=4, test_noises=4, iterations=2,
    gauss_newton=GaussNewtonSettings(noises=4),
)  # fmt: skip
BATCH = 64


class Problem(NamedTuple):
    """A model, the shape of one latent, and ComfyUI's noise levels for it."""

    model: Model
    shape: tuple[int, ...]
    sampling: Any


def problem(name: str) -> Problem:
    """ "digits", "gmm16" or "flow" (gmm16 as a flow model), in batches of 64."""
    model = digits() if name == "digits" else gmm16(flow=name == "flow")
    model.batch_size = BATCH
    return Problem(model, (1, 8, 8) if name == "digits" else (16,), sampling_of(model))


def sampling_of(model: Model) -> Any:
    """ComfyUI's noise levels for a variance-exploding or a flow model."""
    if model.coordinate.name == "logit":
        return type("Flow", (model_sampling.ModelSamplingDiscreteFlow, model_sampling.CONST), {})()
    bases = (model_sampling.ModelSamplingContinuousEDM, model_sampling.EDM)
    sampling = type("Sampling", bases, {})()
    sampling.set_parameters(model.sigma_min, model.sigma_max, 1.0)
    return sampling


def sampler_of(model: Model, name: str) -> TracedSampler:
    """ComfyUI's sampler of this name, with the model's noise levels."""
    return traced_sampler(sampler_object(name), sampling_of(model))


def scheduled(model: Model, sampler: str, steps: int, scheduler: str = "karras") -> Discretization:
    """A sampler at the noise levels of one of ComfyUI's schedulers."""
    sigmas = comfy.samplers.calculate_sigmas(sampling_of(model), scheduler, steps).float()
    return sampler_of(model, sampler).discretization(sigmas)


def standard_schedules(sampling: Any, steps: int) -> dict[str, Tensor]:
    """What ComfyUI's schedulers make of these noise levels."""
    schedules = {
        name: comfy.samplers.calculate_sigmas(sampling, name, steps)
        for name in comfy.samplers.SCHEDULER_NAMES
    }
    return {n: s.float() for n, s in schedules.items() if bool((s.diff() < 0).all())}


def levels_of(model: Model) -> StepParameters:
    """The free noise levels of a complete sampling."""
    return StepParameters(model.coordinate, model.sigma_max, model.sigma_min)


def parameters_of(
    model: Model, sampler: TracedSampler, steps: int, **extras: Any
) -> SolverParameters:
    """What is learned of a sampler; extras: `decoupled` and `order`."""
    steps_alone = SolverParameters.of_steps(sampler, levels_of(model), model.sigma_max, steps)
    return replace(steps_alone, **extras)


def few_parameters_of(
    model: Model, sampler: TracedSampler, steps: int, **extras: Any
) -> FewParameters:
    """The same with few numbers for the extras."""
    return FewParameters(parameters_of(model, sampler, steps, **extras))


def training_task(
    given: Problem, settings: TrainingSettings = SETTINGS, sampler: str = "dpmpp_2m", **changes: Any
) -> TrainingProblem:
    """A student of this sampler and all standard schedules, with a teacher of 24 steps.

    Args:
        changes: of the task's attributes.
    """
    task = TrainingProblem(
        given.model,
        sampler_of(given.model, sampler),
        scheduled(given.model, "dpmpp_2m", 24, "beta"),
        float(given.sampling.sigma_max),
        standard_schedules(given.sampling, settings.steps),
    )
    return replace(task, **changes)


def noises(given: Problem, settings: TrainingSettings = SETTINGS) -> tuple[Tensor, Tensor]:
    """Start noises and empty latents for a training."""
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(settings.noises, *given.shape, generator=generator)
    return noise, torch.zeros_like(noise)


def learn(
    given: Problem,
    settings: TrainingSettings,
    sampler: str = "dpmpp_2m",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **changes: Any,
) -> Learned:
    """Train on `training_task` with `noises`."""
    task = training_task(given, settings, sampler, **changes)
    return train(task, settings, *noises(given, settings), on_progress=on_progress)
