"""LATENT inputs and the noises drawn for them, as core's samplers do it."""

from __future__ import annotations

from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

MOST_SEEDS = 2**64


def latent_samples(model: Any, latent: dict[str, Any]) -> Any:
    """The samples of a LATENT with the model's channels and size: (batch, *latent).

    Several latents nested in one (audio with video) as they are. ValueError for an empty batch.
    """
    samples: Any = latent["samples"]
    if samples.shape[0] == 0:
        raise ValueError(
            "latent_image is an empty batch (0 latents); connect a latent with batch_size 1 or more"
        )
    ratios = (latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal"))
    return comfy.sample.fix_empty_latent_channels(model, samples, *ratios)


Shapes = tuple[tuple[int, ...], ...]
"""Of the latents nested in one, without the batch; () where there is one latent."""


def packed(samples: Any) -> tuple[Tensor, Shapes]:
    """Latents as samplers see them: nested ones in one flat tensor (batch, 1, L); and shapes."""
    if not samples.is_nested:
        return samples, ()
    streams = samples.unbind()
    flat, _ = comfy.utils.pack_latents(streams)
    return flat, tuple(tuple(stream.shape[1:]) for stream in streams)


def nested(samples: Tensor, shapes: Shapes) -> Any:
    """What was packed, as a LATENT has it."""
    if not shapes:
        return samples
    whole = [(len(samples), *shape) for shape in shapes]
    return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(samples, whole))


def latent_mask(latent: dict[str, Any]) -> Any:
    """The noise_mask of a LATENT, of all its latents: (1, ..), or nested; None without.

    For a video, a mask with fewer dimensions than the latent has one image per frame, as in core's
    `reshape_mask`. ValueError for several different ones.
    """
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    if getattr(mask, "is_nested", False):
        masks = [latent_mask({"noise_mask": part}) for part in mask.unbind()]
        return comfy.nested_tensor.NestedTensor(masks)
    samples = latent.get("samples")
    if samples is not None and samples.ndim == 5 and mask.ndim < 5:
        return mask
    mask = mask if mask.ndim > 2 else mask[None]
    if any(not torch.equal(other, mask[0]) for other in mask[1:]):
        raise ValueError(
            f"latent_image has {len(mask)} different masks; use one mask, or one latent"
        )
    return mask[:1]


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


def noise_for(samples: Any, seed: int, batch_index: list[int] | None = None) -> Any:
    """Core's noise for a batch, in samples' shape; no random state changes."""
    # core seeds the global generators (ComfyUI 0.30.0, comfy/sample.py prepare_noise)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return comfy.sample.prepare_noise(samples, seed, batch_index)


def training_noises(
    samples: Tensor,
    seed: int,
    count: int,
    batch_index: list[int] | None = None,
    shapes: Shapes = (),
) -> tuple[Tensor, Tensor]:
    """Noise i as KSampler draws it for seed + i, and its latent: two (count, *latent).

    The latents of a batch are used in turn; each keeps its `batch_index`.

    Args:
        shapes: of nested latents that are packed in the samples.
    """
    noises, latents = [], []
    for i in range(count):
        j = i % samples.shape[0]
        index = None if batch_index is None else [batch_index[j]]
        noise = noise_for(nested(samples[j : j + 1], shapes), (seed + i) % MOST_SEEDS, index)
        noises.append(packed(noise)[0])
        latents.append(samples[j : j + 1])
    return torch.cat(noises).float(), torch.cat(latents).float()
