"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) as a feature map.

    LPIPS(x, y) = sum_l mean_hw sum_c w_lc (f_l(x) - f_l(y))^2 = |F(x) - F(y)|^2
    F(x) = all sqrt(w_lc / (H_l W_l)) f_l(x), f_l: layer l's output, normalised at each pixel

So F(student) - F(teacher) is a residual like a difference of latents, for both optimizers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEAST_SIZE = {"alex": 31, "squeeze": 17, "vgg": 16}
"""Networks LPIPS is calibrated for, and the smallest width and height in pixels."""


class LpipsFeatures(torch.nn.Module):
    """Images -> features whose squared distance is LPIPS 0.1, weights frozen.

    At 512x512 pixels an image has 2.7 M (alex), 9.0 M (squeeze) or 32 M (vgg) features, at
    1024x1024 four times as many: give one image at a time where memory is short.

    Args:
        net: one of `LEAST_SIZE`; LPIPS' authors compare with "alex", LD3's trainer uses "vgg".
        backbone: state dict of torchvision's alexnet, squeezenet1_1 or vgg16; entries other than
            `features.*` are ignored. The calibrated weights w come with the package lpips.

    Raises:
        ValueError: unknown net, backbone of another network, or lpips is not installed.

    Source: lpips 0.1.4, `LPIPS.forward`.
    """

    def __init__(self, net: str, backbone: Mapping[str, Tensor]) -> None:
        super().__init__()
        if net not in LEAST_SIZE:
            raise ValueError(f"unknown LPIPS network {net!r}; choose one of {list(LEAST_SIZE)}")
        self.net = net
        # ComfyUI runs nodes in inference mode; autograd could not use weights made there
        with torch.inference_mode(False):
            self.distance = _untrained(net).float().requires_grad_(False)
            trunk = self.distance.net.state_dict()
            weights = {}
            for name, weight in trunk.items():
                # lpips' "slice2.3.bias" is torchvision's "features.3.bias"
                source = f"features.{name.partition('.')[2]}"
                if source not in backbone or backbone[source].shape != weight.shape:
                    raise ValueError(
                        f"these are not the weights of {net}: {source} is missing or has another "
                        f"shape than {tuple(weight.shape)}"
                    )
                weights[name] = backbone[source]
            self.distance.net.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, features) of images, in the weights' precision (float32).

        Args:
            images: (n, 3, height, width), or videos (n, 3, frames, height, width), in [0, 1]. The
                squared distance of two videos is the mean LPIPS of their frames.

        Raises:
            ValueError: not RGB, or too small for the network; says the minimum size.
        """
        if images.ndim == 5:
            frames = images.movedim(2, 1)
            each = self(frames.flatten(0, 1)) / math.sqrt(frames.shape[1])
            return each.reshape(len(images), -1)
        self._check(images)
        scaling = self.distance.scaling_layer
        layers = self.distance.net(scaling(2 * images.to(scaling.shift.dtype) - 1))
        features = []
        for layer, head in zip(layers, self.distance.lins, strict=True):
            length = torch.linalg.vector_norm(layer, dim=1, keepdim=True) + 1e-10
            scale = (head.model[-1].weight / (layer.shape[2] * layer.shape[3])).sqrt()
            features.append((scale * layer / length).flatten(1))
        return torch.cat(features, 1)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"LPIPS compares RGB images, (n, 3, height, width), but got {tuple(images.shape)}; "
                "choose a latent distance for this model"
            )
        height, width = images.shape[2:]
        least = LEAST_SIZE[self.net]
        if min(height, width) < least:
            fitting = ", ".join(f"{net} from {size}" for net, size in LEAST_SIZE.items())
            raise ValueError(
                f"images of {width}x{height} pixels are too small for LPIPS with {self.net}, which "
                f"needs {least}x{least} or more ({fitting}): use larger latents, another network, "
                "or a pixel or latent distance"
            )


def _untrained(net: str) -> Any:
    """lpips' own distance with its calibrated weights, and random weights in the network."""
    try:
        import lpips  # not at the top: without it the pack loads and learns by other distances
    except ImportError as error:
        raise ValueError(
            "LPIPS needs the Python package lpips: install this pack's requirements.txt with the "
            "Python that runs ComfyUI, or choose another distance"
        ) from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips uses torchvision's old arguments
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
