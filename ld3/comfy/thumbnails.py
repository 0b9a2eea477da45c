"""Small pictures of latents, as ComfyUI previews a sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import latent_preview
import torch
from PIL import Image
from torch import Tensor

from .guided_run import GuidedRun


def thumbnails_of(guided: GuidedRun) -> Callable[[Sequence[Tensor]], list[Image.Image]] | None:
    """Draws latents (1, *latent), each as one picture; None if this model's cannot be drawn.

    By the previewer that the user chose (TAESD, latent2rgb), or by latent2rgb, a multiplication by
    a matrix, where none is chosen: then a training would have no live picture of its samples.
    """
    patcher = guided.model_wrap.model_patcher
    latent_format = getattr(patcher.model, "latent_format", None)
    if guided.streams is not None or latent_format is None:
        return None  # packed streams are no picture
    previewer = latent_preview.get_previewer(patcher.load_device, latent_format)
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if previewer is None and factors is not None:
        bias = getattr(latent_format, "latent_rgb_factors_bias", None)
        reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
        previewer = latent_preview.Latent2RGBPreviewer(factors, bias, reshape)
    if previewer is None:
        return None

    def drawn(latents: Sequence[Tensor]) -> list[Image.Image]:
        with torch.no_grad():
            given = [latent.to(patcher.load_device, torch.float32) for latent in latents]
            return [previewer.decode_latent_to_preview(latent) for latent in given]

    return drawn
