"""Samplers of a pack of our own, with the habits of large third-party packs.

They compute in float32 whatever they receive, call the model six times a step, look up attributes
of the model, write into `model_options`, and come in pairs: a stochastic one and an `_ode` twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

STAGES = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)


def six_stages(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    eta: float = 0.5,
    weight: float = 1.0,
) -> Tensor:
    """Six Euler substeps a step, whose slopes are averaged; noise of strength `eta`."""
    extra_args = extra_args or {}
    wrapped = model.inner_model.inner_model
    assert isinstance(wrapped.device, torch.device)
    assert model.inner_model.model_patcher.get_model_object("model_sampling") is not None
    assert extra_args["denoise_mask"] is None and len(model.sigmas) == len(sigmas)
    options = extra_args["model_options"]["transformer_options"]
    options["sample_sigmas"], options["stage_weights"] = sigmas, 0.0
    x, sigmas = x.to(wrapped.device, torch.float32), sigmas.to(wrapped.device, torch.float64)
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        slope, total, denoised = torch.zeros_like(x), torch.zeros_like(x), x
        for stage in STAGES:
            level = (1 - 0.9 * stage) * sigma + 0.9 * stage * following
            state = x + (level - sigma).float() * slope
            denoised = model(state, level.float() * state.new_ones(len(x)), **extra_args)
            slope = (state - denoised) / level.float()
            total = total + slope / len(STAGES)
        if callback:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + weight * (following - sigma).float() * total
        if eta and following > 0:
            x = x + eta * following.float() * torch.randn_like(x)
    return x


def six_stages_ode(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """`six_stages` without noise."""
    return six_stages(model, x, sigmas, **keywords, eta=0.0)


def float32_only(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """Euler's method with a matrix in float32, which torch does not multiply with float64."""
    mean = torch.eye(x.shape[-1], dtype=torch.float32)
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **keywords["extra_args"])
        x = x + (x @ mean - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def half_precision(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """Euler's method that calls the model in bfloat16."""

    def coarse(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return model(x.bfloat16(), sigma, **extra_args).float()

    return float32_only(coarse, x.float(), sigmas, **keywords)


def growing(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """Calls the model again where its output is large."""
    for i in range(len(sigmas) - 1):
        for _ in range(2):
            denoised = model(x, sigmas[i] * x.new_ones(len(x)), **keywords["extra_args"])
            if float(denoised.norm()) < 1.1:
                break
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def failing(model: Any, x: Tensor, sigmas: Tensor, **keywords: Any) -> Tensor:
    """Reads an attribute that no model has."""
    return model.inner_model.inner_model.setting_of_another_pack


def install(patch: pytest.MonkeyPatch) -> None:
    """List the samplers where ComfyUI lists its own, as packs do."""
    import comfy.k_diffusion.sampling
    import comfy.samplers

    samplers = {"six_stages": six_stages, "six_stages_ode": six_stages_ode, "failing": failing}
    samplers |= {"float32_only": float32_only, "growing": growing, "half": half_precision}
    names = [*comfy.samplers.SAMPLER_NAMES, *samplers]
    patch.setattr(comfy.samplers, "SAMPLER_NAMES", names)
    patch.setattr(comfy.samplers.KSampler, "SAMPLERS", names)
    for name, function in samplers.items():
        patch.setattr(comfy.k_diffusion.sampling, f"sample_{name}", function, raising=False)
