"""Distances between a student's sample and its teacher's, as iteratively reweighted least squares.

Gauss-Newton minimises sum w |residual|^2 with weights that make its minimum that of the distance
(Holland & Welsch 1977). So a distance is two functions: its value a sample, and those weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DISTANCES = ("pseudo-huber", "l2", "l1")


def rmse(residual: Tensor) -> Tensor:
    """Root mean square of each sample's residual: (batch, *latent) -> (batch,)."""
    return residual.flatten(1).float().pow(2).mean(1).sqrt()


@dataclass(frozen=True)
class Distance:
    """A distance a sample.

    Attributes:
        name: one of `DISTANCES`.
        scale: the residual (RMSE) from which pseudo-Huber turns from square to linear, so that a
            few samples that fall into another mode do not rule the rest; L1 is smoothed over 1 %
            of it.
    """

    name: str = "pseudo-huber"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in DISTANCES:
            raise ValueError(
                f"unknown distance {self.name!r}; choose one of {', '.join(DISTANCES)}"
            )

    def value(self, residual: Tensor) -> Tensor:
        """Distance of each sample, (batch, *latent) -> (batch,)."""
        r = residual.flatten(1).float()
        if self.name == "l1":
            return r.abs().mean(1)
        square = r.pow(2).mean(1)
        if self.name == "l2":
            return square
        # sqrt(square + scale^2) - scale without its cancellation where square is small
        return square / ((square + self.scale**2).sqrt() + self.scale)

    def weights(self, residual: Tensor) -> Tensor:
        """Least-squares weights of the squared residuals: (batch, elements) or (batch, 1)."""
        r = residual.flatten(1).float()
        if self.name == "l1":
            return 1 / (r.pow(2) + (0.01 * self.scale) ** 2).sqrt()
        if self.name == "l2":
            return torch.ones_like(r[:, :1])
        return 1 / (r.pow(2).mean(1, keepdim=True) + self.scale**2).sqrt()


def spread(samples: Tensor) -> float:
    """Mean Euclidean distance between two different samples of a set: (n, *latent) -> float.

    A student whose samples spread less than its teacher's lets modes collapse, or blurs. NaN for
    fewer than two samples.
    """
    # on the CPU, since not every device computes pairwise distances
    return float(torch.pdist(samples.detach().flatten(1).float().cpu()).mean())
