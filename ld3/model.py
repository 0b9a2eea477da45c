"""What the method needs to know about a diffusion model, and nothing more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .journal import Answers, Journal
from .parameters import Coordinate
from .table import Discretization, rollout

T = TypeVar("T")
logger = logging.getLogger(__name__)

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoise(x, sigma) -> x0`: x (batch, *latent), sigma (batch,), guidance applied."""

GuidedDenoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The same with the guidance: x0 and G = x0 - that of the unconditional model (`ld3.table`)."""

REPEAT_TOLERANCE = 1e-2  # relative; half precision on a GPU repeats itself far better than this


def repeat_difference(output: Tensor, again: Tensor) -> float:
    """Largest difference of two outputs for the same input, relative to the first's largest."""
    return float((again - output).abs().max() / output.abs().max().clamp_min(1e-8))


def scale_by_sigma(noise: Tensor, latent: Tensor, sigma: float) -> Tensor:
    """Start state of a variance-exploding model: latent + sigma * noise."""
    return latent + sigma * noise


@dataclass
class Model:
    """A denoiser with the facts a schedule depends on.

    Attributes:
        denoise: `Denoiser`; the network as it will be deployed, guidance included.
        coordinate: in which coordinate noise levels are learned (`LOG_SIGMA` or `LOGIT_SIGMA`).
        sigma_min, sigma_max: the range of noise levels the network knows.
        scale_noise: (noise, latent, sigma_0) -> start state, each (batch, *latent).
        begin_batch: receives noises and latents (batch, *latent) of the samples whose calls follow.
        begin_rollout: receives the full sigmas of every rollout before its first call.
        device: where states are while the denoiser runs.
        batch_size: samples per network call; halved where memory does not suffice.
        time_neighbours: sigma -> a noise level below and one above, between which the derivative in
            time is taken as a secant; None where the network's own derivative is right.
        stateless: whether an output depends on nothing but x and sigma; if not, rollouts share no
            calls.
        denoise_guided: for CFG++ samplers; None where there is no guidance.
        out_of_memory: whether an error says that memory did not suffice.
        free_memory: called after such an error, when what failed is not referred to any more.
        boundary: of two models (`ld3.experts`), the noise level at and above which the first is
            used, and below which `low_noise`; 0 for one model.
        low_noise, low_noise_guided: `denoise` and `denoise_guided` of the second.
        journal: keeps answers for an interrupted training; None keeps none.
        calls: network evaluations so far, counted per sample (guidance is not counted twice).
    """

    denoise: Denoiser
    coordinate: Coordinate
    sigma_min: float
    sigma_max: float
    scale_noise: Callable[[Tensor, Tensor, float], Tensor] = scale_by_sigma
    begin_batch: Callable[[Tensor, Tensor], None] = lambda noise, latent: None
    begin_rollout: Callable[[Tensor], None] = lambda sigmas: None
    device: torch.device | str = "cpu"
    batch_size: int = 4
    time_neighbours: Callable[[float], tuple[float, float]] | None = None
    stateless: bool = True
    denoise_guided: GuidedDenoiser | None = None
    out_of_memory: Callable[[Exception], bool] = lambda error: False
    free_memory: Callable[[], None] = lambda: None
    boundary: float = 0.0
    low_noise: Denoiser | None = None
    low_noise_guided: GuidedDenoiser | None = None
    journal: Journal | None = None
    calls: int = field(default=0, init=False)

    def __call__(
        self, x: Tensor, sigma: Tensor, guidance: bool = False, low: bool | None = None
    ) -> Any:
        """x0 (batch, *latent), or with `guidance` the pair of x0 and G, see `GuidedDenoiser`.

        Args:
            low: of two models, whether the second is meant; if None the noise level decides.
        """
        self.calls += x.shape[0]
        denoise, guided = self.denoise, self.denoise_guided
        if self.low_noise is not None:
            if low is None:
                low = bool(sigma.reshape(-1)[0] < sigma.new_tensor(self.boundary))
            if low:
                denoise, guided = self.low_noise, self.low_noise_guided
        if not guidance:
            return denoise(x, sigma)
        if guided is None:
            raise ValueError("this model has no guidance, which CFG++ samplers use")
        return guided(x, sigma)

    def answer(self, asked: list[Any], compute: Callable[[], Answers]) -> Answers:
        """`compute`'s tensors, or those of an interrupted training, see `ld3.journal`."""
        return compute() if self.journal is None else self.journal.recall(self, asked, compute)

    def within_memory(self, work: Callable[[], T]) -> T:
        """`work`'s value; where memory does not suffice, again with half the batch size.

        Calls that came to nothing are not counted.

        Args:
            work: makes batches of at most `batch_size`, and changes nothing before it returns.
        """
        while True:
            calls = self.calls
            try:
                return work()
            except Exception as error:
                if self.batch_size == 1 or not self.out_of_memory(error):
                    raise
            # only here do the frames of the failed batch, and its tensors, no longer exist
            self.calls, self.batch_size = calls, (self.batch_size + 1) // 2
            self.free_memory()
            logger.warning(
                "LD3: out of memory; from now on at most %d samples per model call", self.batch_size
            )

    def sample(
        self, solver: Discretization, noise: Tensor, latent: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Sample one batch on `device`: noise and latent (batch, *latent).

        Returns:
            The result and the history of the rollout, see `ld3.table.rollout`.
        """
        return rollout(solver.table, self, [self.start(solver.sigmas, noise, latent)])

    def start(self, sigmas: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """Begin a rollout at these noise levels (N+1,): its start state (batch, *latent)."""
        self.begin_batch(noise, latent)
        self.begin_rollout(sigmas)
        return self.scale_noise(noise, latent, float(sigmas[0]))
