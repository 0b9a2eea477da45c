"""Distances between a student's sample and its teacher's, as iteratively reweighted least squares.

Gauss-Newton minimises sum w |residual|^2 with weights that make its minimum that of the distance
(Holland & Welsch 1977). So a distance is three functions: features whose difference is the
residual (latents themselves, pixels, or a network's features of them), its value per sample, and
those weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LATENT_DISTANCES = ("pseudo-huber", "l2", "l1")
IMAGE_DISTANCES = ("lpips-alex", "lpips-squeeze", "lpips-vgg", "pixel-l2", "pixel-l1")
DISTANCES = LATENT_DISTANCES + IMAGE_DISTANCES


def rmse(residual: Tensor) -> Tensor:
    """Root mean square of each sample's residual: (batch, *latent) -> (batch,)."""
    return residual.flatten(1).float().pow(2).mean(1).sqrt()


@dataclass(frozen=True)
class Distance:
    """A distance of samples to their targets.

    Attributes:
        name: one of `DISTANCES`.
        scale: the residual (RMSE) from which pseudo-Huber turns from square to linear, so that a
            few samples that fall into another mode do not dominate; L1 is smoothed over 1 % of it.
        image_features: latents (1, *latent) -> (1, features) of the decoded image; for
            `IMAGE_DISTANCES` only. One image at a time: features of a network are large.
    """

    name: str = "pseudo-huber"
    scale: float = 1.0
    image_features: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.name not in DISTANCES:
            raise ValueError(
                f"unknown distance {self.name!r}; choose one of {', '.join(DISTANCES)}"
            )
        if (self.name in IMAGE_DISTANCES) != (self.image_features is not None):
            raise ValueError(f"image features are needed by {', '.join(IMAGE_DISTANCES)} only")

    @property
    def identity(self) -> str:
        """What tells it from others of a training."""
        return f"{self.name} {self.scale!r}"

    def parts(self, batch: int) -> list[slice]:
        """How a batch is divided: all at once, or image by image."""
        if self.image_features is None:
            return [slice(0, batch)]
        return [slice(i, i + 1) for i in range(batch)]

    def features(self, samples: Tensor) -> Tensor:
        """What is compared of samples (batch, *latent)."""
        return samples if self.image_features is None else self.image_features(samples)

    def between(
        self, samples: Tensor, targets: Tensor, measure: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Distance, or another measure of the residual, of each sample to its target: (batch,)."""
        measure = measure or self.value
        values = [
            measure(self.features(samples[part]) - self.features(targets[part]))
            for part in self.parts(len(samples))
        ]
        return torch.cat(values)

    def score(self, samples: Tensor, targets: Tensor) -> Tensor:
        """What students are ranked by: (batch,).

        The distance itself, and for pseudo-Huber, whose scale is not known before students have
        been run, the RMSE.
        """
        return self.between(samples, targets, rmse if self._kind == "pseudo-huber" else None)

    def value(self, residual: Tensor) -> Tensor:
        """Distance of each sample from its residual, (batch, *features) -> (batch,)."""
        r = residual.flatten(1).float()
        if self._kind == "l1":
            return r.abs().mean(1)
        square = r.pow(2).mean(1)
        if self._kind == "l2":
            return square
        if self._kind == "lpips":
            return square * r.shape[1]  # the features contain the layers' means already
        # sqrt(square + scale^2) - scale without its cancellation where square is small
        return square / ((square + self.scale**2).sqrt() + self.scale)

    @property
    def _kind(self) -> str:
        return "lpips" if self.name.startswith("lpips") else self.name.removeprefix("pixel-")

    def weights(self, residual: Tensor) -> Tensor:
        """Least-squares weights of the squared residuals: (batch, elements) or (batch, 1)."""
        r = residual.flatten(1).float()
        if self._kind == "l1":
            return 1 / (r.pow(2) + (0.01 * self.scale) ** 2).sqrt()
        if self._kind in ("l2", "lpips"):
            return torch.ones_like(r[:, :1])
        return 1 / (r.pow(2).mean(1, keepdim=True) + self.scale**2).sqrt()


def spread(samples: Tensor) -> float:
    """Mean Euclidean distance between two different samples of a set: (n, *latent) -> float.

    A student whose samples spread less than its teacher's collapses modes, or blurs. NaN for fewer
    than two samples.
    """
    # on the CPU, since not every device computes pairwise distances
    return float(torch.pdist(samples.detach().flatten(1).float().cpu()).mean())


def mean_distance(samples: Tensor, others: Tensor) -> float:
    """Mean RMSE between a sample and those of other indices: two (n, elements) -> float.

    NaN for fewer than two samples.
    """
    distances = torch.cdist(samples.float().cpu(), others.float().cpu())
    distances = distances[~torch.eye(len(samples), dtype=torch.bool)]
    return float(distances.mean()) / samples.shape[1] ** 0.5
