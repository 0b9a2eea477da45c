"""Outputs for schedules of two models: what each of them samples."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

PARTS_OUTPUTS = [
    io.Sigmas.Output(
        display_name="high_sigmas",
        tooltip="For schedules of two models (Wan 2.2): the noise levels of the high-noise model, "
        "for a first SamplerCustomAdvanced. Use the sampler output in both.",
    ),
    io.Sigmas.Output(
        display_name="low_sigmas",
        tooltip="The noise levels of the low-noise model, for a second SamplerCustomAdvanced that "
        "continues the latent of the first, with DisableNoise as its noise.",
    ),
]
