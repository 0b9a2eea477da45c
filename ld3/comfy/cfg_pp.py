"""The guidance of a model call, which CFG++ samplers use besides the denoised output."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
from torch import Tensor


def with_guidance(
    model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Call a model as core's CFG++ samplers do.

    Args:
        model: what a sampler receives.
        x: (batch, *latent). sigma: (batch,).
        extra_args: the call's, with `model_options`; they do not change.

    Returns:
        The denoised output D and the guidance G = D - U, both (batch, *latent).
    """
    unconditional = x

    def keep(outputs: dict[str, Any]) -> Tensor:
        nonlocal unconditional
        unconditional = outputs["uncond_denoised"]
        return outputs["denoised"]

    options = comfy.model_patcher.set_model_options_post_cfg_function(
        extra_args.get("model_options", {}).copy(), keep, disable_cfg1_optimization=True
    )
    denoised = model(x, sigma, **(extra_args | {"model_options": options}))
    return denoised, denoised - unconditional
