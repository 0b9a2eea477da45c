"""LATENT inputs and the noises drawn for them, as core's samplers do it."""

from __future__ import annotations

from typing import Any, cast

import comfy.sample
import torch
from torch import Tensor

MOST_SEEDS = 2**64


def latent_samples(model: Any, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT with the model's channels and size: (batch, *latent).

    ValueError for an empty batch, or several latents nested in one (audio with video).
    """
    samples: Any = latent["samples"]
    if samples.is_nested:
        raise ValueError(
            "latent_image contains several nested latents; use the video or image latent alone"
        )
    if samples.shape[0] == 0:
        raise ValueError(
            "latent_image is an empty batch (0 latents); connect a latent with batch_size 1 or more"
        )
    ratios = (latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal"))
    return cast(Tensor, comfy.sample.fix_empty_latent_channels(model, samples, *ratios))


def noise_for(samples: Tensor, seed: int, batch_index: list[int] | None = None) -> Tensor:
    """Core's noise for a batch, in samples' shape; no random state changes."""
    # core seeds the global generators (ComfyUI 0.30.0, comfy/sample.py prepare_noise)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return cast(Tensor, comfy.sample.prepare_noise(samples, seed, batch_index))


def training_noises(
    samples: Tensor, seed: int, count: int, batch_index: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Noise i as KSampler draws it for seed + i, and its latent: two (count, *latent).

    The latents of a batch are used in turn; each keeps its `batch_index`.
    """
    noises, latents = [], []
    for i in range(count):
        j = i % samples.shape[0]
        index = None if batch_index is None else [batch_index[j]]
        noises.append(noise_for(samples[j : j + 1], (seed + i) % MOST_SEEDS, index))
        latents.append(samples[j : j + 1])
    return torch.cat(noises).float(), torch.cat(latents).float()
