"""Unconstrained vector <-> strictly decreasing noise levels.

Schedules are learned in u = log(sigma) (eps, v and EDM models) or u = logit(sigma) (flow models),
in which a sampler's error varies uniformly. The first and the last level are fixed, u holds the
levels between them. All arithmetic is float64; `StepParameters.sigmas` rounds once to the float32
that ComfyUI samples with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT_GAP = 0.3  # share of a gap that one step must leave
MOST_STEPS = 1000  # of any schedule
MIN_GAP = 0.02  # in u: closer levels would spend a model call without progress


@dataclass(frozen=True)
class Coordinate:
    """An increasing map of noise levels onto the real line; `name` is "log" or "logit"."""

    name: str

    def from_sigma(self, sigma: Tensor) -> Tensor:
        """Coordinates of noise levels > 0; logit clips at 1 - 1e-4, where flow models start."""
        sigma = sigma.double()
        if self.name == "log":
            return sigma.log()
        return torch.logit(sigma.clamp(max=1 - 1e-4))

    def to_sigma(self, u: Tensor) -> Tensor:
        """Noise levels of coordinates, float64."""
        return u.double().exp() if self.name == "log" else torch.sigmoid(u.double())

    def signal(self, sigma: float) -> float:
        """a in a state's a x0 + sigma noise: 1, or 1 - sigma for flow models."""
        return 1.0 if self.name == "log" else 1.0 - sigma

    def shifted(self, sigma: Tensor, offset: Tensor) -> Tensor:
        """Noise levels `offset` away in the coordinate; exact at 0, and 1 stays 1 in logit."""
        factor = offset.exp()
        return sigma * factor if self.name == "log" else sigma * factor / (1 + sigma * (factor - 1))


LOG_SIGMA = Coordinate("log")
LOGIT_SIGMA = Coordinate("logit")


