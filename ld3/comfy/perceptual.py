"""Distances of images: a model's latents, decoded by a VAE, as LPIPS features or as pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..metrics import IMAGE_DISTANCES, LATENT_DISTANCES
from ..perceptual import LpipsFeatures
from . import folders

DOWNLOADS = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Backbone:
    """A file of torchvision's: its name without extension, and its size."""

    stem: str
    megabytes: int


BACKBONES = {
    "alex": Backbone("alexnet-owt-7be5be79", 233),
    "squeeze": Backbone("squeezenet1_1-b8a52dc0", 5),
    "vgg": Backbone("vgg16-397923af", 528),
}


def check_image_distance(name: str, vae: Any | None) -> None:
    """Raise ValueError if an image distance lacks its VAE or its network; loads nothing."""
    if name not in IMAGE_DISTANCES:
        raise ValueError(
            f"distance {name!r} does not compare images; choose {', '.join(IMAGE_DISTANCES)}"
        )
    if vae is None:
        raise ValueError(
            f"distance {name!r} compares images, so it needs a VAE: connect vae, or choose a "
            f"latent distance ({', '.join(LATENT_DISTANCES)})"
        )
    vae.throw_exception_if_invalid()
    if name.startswith("lpips-"):
        backbone_path(name.removeprefix("lpips-"))


def backbone_path(net: str) -> Path:
    """The file of a network in `models/lpips`, or else in torch's own cache of downloads.

    Raises:
        ValueError: neither has it; says what to download from where to where.
    """
    backbone = BACKBONES[net]
    for suffix in (".pth", ".safetensors"):
        found = folder_paths.get_full_path(folders.LPIPS_KEY, backbone.stem + suffix)
        if found is not None:
            return Path(found)
    file = f"{backbone.stem}.pth"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if cached.is_file():
        return cached
    raise ValueError(
        f"distance 'lpips-{net}' needs the network {file} ({backbone.megabytes} MB): download "
        f"{DOWNLOADS}{file} and put it in {folders.lpips_folder()} (make the folder if there is "
        f"none). The distances {', '.join(LATENT_DISTANCES)} need no file"
    )


def find_backbone(net: str) -> dict[str, Tensor]:
    """State dict of torchvision's alexnet ("alex"), squeezenet1_1 ("squeeze") or vgg16 ("vgg").

    Raises:
        ValueError: the file is missing or cannot be read; says what to do.
    """
    path = backbone_path(net)
    try:
        return comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # whatever a damaged file makes the two readers raise
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and download it again from "
            f"{DOWNLOADS}{BACKBONES[net].stem}.pth"
        ) from error


def load_together(model_patcher: Any, vae: Any, shape: Sequence[int]) -> None:
    """Load a model and a VAE so that both stay where they compute.

    `vae.decode` would load the VAE alone, which may push the model out before each decoding.

    Args:
        model_patcher: the running guider's (`model_wrap.model_patcher`).
        shape: of the latents decoded at once, (batch, *latent).
    """
    guided = [2 * shape[0], *shape[1:]]  # with and without the prompt
    needed = max(
        model_patcher.memory_required(guided),
        shape[0] * vae.memory_used_decode(tuple(shape), vae.vae_dtype),
    )
    if vae.disable_offload:  # in one call the model, too, would be loaded whole, or not at all
        comfy.model_management.load_models_gpu([vae.patcher], force_full_load=True)
    comfy.model_management.load_models_gpu([model_patcher, vae.patcher], memory_required=needed)


def pixel_decoder(vae: Any, model_wrap: Any) -> Callable[[Tensor], Tensor]:
    """What `vae.decode` shows of a sampler's latents, for autograd too.

    `VAE.decode` (ComfyUI 0.30.0, comfy/sd.py) copies results into a buffer on the CPU, and falls
    back to tiles where memory is short; here an image stays on its device, in its graph.

    Args:
        vae: VAE; loaded (`load_together`) whenever the function is called. For gradients its
            weights must not be inference tensors, as those of every VAE loaded by a node are:
            call the function inside `differentiable.normal_tensors(vae.first_stage_model)`.
        model_wrap: the running guider; its model says how latents are scaled.

    Returns:
        latents (n, *latent), as the sampler sees them -> images (n, channels, height, width), or
        videos (n, channels, frames, height, width), float32 in [0, 1] on the VAE's device.
    """

    def decode(latents: Tensor) -> Tensor:
        latents = model_wrap.inner_model.process_latent_out(latents)
        if vae.latent_dim == 2 and latents.ndim == 5:
            latents = latents[:, :, 0]
        latents = latents.to(device=vae.device, dtype=vae.vae_dtype)
        images = vae.first_stage_model.decode(latents)
        precision = torch.promote_types(images.dtype, torch.float32)
        # a copy, because process_output works in place and a pixel-space VAE returns its input
        return vae.process_output(images.to(precision, copy=True))

    return decode


def feature_map(
    name: str, vae: Any | None, model_wrap: Any, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """What an image distance compares: latents (n, *latent) -> (n, features), float32.

    The features of "lpips-..." have LPIPS as their squared distance; those of "pixel-..." are
    pixels in [0, 1]. Both work in inference mode, without and with gradients (there, see
    `pixel_decoder`).

    Args:
        name: one of `IMAGE_DISTANCES`.
        vae: VAE, loaded (`load_together`).
        model_wrap: the running guider.
        example: latents (n, *latent); the first is decoded at once, so that a VAE that does not
            fit is found before time is spent.

    Raises:
        ValueError: no VAE, no network file, or the VAE's pictures cannot be compared.
    """
    check_image_distance(name, vae)
    decode, compared = pixel_decoder(vae, model_wrap), _flat_pixels
    if name.startswith("lpips-"):
        net = name.removeprefix("lpips-")
        compared = LpipsFeatures(net, find_backbone(net))
        with torch.inference_mode(False):  # a node runs in it; autograd could not use the weights
            compared.to(vae.device)
    with torch.no_grad():
        features = compared(_try_decoding(decode, example[:1]))
    if not torch.isfinite(features).all():
        raise ValueError(
            "the VAE's picture is infinite or undefined (NaN); try the VAE in fp32 (ComfyUI's "
            "option --fp32-vae), or another VAE"
        )

    def features_of(latents: Tensor) -> Tensor:
        return compared(decode(latents))

    return features_of


def _flat_pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def _try_decoding(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decode; ValueError if the VAE belongs to another model or makes no pictures."""
    try:
        images = decode(latents)
    except RuntimeError as error:
        if isinstance(error, comfy.model_management.OOM_EXCEPTION):
            raise
        raise ValueError(
            f"the VAE cannot decode latents of shape {tuple(latents.shape)}: connect the VAE that "
            f"belongs to the model ({error})"
        ) from error
    if images.ndim not in (4, 5):
        raise ValueError(
            f"the VAE makes no pictures (its output has the shape {tuple(images.shape)}); choose a "
            f"latent distance ({', '.join(LATENT_DISTANCES)})"
        )
    return images
