"""Sample with a saved schedule."""

from __future__ import annotations

import logging
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ..schedule import Schedule, resampled
from . import fingerprint, samplers
from .executor import TableSampler
from .latents import latent_samples, noise_for

logger = logging.getLogger(__name__)
TABLE_TOLERANCE = 1e-6


def schedule_sampler(schedule: Schedule) -> comfy.samplers.KSAMPLER:
    """The SAMPLER of a schedule: core's own, or its table where that holds more than core's.

    A table also stands in for a sampler that is not installed here.
    """
    if schedule.info.extras or not samplers.is_installed(schedule.info.sampler):
        return TableSampler(schedule)
    return samplers.sampler_object(schedule.info.sampler)


def check_schedule(schedule: Schedule, model: Any, cfg: float, denoise: float) -> list[str]:
    """Whether a schedule fits a model and how it shall be sampled; returns warnings.

    Raises:
        ValueError: it cannot work: another kind of noise levels, or the sampler is not the one it
        was learned for.
    """
    info, sampling = schedule.info, model.get_model_object("model_sampling")
    kind = samplers.prediction_type(sampling)
    if (kind == "flow") != (info.prediction_type == "flow"):
        raise ValueError(
            f"schedule {schedule.name!r} was learned for a model with {info.prediction_type!r} "
            f"noise levels, this model has {kind!r} ones; train a schedule for this model with "
            "LD3 Train Schedule"
        )
    if float(schedule.sigmas[0]) > 1.001 * float(sampling.sigma_max):
        raise ValueError(
            f"schedule {schedule.name!r} starts at sigma {float(schedule.sigmas[0]):.4g}, this "
            f"model's largest is {float(sampling.sigma_max):.4g}; train a schedule for this model "
            "with LD3 Train Schedule"
        )
    difference = 0.0
    try:
        if samplers.is_installed(info.sampler) and not info.extras:
            core = samplers.sampler_object(info.sampler)
            table = samplers.traceable(core, sampling).table(schedule.sigmas)
            difference = table.distance(schedule.table)
    except Exception as error:  # a third-party sampler may want more than a stand-in model
        logger.info("LD3: the sampler %s could not be read again: %s", info.sampler, error)
    if difference > TABLE_TOLERANCE:
        raise ValueError(
            f"schedule {schedule.name!r} was learned for another sampler than this ComfyUI's "
            f"{info.sampler!r} (their steps differ by {difference:.2g}); train it again with LD3 "
            "Train Schedule"
        )
    warnings = sampling_of(schedule, denoise)[2]
    if (
        fingerprint.model_fingerprint(model) != info.model_fingerprint
        or kind != info.prediction_type
    ):
        learned_for = info.model_file or info.model_name or "unknown"
        warnings.append(
            f"schedule {schedule.name!r} was learned for another model ({learned_for}); the "
            "result may be worse than a standard scheduler's: train one for this model"
        )
    if abs(cfg - info.cfg) > 1e-6:
        warnings.append(
            f"schedule {schedule.name!r} was learned at cfg {info.cfg:g}, not {cfg:g}: train one "
            f"at {cfg:g}"
        )
    return warnings


def sampling_of(
    schedule: Schedule, denoise: float
) -> tuple[comfy.samplers.KSAMPLER, Tensor, list[str]]:
    """Sampler, new sigmas, and warnings for a denoise strength.

    The schedule's own, or as many steps of a stretched one: as KSampler does it, denoise d takes
    the last N of N/d steps. What was learned for the schedule's own levels is then left out.

    Raises:
        ValueError: more denoising than the schedule was learned for, or less of one for a sampler
            that is not listed here.
    """
    info, learned_at = schedule.info, schedule.info.denoise
    if abs(denoise - learned_at) < 1e-6:
        # a copy: uni_pc writes into its last one
        return schedule_sampler(schedule), schedule.sigmas.clone(), []
    if denoise > learned_at:
        raise ValueError(
            f"denoise is {denoise:g}, but schedule {schedule.name!r} was learned for "
            f"{learned_at:g}: use that or less, or train one for it"
        )
    if not samplers.is_installed(info.sampler):
        raise ValueError(
            f"denoise is {denoise:g}, but schedule {schedule.name!r} was made at {learned_at:g} "
            f"for the sampler {info.sampler!r}, which is not among those installed here: use "
            f"{learned_at:g}, or install the pack it comes from"
        )
    warnings = []
    if info.extras:
        warnings.append(
            f"schedule {schedule.name!r} was learned at denoise {learned_at:g}; at {denoise:g} its "
            f"{', '.join(info.extras)} are left out: train one at {denoise:g}"
        )
    sigmas = resampled(schedule.sigmas, int(info.steps * learned_at / denoise))[-(info.steps + 1) :]
    return samplers.sampler_object(info.sampler), sigmas, warnings


def sample_with_schedule(
    model: Any,
    schedule: Schedule,
    seed: int,
    cfg: float,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    denoise: float,
) -> dict[str, Any]:
    """Core sampling with a schedule's sampler and sigmas: SamplerCustom's result, bit for bit."""
    samples = latent_samples(model, latent)
    sampler, sigmas, _ = sampling_of(schedule, denoise)
    result = comfy.sample.sample_custom(
        model,
        noise_for(samples, seed, latent.get("batch_index")),
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = {
        k: v
        for k, v in latent.items()
        if k not in ("downscale_ratio_spacial", "downscale_ratio_temporal")
    }
    return out | {"samples": result}