@dataclass(frozen=True)
class StepParameters:
    """The free noise levels of a schedule with N steps.

    Attributes:
        coordinate: the coordinate u of the levels.
        start: first noise level, fixed.
        sigma_min: lowest level a free sigma may take.
        end: last level, fixed; 0 for a complete sampling, above 0 for its first part if it is
            split.
        boundary: of two models (`ld3.experts`), the noise level below which the last step starts;
            0 for one model.
    """

    coordinate: Coordinate
    start: float
    sigma_min: float
    end: float = 0.0
    boundary: float = 0.0

    def sigmas(self, u: Tensor) -> Tensor:
        """The schedule (N+1,) float32 on the CPU for free coordinates u (N-1,)."""
        return self.exact_sigmas(u).float()

    def exact_sigmas(self, u: Tensor) -> Tensor:
        """The same in float64, before rounding; differentiable."""
        ends = torch.tensor([self.start, self.end], dtype=torch.float64)
        return torch.cat([ends[:1], self.coordinate.to_sigma(u), ends[1:]])

    def from_sigmas(self, sigmas: Tensor) -> Tensor:
        """Free coordinates (N-1,) of a schedule (N+1,), separated where levels coincide."""
        return self.separated(self.coordinate.from_sigma(sigmas[1:-1].clamp_min(self.floor)))

    def even(self, steps: int) -> Tensor:
        """Evenly spaced free coordinates (N-1,)."""
        return self.separated(torch.linspace(*self.bounds(), steps + 1, dtype=torch.float64)[1:-1])

    @property
    def floor(self) -> float:
        """The lowest noise level a free sigma may take."""
        return max(self.sigma_min, self.end)

    def bounds(self) -> tuple[float, float]:
        """Upper and lower limit of the free coordinates."""
        u = self.coordinate.from_sigma(torch.tensor([self.start, self.floor], dtype=torch.float64))
        lower = float(u[1]) + (MIN_GAP if self.end > 0 else 0.0)
        return float(u[0]) - MIN_GAP, lower

    def room_for(self, steps: int) -> bool:
        """Whether `steps` levels fit between start and floor with the smallest gap between them."""
        upper, lower = self.bounds()
        return lower + MIN_GAP * max(steps - 2, 0) <= upper and lower <= self._last_limit()

    def _wall(self) -> float:
        """The boundary's coordinate."""
        return float(self.coordinate.from_sigma(torch.tensor(self.boundary, dtype=torch.float64)))

    def _last_limit(self) -> float:
        """The upper limit of the last free coordinate."""
        return self._wall() - MIN_GAP if self.boundary else math.inf

    def stepped(self, u: Tensor, step: Tensor) -> Tensor:
        """u + step, limited so that every gap keeps 30 % of its size and at least the minimum gap.

        Gaps are those between levels, to the start, and to an end above 0; u must be separated.
        """
        upper, lower = self.bounds()
        above = torch.cat([u.new_tensor([upper + MIN_GAP]), u[:-1]])
        kept = [max(KEPT_GAP * gap, MIN_GAP) for gap in (above - u).tolist()]
        stepped = (u + step).tolist()
        if stepped:
            stepped[-1] = min(stepped[-1], self._last_limit())
        limit = upper + MIN_GAP
        for k in range(len(stepped)):
            limit = stepped[k] = min(stepped[k], limit - kept[k])
        limit = lower
        if self.end > 0:
            limit += max(KEPT_GAP * (float(u[-1]) - lower + MIN_GAP) - MIN_GAP, 0.0)
        for k in range(len(stepped) - 1, -1, -1):
            stepped[k] = max(stepped[k], limit)
            limit = stepped[k] + kept[k]
        return u.new_tensor(stepped)

    def perturbation(self, u: Tensor, k: int, h: float) -> float:
        """A signed difference of about h for level k that stays well inside its gaps.

        And on its side of the boundary: beyond it another model would be called.
        """
        upper, lower = self.bounds()
        above = (float(u[k - 1]) if k else upper + MIN_GAP) - float(u[k])
        below = float(u[k]) - (float(u[k + 1]) if k + 1 < len(u) else lower)
        if self.boundary:
            to_wall = float(u[k]) - self._wall()
            above, below = (
                (above, min(below, to_wall)) if to_wall >= 0 else (min(above, -to_wall), below)
            )
        return min(h, 0.5 * above) if above >= below else -min(h, 0.5 * below)

    def separated(self, u: Tensor) -> Tensor:
        """The descending vector u (N-1,), moved into the bounds and at least `MIN_GAP` apart."""
        upper, lower = self.bounds()
        u = u.double().clone()
        u[-1:].clamp_(max=self._last_limit())
        for k in range(len(u)):
            u[k] = min(float(u[k]), (float(u[k - 1]) if k else upper + MIN_GAP) - MIN_GAP)
        for k in range(len(u) - 1, -1, -1):
            u[k] = max(float(u[k]), float(u[k + 1]) + MIN_GAP if k + 1 < len(u) else lower)
        return u


def check_sigmas(sigmas: Tensor) -> None:
    """Raise ValueError unless sigmas (N+1,) is finite, strictly decreasing and ends at >= 0.

    N is 1,000 at most.
    """
    if sigmas.ndim != 1 or not 2 <= len(sigmas) <= MOST_STEPS + 1:
        raise ValueError(
            f"a schedule is a list of at least 2 noise levels, at most {MOST_STEPS + 1}; got shape "
            f"{tuple(sigmas.shape)}"
        )
    values = [float(s) for s in sigmas]
    if not all(math.isfinite(s) for s in values):
        raise ValueError(f"noise levels must be finite; got {listed(values)}")
    if values[-1] < 0 or any(a <= b for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(f"noise levels must strictly decrease to 0 or above; got {listed(values)}")


def listed(values: list[float]) -> str:
    """The first of some numbers."""
    return ", ".join([f"{value:.4g}" for value in values[:8]] + [".."] * (len(values) > 8))
