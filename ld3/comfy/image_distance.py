"""Distances of images: a model's latents, decoded by a VAE, as LPIPS features or as pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..lpips_features import LpipsFeatures
from ..metrics import IMAGE_DISTANCES, LATENT_DISTANCES
from . import folders
from .memory import activations, models_of, out_of_memory

DOWNLOADS = "https://download.pytorch.org/models/"


BACKBONES = {  # torchvision's files without extension, and their megabytes
    "alex": ("alexnet-owt-7be5be79", 233),
    "squeeze": ("squeezenet1_1-b8a52dc0", 5),
    "vgg": ("vgg16-397923af", 528),
}


def check_image_distance(name: str, vae: Any) -> None:
    """Raise ValueError if an image distance lacks its VAE or its network; loads nothing."""
    if name not in IMAGE_DISTANCES:
        choices = ", ".join(IMAGE_DISTANCES)
        raise ValueError(f"distance {name!r} compares no images; choose one of {choices}")
    if vae is None:
        raise ValueError(
            f"distance {name!r} compares images, so it needs a VAE: connect vae, or choose a "
            f"latent distance ({', '.join(LATENT_DISTANCES)})"
        )
    vae.throw_exception_if_invalid()
    if name.startswith("lpips-"):
        backbone_path(name.removeprefix("lpips-"))


def backbone_path(net: str) -> Path:
    """The file of a network in `models/lpips` or torch's cache of downloads.

    ValueError if it is in neither: says what to download and where to put it.
    """
    stem, megabytes = BACKBONES[net]
    for suffix in (".pth", ".safetensors"):
        found = folder_paths.get_full_path(folders.LPIPS_KEY, stem + suffix)
        if found is not None:
            return Path(found)
    file = f"{stem}.pth"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if cached.is_file():
        return cached
    raise ValueError(
        f"distance 'lpips-{net}' needs the network {file} ({megabytes} MB): download "
        f"{DOWNLOADS}{file} and put it in {folders.lpips_folder()} (create it if it does not "
        f"exist). The distances {', '.join(LATENT_DISTANCES)} need no file"
    )


def find_backbone(net: str) -> dict[str, Tensor]:
    """State dict of torchvision's alexnet ("alex"), squeezenet1_1 ("squeeze") or vgg16 ("vgg").

    ValueError if the file is missing or cannot be read: says what to do.
    """
    path = backbone_path(net)
    try:
        weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
        return weights
    except Exception as error:  # whatever a damaged file makes the two readers raise
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and download it again from "
            f"{DOWNLOADS}{BACKBONES[net][0]}.pth"
        ) from error


def load_together(model_wrap: Any, vae: Any, shape: Sequence[int]) -> None:
    """Load a running guider's models and a VAE so that all stay on their devices.

    `vae.decode` would load the VAE alone, which may unload the models before each decoding.

    `shape` is that of the latents decoded at once.
    """
    needed = max(
        activations(model_wrap.model_patcher, [shape[1:]], shape[0]),
        shape[0] * vae.memory_used_decode(tuple(shape), vae.vae_dtype),
    )
    if vae.disable_offload:  # in one call the model, too, would be loaded completely or not at all
        comfy.model_management.load_models_gpu([vae.patcher], force_full_load=True)
    models = [*models_of(model_wrap), vae.patcher]
    comfy.model_management.load_models_gpu(models, memory_required=needed)


def pixel_decoder(vae: Any, model_wrap: Any) -> Callable[[Tensor], Tensor]:
    """What `vae.decode` makes of a sampler's latents, for autograd too.

    `VAE.decode` (ComfyUI 0.30.0, comfy/sd.py) copies results into a buffer on the CPU, and falls
    back to tiles where memory is short; here an image stays on its device, in its graph.

    Args:
        vae: loaded (`load_together`) whenever the function is called; for gradients inside
            `normal_tensors(vae.first_stage_model)`.
        model_wrap: the running guider; its model says how latents are scaled.

    Returns:
        latents (n, *latent), as the sampler receives them -> images (n, channels, height, width),
        or videos (n, channels, frames, height, width), float32 in [0, 1] on the VAE's device.
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
    name: str, vae: Any, model_wrap: Any, example: Tensor
) -> Callable[[Tensor], Tensor]:
    """What an image distance compares: latents (n, *latent) -> (n, features), float32.

    The features of "lpips-..." have LPIPS as their squared distance; those of "pixel-..." are
    pixels in [0, 1]. Both work with and without gradients (see `pixel_decoder`).

    Args:
        name: one of `IMAGE_DISTANCES`. vae: loaded (`load_together`). model_wrap: the guider.
        example: latents (n, *latent); the first is decoded at once, to check the VAE.

    Raises:
        ValueError: no VAE, no network file, or the VAE's images cannot be compared.
    """
    check_image_distance(name, vae)
    decode, compared = pixel_decoder(vae, model_wrap), torch.nn.Flatten()
    if name.startswith("lpips-"):
        net = name.removeprefix("lpips-")
        compared = LpipsFeatures(net, find_backbone(net))
        with torch.inference_mode(False):  # a node runs in it; autograd could not use the weights
            compared.to(vae.device)
    with torch.no_grad():
        features = compared(_try_decoding(decode, example[:1]))
    if not torch.isfinite(features).all():
        raise ValueError(
            "the VAE's image is infinite or undefined (NaN); try the VAE in fp32 (ComfyUI's "
            "option --fp32-vae), or another VAE"
        )

    return lambda latents: compared(decode(latents))


def _try_decoding(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Decode; ValueError if the VAE belongs to another model or does not decode to images."""
    try:
        images = decode(latents)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"the VAE cannot decode latents of shape {tuple(latents.shape)}: connect the VAE that "
            f"belongs to the model ({error})"
        ) from error
    if images.ndim not in (4, 5):
        raise ValueError(
            f"the VAE does not decode to images (output of shape {tuple(images.shape)}); choose a "
            f"latent distance ({', '.join(LATENT_DISTANCES)})"
        )
    return images
