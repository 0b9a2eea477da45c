"""A teacher's trajectories at any noise level, interpolated without a model call."""

from __future__ import annotations

import bisect
import functools

import torch
from torch import Tensor

from .parameters import Coordinate
from .table import SolverTable

TRAJECTORY_ELEMENTS = 64  # per latent; for a few parameters as good as all elements


def subsample(state: Tensor, count: int = TRAJECTORY_ELEMENTS) -> Tensor:
    """A fixed choice of at most `count` elements of each latent, on the CPU: (n, few) float32."""
    flat = state.flatten(1)
    if flat.shape[1] > count:
        flat = flat[:, _chosen(flat.shape[1], count).to(flat.device)]
    return flat.cpu().float()


@functools.cache
def _chosen(size: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(size, generator=generator)[:count].sort().values


class TeacherTrajectories:
    """Rollouts of a teacher between their model calls, on a few elements of each latent.

    Between two calls a state is the cubic in sigma with the ODE's slopes, dx/dsigma = (x - D) /
    sigma, at both ends; below the last call it is the straight line to its output. Outputs are
    cubic in the coordinate, with the slopes of parabolas through three calls.

    Args:
        table: the teacher's.
        history: (n, 1+M, few), x_init, D_0, .., D_{M-1} of each rollout; (n, 1+2M, few) with the
            guidances of a CFG++ sampler.
        coordinate: the model's.
        latent: (n, few), what the noise is added to; None for zeros.
    """

    def __init__(
        self,
        table: SolverTable,
        history: Tensor,
        coordinate: Coordinate,
        latent: Tensor | None = None,
    ) -> None:
        # of several calls at one level the last received the corrected state
        last = {float(s): m for m, s in enumerate(table.state_sigmas) if s > 0}
        calls = [last[s] for s in sorted(last)]
        u = coordinate.from_sigma(table.state_sigmas[calls]).tolist()
        # flow's coordinate is clipped near 1: of levels that are the same there, the highest
        calls = [call for call, a, b in zip(calls, u, [*u[1:], None], strict=True) if a != b]
        self.coordinate, self._levels = coordinate, table.state_sigmas[calls].tolist()
        self._u = coordinate.from_sigma(table.state_sigmas[calls]).tolist()
        self._states = torch.einsum("mj,nje->mne", table.weights[calls].float(), history)
        self._outputs = history[:, table.denoised][:, calls].movedim(1, 0)
        self._slopes = _parabola_slopes(self._u, self._outputs)
        self._guidance = history[:, 2::2][:, calls].movedim(1, 0) if table.outputs == 2 else None
        self._start, self._first_level = history[:, 0], float(table.state_sigmas[0])
        self._latent = torch.zeros_like(self._start) if latent is None else latent

    def start(self, sigma: float) -> Tensor:
        """The teacher's latents and noises, mixed for a sampler that begins at sigma: (n, few)."""
        noise = self._start - self.coordinate.signal(self._first_level) * self._latent
        share = sigma / self._first_level
        return self.coordinate.signal(sigma) * self._latent + share * noise

    def states(self, sigma: float) -> Tensor:
        """All states at a noise level: (n, few)."""
        j = self._interval(sigma)
        low, high = self._levels[j - 1 : j + 1]
        if sigma < low:
            return torch.lerp(self._outputs[j - 1], self._states[j - 1], sigma / low)
        (x0, x1), (d0, d1) = self._states[j - 1 : j + 1], self._outputs[j - 1 : j + 1]
        h = high - low
        t = (sigma - low) / h
        slopes = (t * (1 - t) ** 2 * h / low, -(t**2) * (1 - t) * h / high)
        by_slopes = slopes[0] * (x0 - d0) + slopes[1] * (x1 - d1)
        return torch.lerp(x0, x1, t**2 * (3 - 2 * t)) + by_slopes

    def outputs(self, sigma: float) -> Tensor:
        """All denoised outputs at a noise level: (n, few)."""
        j = self._interval(sigma)
        t, h = self._place(j, sigma)
        by_values = torch.lerp(self._outputs[j - 1], self._outputs[j], t**2 * (3 - 2 * t))
        by_slopes = t * (1 - t) ** 2 * self._slopes[j - 1] - t**2 * (1 - t) * self._slopes[j]
        return by_values + h * by_slopes

    def guidance(self, sigma: float) -> Tensor:
        """All guidances at a noise level, linear in the coordinate: (n, few).

        0 if the teacher's sampler does not use them.
        """
        if self._guidance is None:
            return torch.zeros_like(self._start)
        j = self._interval(sigma)
        return torch.lerp(self._guidance[j - 1], self._guidance[j], self._place(j, sigma)[0])

    def _place(self, j: int, sigma: float) -> tuple[float, float]:
        """Where sigma lies in interval j, from 0 to 1, and the interval's length in u."""
        u = float(self.coordinate.from_sigma(torch.tensor([sigma], dtype=torch.float64)))
        low, high = self._u[j - 1 : j + 1]
        return min(max((u - low) / (high - low), 0.0), 1.0), high - low

    def _interval(self, sigma: float) -> int:
        """j of the interval between levels j - 1 and j that contains sigma, or the nearest one."""
        return min(max(bisect.bisect_left(self._levels, sigma), 1), len(self._levels) - 1)


def _parabola_slopes(u: list[float], values: Tensor) -> Tensor:
    """Slopes at each u of the parabola through it and its neighbours; at the ends, of the chord."""
    h = values.new_tensor(u).diff()[:, None, None]
    chords = values.diff(dim=0) / h
    inner = (h[1:] * chords[:-1] + h[:-1] * chords[1:]) / (h[1:] + h[:-1])
    return torch.cat([chords[:1], inner, chords[-1:]])
