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


def latent_mask(latent: dict[str, Any]) -> Tensor | None:
    """The noise_mask of a LATENT, of all its latents: (1, ..); None without.

    ValueError for several different ones.
    """
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    if getattr(mask, "is_nested", False):
        raise ValueError("latent_image has several nested masks; remove them (noise_mask)")
    if any(not torch.equal(other, mask[0]) for other in mask[1:]):
        raise ValueError(
            f"latent_image has {len(mask)} different masks; use one mask, or one latent"
        )
    return mask[:1] if mask.ndim > 2 else mask[None]


def check_image_condition(model: Any, samples: Tensor) -> None:
    """Refuse several images where a network sees the image: core gives it the batch's first.

    ValueError for a batch of latents and a model for inpainting or image conditions.
    """
    seen = getattr(model.model, "concat_keys", ())
    if len(samples) > 1 and seen:
        raise ValueError(
            f"latent_image is a batch of {len(samples)} images, and this model sees the image "
            f"besides the noise ({', '.join(seen)}): use a single one"
        )


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
