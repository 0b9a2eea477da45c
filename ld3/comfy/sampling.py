"""Sample with a saved schedule."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..schedule import Schedule, resampled
from ..table import Discretization, SolverTable
from ..tracing import SamplerFailed, UnsupportedSampler
from . import core_samplers
from .executor import TableSampler, executed
from .guided_run import GuidedRun, run
from .guiders import check_same_latents
from .job import GraphInputs
from .latents import latent_mask, latent_samples, nested, noise_for, packed
from .mismatch import differences, low_model_differences
from .two_models import LOW_MODEL

logger = logging.getLogger(__name__)
TABLE_TOLERANCE = 1e-4  # third-party samplers often compute in float32
TRAIN_ONE = "train a schedule for this model with LD3 Train Schedule"


def schedule_sampler(schedule: Schedule) -> comfy.samplers.KSAMPLER:
    """The SAMPLER of a schedule: core's own, or its table where that contains more than core's.

    A table also replaces a sampler that is not installed here. Of two models either samples a part.
    """
    if schedule.info.extras or not core_samplers.is_installed(schedule.info.sampler):
        return TableSampler(schedule)
    return core_samplers.sampler_object(schedule.info.sampler)


def sigmas_of_parts(schedule: Schedule) -> tuple[Any, Any]:
    """SIGMAS of each of two models; a node that is given those of one model stops and says so."""
    if schedule.plain_parts is not None:
        return schedule.plain_parts
    message = (
        f"schedule {schedule.name!r} is for one model: connect the output sigmas, not high_sigmas "
        "or low_sigmas, or train it with a low-noise model"
    )
    return ExecutionBlocker(message), ExecutionBlocker(message)


def check_deterministic(schedule: Schedule) -> None:
    """Raise ValueError if the installed sampler of that name can have no schedule at all."""
    guider = core_samplers.guider_of(schedule.info.prediction_type)
    try:
        _trace(schedule, guider)
    except UnsupportedSampler as error:
        name, sigmas = schedule.info.sampler, schedule.plain_sigmas
        reason = core_samplers.refusal(name, error, guider, sigmas)
        raise ValueError(f"schedule {schedule.name!r} cannot be used: {reason}") from error


def _trace(schedule: Schedule, guider: Any) -> SolverTable | None:
    """The table of the installed sampler of that name; None if it cannot be read."""
    name, sampling = schedule.info.sampler, guider.inner_model.model_sampling
    if not core_samplers.is_installed(name):
        return None
    try:
        core = core_samplers.sampler_object(name)
        boundary = schedule.info.boundary
        traced = core_samplers.traced_sampler(core, sampling, guider, boundary=boundary)
        return traced.table(schedule.sigmas)
    except SamplerFailed as error:  # one of another pack may need more than a stand-in model
        logger.info("LD3: the sampler %s could not be read: %s", name, error)
        return None


class PreparedSampling(NamedTuple):
    """How a schedule is sampled with a model, and what a user should know of it.

    Two models are sampled by their solver, with a boundary in place of a sampler's part.
    """

    sampler: comfy.samplers.KSAMPLER
    sigmas: Tensor
    cfg: float
    warnings: list[str]
    solver: Discretization | None = None
    boundary: float = 0.0


def prepared_sampling(
    schedule: Schedule,
    model: Any,
    cfg: float,
    denoise: float | None = None,
    latent: dict[str, Any] | None = None,
    low_model: Any = None,
) -> PreparedSampling:
    """Sampler, new sigmas, and warnings for a model, guidance scale, denoise strength and LATENT.

    The schedule's own, or with a lower denoise the same number of steps of a stretched schedule: as
    in KSampler, denoise d uses the last N of N/d steps. What was learned for the schedule's own
    levels is then not used.

    Args:
        denoise: the schedule's own if None.
        latent: what will be sampled; its size is not compared if None.
        low_model: the second of two models.

    Raises:
        ValueError: it cannot work: another kind of noise levels, a sampler that is not the one it
            was learned for, or more denoising than it was learned for.
    """
    info, sampling = schedule.info, model.get_model_object("model_sampling")
    _check_models(schedule, model, low_model)
    check_levels(schedule, sampling)
    _check_sampler(schedule, model)
    # a copy of the sigmas: uni_pc writes into the last one
    sampler, sigmas = schedule_sampler(schedule), schedule.sigmas.clone()
    denoise = info.denoise if denoise is None else denoise
    stretched = abs(denoise - info.denoise) >= 1e-6
    if stretched:
        sampler, sigmas = _stretched(schedule, denoise)
    shape = [] if latent is None else list(packed(latent_samples(model, latent))[0].shape[1:])
    warnings = differences(schedule, model, cfg, denoise, shape)
    warnings += low_model_differences(schedule, low_model)
    prepared = PreparedSampling(sampler, sigmas, cfg, warnings)
    if not info.boundary:
        return prepared
    solver = Discretization(sigmas, schedule.table)
    return for_two_models(prepared, model, info.boundary, None if stretched else solver)


def for_two_models(
    prepared: PreparedSampling, model: Any, boundary: float, solver: Discretization | None = None
) -> PreparedSampling:
    """The sampling of two models with a sampler and sigmas, or with a solver that is known."""
    if solver is None:
        guider = core_samplers.stand_in_guider(model)
        sampling = guider.inner_model.model_sampling
        traced = core_samplers.traced_sampler(prepared.sampler, sampling, guider, boundary=boundary)
        solver = traced.discretization(prepared.sigmas)
    return prepared._replace(solver=solver, boundary=boundary)


def _check_models(schedule: Schedule, model: Any, low_model: Any) -> None:
    """Raise ValueError unless there are as many models as the schedule is for, of one kind."""
    name, boundary = schedule.name, schedule.info.boundary
    if boundary and low_model is None:
        raise ValueError(
            f"schedule {name!r} is for two models: connect the one for noise levels below "
            f"{boundary:g} to {LOW_MODEL}"
        )
    if low_model is not None and not boundary:
        raise ValueError(
            f"schedule {name!r} is for one model, and {LOW_MODEL} is connected: disconnect it, or "
            f"train a schedule with both models"
        )
    if low_model is not None:
        check_same_latents(model, low_model, ("model", LOW_MODEL))


def check_levels(schedule: Schedule, sampling: Any) -> None:
    """Raise ValueError if a model's noise levels are of another kind than a schedule's.

    Args:
        sampling: the model's `model_sampling`.
    """
    kind = core_samplers.prediction_type(sampling)
    learned_kind, start = schedule.info.prediction_type, float(schedule.sigmas[0])
    if (kind == "flow") != (learned_kind == "flow"):
        raise ValueError(
            f"schedule {schedule.name!r} was learned for a model with {learned_kind!r} noise "
            f"levels, this model has {kind!r} ones; {TRAIN_ONE}"
        )
    if start > 1.001 * float(sampling.sigma_max):
        raise ValueError(
            f"schedule {schedule.name!r} starts at sigma {start:.4g}, this model's largest is "
            f"{float(sampling.sigma_max):.4g}; {TRAIN_ONE}"
        )


def _check_sampler(schedule: Schedule, model: Any) -> None:
    """Raise ValueError if the installed sampler of that name is another one."""
    if schedule.info.extras:
        return
    name, table = schedule.info.sampler, _trace(schedule, core_samplers.stand_in_guider(model))
    if table is None:
        return
    difference = table.distance(schedule.table)
    if difference > TABLE_TOLERANCE:
        raise ValueError(
            f"schedule {schedule.name!r} was learned for another sampler: {name!r} in this ComfyUI "
            f"differs (by {difference:.2g}); train the schedule again with LD3 Train Schedule"
        )


def _stretched(schedule: Schedule, denoise: float) -> tuple[comfy.samplers.KSAMPLER, Tensor]:
    info, learned_at = schedule.info, schedule.info.denoise
    if denoise > learned_at:
        raise ValueError(
            f"denoise is {denoise:g}, but schedule {schedule.name!r} was learned for "
            f"{learned_at:g}: use that or less, or train one for it"
        )
    if not core_samplers.is_installed(info.sampler):
        raise ValueError(
            f"denoise is {denoise:g}, but schedule {schedule.name!r} was made at {learned_at:g} "
            f"for the sampler {info.sampler!r}, which is not among those installed here: use "
            f"{learned_at:g}, or install the pack it comes from"
        )
    sigmas = resampled(schedule.plain_sigmas, int(info.steps * learned_at / denoise))[
        -(info.steps + 1) :
    ]
    return core_samplers.sampler_object(info.sampler), sigmas


def sample(inputs: GraphInputs, prepared: PreparedSampling, seed: int) -> dict[str, Any]:
    """Core sampling with a schedule's sampler and sigmas: SamplerCustom's result, bit for bit.

    Two models are sampled as in a training, bit for bit in batches of the same size.
    """
    model, latent, sigmas = inputs.model, inputs.latent_image, prepared.sigmas
    samples = latent_samples(model, latent)
    if prepared.solver is not None:
        return _output(latent, _sample_both(inputs, prepared, prepared.solver, seed))
    result = comfy.sample.sample_custom(
        model,
        noise_for(samples, seed, latent.get("batch_index")),
        prepared.cfg,
        prepared.sampler,
        sigmas,
        inputs.positive,
        inputs.negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return _output(latent, result)


def _output(latent: dict[str, Any], result: Any) -> dict[str, Any]:
    """The LATENT with other samples."""
    out = {
        k: v
        for k, v in latent.items()
        if k not in ("downscale_ratio_spacial", "downscale_ratio_temporal")
    }
    return out | {"samples": result}


def _sample_both(
    inputs: GraphInputs, prepared: PreparedSampling, solver: Discretization, seed: int
) -> Any:
    """Samples of two models, as a LATENT has them."""
    model, latent = inputs.model, inputs.latent_image
    samples = latent_samples(model, latent)
    (flat, shapes), steps = packed(samples), solver.steps
    noise = packed(noise_for(samples, seed, latent.get("batch_index")))[0].float()
    show = latent_preview.prepare_callback(model, steps)

    def report(state: dict[str, Any]) -> None:
        show(state["i"], nested(state["denoised"], shapes), nested(state["x"], shapes), steps)

    def task(guided: GuidedRun) -> Tensor:
        denoise, inner = guided.model, guided.model_wrap.inner_model
        latents = guided.latents(flat.float()).to(denoise.device)
        x = denoise.start(solver.sigmas, noise.to(denoise.device), latents)
        hidden = not comfy.utils.PROGRESS_BAR_ENABLED
        result = executed(solver.table, denoise, x, report, hidden)
        end = solver.sigmas[-1].to(result)
        return inner.process_latent_out(guided.sampling.inverse_noise_scaling(end, result).float())

    guider = replace(inputs, boundary=prepared.boundary).guider(prepared.cfg)
    result = run(guider, samples, solver.sigmas, task, seed, latent_mask(latent))
    management = comfy.model_management
    result = result.to(management.intermediate_device(), management.intermediate_dtype())
    return nested(result, shapes)
