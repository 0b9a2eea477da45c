"""Flow models of data whose variance-exploding denoiser is known.

A flow model's state x = (1 - s) x0 + s noise is (1 - s) times the variance-exploding state
x0 + sigma noise at sigma = s / (1 - s), so both have the same E[x0 | state]:

    D_flow(x, s) = D(x / (1 - s), s / (1 - s)) .
"""

from __future__ import annotations

from torch import Tensor

from ld3.model import Denoiser, Model
from ld3.parameters import LOGIT_SIGMA

LEAST_SIGNAL = 1e-8  # in place of 1 - s at s = 1, where the state contains no signal


def flow_denoiser(denoise: Denoiser) -> Denoiser:
    """The flow model's denoiser, exact if `denoise`, the variance-exploding model's, is."""

    def denoise_flow(x: Tensor, sigma: Tensor) -> Tensor:
        keep = (1 - sigma.to(x)).clamp_min(LEAST_SIGNAL)
        return denoise(x / keep.reshape(-1, *[1] * (x.ndim - 1)), sigma.to(x) / keep)

    return denoise_flow


def flow_model(denoise: Denoiser, sigma_min: float) -> Model:
    """The model with `flow_denoiser(denoise)` and noise levels in [sigma_min, 1]."""
    return Model(
        flow_denoiser(denoise),
        LOGIT_SIGMA,
        sigma_min=sigma_min,
        sigma_max=1.0,
        scale_noise=lambda noise, latent, sigma: sigma * noise + (1 - sigma) * latent,
    )
