"""In what a sampling differs from the one its schedule was learned for."""

from __future__ import annotations

from typing import Any

from ..schedule import Schedule, ScheduleInfo
from . import core_samplers, fingerprint

SHIFT, STRENGTHS = "shift", "patch_strengths"  # of the settings in a file


def model_facts(model: Any) -> dict[str, Any]:
    """What users change of a MODEL besides its file: shift, and strengths of LoRAs and merges."""
    shift = getattr(model.get_model_object(fingerprint.MODEL_SAMPLING), "shift", None)
    strengths = {
        round(float(patch[0]), 4) for patches in model.patches.values() for patch in patches
    }
    return {SHIFT: None if shift is None else float(shift), STRENGTHS: sorted(strengths)}


def differences(
    schedule: Schedule, model: Any, cfg: float, denoise: float, shape: list[int]
) -> list[str]:
    """Warnings about model, guidance, denoise strength and size, each with what to do.

    Args:
        shape: of the latent, without the batch.
    """
    info, name = schedule.info, f"schedule {schedule.name!r} was learned"
    sampling = model.get_model_object(fingerprint.MODEL_SAMPLING)
    found = []
    if abs(denoise - info.denoise) >= 1e-6:
        unused = f"without its {', '.join(info.extras)}" if info.extras else "stretched"
        found.append(
            f"{name} at denoise {info.denoise:g}; at {denoise:g} its steps are used {unused}: "
            f"train one at {denoise:g}"
        )
    kind = fingerprint.model_fingerprint(model), core_samplers.prediction_type(sampling)
    if kind != (info.model_fingerprint, info.prediction_type):
        found.append(
            f"{name} for another model ({_changed(info, model)}); the result may be worse than a "
            "standard schedule's: train one for this model"
        )
    if abs(cfg - info.cfg) > 1e-6:
        found.append(f"{name} at cfg {info.cfg:g}, not {cfg:g}: train one at {cfg:g}")
    if shape and info.latent_shape and shape != info.latent_shape:
        found.append(
            f"{name} for latents of {_size(info.latent_shape)}, not {_size(shape)}: compare it "
            "with a standard schedule there, or train one at this size"
        )
    return found


def low_model_differences(schedule: Schedule, low_model: Any) -> list[str]:
    """The same about the second of two models; None for one model."""
    learned = schedule.info.low_model_fingerprint
    if low_model is None or fingerprint.model_fingerprint(low_model) == learned:
        return []
    known = schedule.info.low_model_file or "unknown"
    return [
        f"schedule {schedule.name!r} was learned for another low_noise_model ({known}); the result "
        "may be worse than a standard schedule's: train one for these models"
    ]


def _changed(info: ScheduleInfo, model: Any) -> str:
    """Which of the facts differ; the model it was learned for where none is known to."""
    now, parts = model_facts(model), []
    shift, strengths = (info.settings.get(key) for key in (SHIFT, STRENGTHS))
    # a file may contain anything, and older ones contain neither
    if isinstance(shift, float) and now[SHIFT] not in (None, shift):
        parts.append(f"at shift {shift:g}, not {now[SHIFT]:g}")
    if isinstance(strengths, list) and all(isinstance(s, float) for s in strengths):
        if strengths != now[STRENGTHS]:
            listed = _listed(strengths), _listed(now[STRENGTHS])
            parts.append(f"with LoRAs at strength {listed[0]}, not {listed[1]}")
    return " and ".join(parts) or info.model_file or info.model_name or "unknown"


def _listed(strengths: list[float]) -> str:
    return ", ".join(f"{strength:g}" for strength in strengths) or "0 (none)"


def _size(shape: list[int]) -> str:
    return "x".join(str(n) for n in shape)
