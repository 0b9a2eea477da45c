"""Start noises and the many-step results a student is to reproduce."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Model
from .rollout import rollout
from .solver import SolverTable


@dataclass(frozen=True)
class Pairs:
    """Noises with the teacher's samples, all (n, *latent) float32.

    Attributes:
        noise: standard normal start noises.
        latent: the latents they are added to (zeros for text to image).
        target: what the teacher makes of them.
    """

    noise: Tensor
    latent: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: slice | Tensor) -> Pairs:
        return Pairs(self.noise[index], self.latent[index], self.target[index])

    def batches(self, size: int, device: torch.device | str) -> Iterator[Pairs]:
        """Consecutive batches of at most `size` pairs, on `device`."""
        for i in range(0, len(self), size):
            part = self[i : i + size]
            yield Pairs(part.noise.to(device), part.latent.to(device), part.target.to(device))


def student_samples(
    model: Model, table: SolverTable, sigmas: Tensor, pairs: Pairs
) -> tuple[Tensor, list[Tensor]]:
    """Sample one batch of pairs' noises; returns the result and the rollout's history."""
    model.begin_rollout(sigmas)
    return rollout(table, model, [model.scale_noise(pairs.noise, pairs.latent, float(sigmas[0]))])


def teach(
    model: Model, table: SolverTable, sigmas: Tensor, noise: Tensor, latent: Tensor, batch_size: int
) -> Pairs:
    """Sample every noise with the teacher's table.

    Args:
        noise, latent: (n, *latent).

    Raises:
        ValueError: the model returned infinite or undefined values.
    """
    targets = []
    for batch in Pairs(noise, latent, torch.zeros_like(noise)).batches(batch_size, model.device):
        targets.append(student_samples(model, table, sigmas, batch)[0].to(noise.device))
    target = torch.cat(targets)
    bad = int((~torch.isfinite(target.flatten(1)).all(1)).sum())
    if bad:
        raise ValueError(
            f"the teacher's result is infinite or undefined (NaN) for {bad} of {len(target)} "
            f"noises; check that "
            "the model works in a plain KSampler with the teacher's sampler and scheduler"
        )
    return Pairs(noise, latent, target)
