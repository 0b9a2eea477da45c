"""Latents of several streams, such as video and audio, packed into one flat tensor.

A stream with fewer elements or smaller values would not count in a mean over elements. All of a
training happens in scaled latents, in which each stream has the same share of the mean square:
samplers are linear, so a table is the same there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .model import Model
from .trajectories import subsample

SMALLEST_STD = 1e-6


@dataclass(frozen=True, eq=False)
class Streams:
    """How packed latents (n, 1, L) are scaled.

    Attributes:
        sizes: elements of each stream; their sum is L.
        scale: (1, 1, L) float32 on the CPU; one number per stream.
    """

    sizes: tuple[int, ...]
    scale: Tensor

    @staticmethod
    def of(sizes: tuple[int, ...], samples: Tensor) -> Streams:
        """The scales with which each stream of samples (n, 1, L) has the same mean square."""
        total, count = sum(sizes), len(sizes)
        parts = [
            torch.full((size,), (total / (count * size)) ** 0.5 / max(std, SMALLEST_STD))
            for size, std in zip(sizes, _stds(samples, sizes), strict=True)
        ]
        return Streams(sizes, torch.cat(parts).reshape(1, 1, -1))

    def errors(self, residual: Tensor) -> list[float]:
        """RMSE of each stream, in its own standard deviations.

        NaN for a stream of which no element is left.

        Args:
            residual: of scaled latents, the elements that `subsample` chooses: (n, few).
        """
        total, count = sum(self.sizes), len(self.sizes)
        owner = torch.cat([torch.full((n,), float(k)) for k, n in enumerate(self.sizes)])
        chosen = subsample(owner[None], residual.shape[1])[0]
        squares = [residual[:, chosen == k].square().mean() for k in range(count)]
        weights = [count * size / total for size in self.sizes]
        return [float((s * w).sqrt()) for s, w in zip(squares, weights, strict=True)]

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents or noises (n, 1, L), scaled."""
        return latents * self.scale.to(latents)

    def model(self, model: Model) -> Model:
        """The same model on scaled latents."""

        def unscaled(latents: Tensor) -> Tensor:
            return latents / self.scale.to(latents)

        def calling(call: Callable[..., Any]) -> Callable[..., Any]:
            def scaled(x: Tensor, sigma: Tensor) -> Any:
                outputs = call(unscaled(x), sigma)
                if isinstance(outputs, tuple):
                    return tuple(self.scaled(output) for output in outputs)
                return self.scaled(outputs)

            return scaled

        calls = {
            name: getattr(model, name)
            for name in ("denoise", "denoise_guided", "low_noise", "low_noise_guided")
        }
        return replace(
            model,
            **{name: calling(call) for name, call in calls.items() if call is not None},
            scale_noise=lambda noise, latent, sigma: self.scaled(
                model.scale_noise(unscaled(noise), unscaled(latent), sigma)
            ),
            begin_batch=lambda noise, latent: model.begin_batch(unscaled(noise), unscaled(latent)),
        )


def _stds(samples: Tensor, sizes: tuple[int, ...]) -> list[float]:
    return [float(part.std()) for part in samples.flatten(1).split(list(sizes), 1)]
