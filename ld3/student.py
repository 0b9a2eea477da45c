"""What is learned of a few-step sampler, as one vector.

    theta = [ u_1 .. u_{N-1} | d_1 .. d_{M-1} | c_1 .. c_K ]

u are the free noise levels (`StepParameters`).

d are the decoupled times (LD3, arXiv 2405.15506, section 3.3): call m of the sampler asks the
network at another noise level than its state's, d_m away in the same coordinate, D_m =
denoise(X_m, sigma_c). The first call is asked where the network's levels start. (For
variance-preserving models LD3's code also keeps the network's scaled input as it was, by a factor
on X_m; learning goes further without, see docs/benchmarks.md.)

c are corrections of the sampler's coefficients (as in the generalised solver, arXiv 2510.17699):
row m of its table gains c W[m,m] (D_{m-1} - D_{m-1-j}) for j = 1 .. order, in units of the row's
latest coefficient. A row's weights keep their sum, so what every output agrees on (an area kept by
a mask) stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .model import Model
from .parameters import StepParameters
from .solver import Plan, Sampler

LARGEST_OFFSET = 1.0  # in u: further away the network answers another question
LARGEST_CORRECTION = 2.0


@dataclass(frozen=True)
class Student:
    """A sampler at N steps with its free parameters.

    Attributes:
        sampler: the sampler to learn for.
        levels: the free noise levels.
        model: asked for the range of its noise levels.
        steps: N.
        calls: M, the model calls of a sample.
        decoupled: whether theta holds decoupled times.
        order: how many earlier outputs a row's corrections reach back to; 0 for none.
    """

    sampler: Sampler
    levels: StepParameters
    model: Model
    steps: int
    calls: int
    decoupled: bool = False
    order: int = 0

    @property
    def free_levels(self) -> int:
        """How many entries of theta are noise levels: N-1."""
        return self.steps - 1

    @property
    def times(self) -> int:
        """How many are decoupled times."""
        return self.calls - 1 if self.decoupled else 0

    @property
    def corrected(self) -> list[tuple[int, int]]:
        """(m, j) of each correction: row, and how far back."""
        rows = range(2, self.calls + 1)
        return [(m, j) for m in rows for j in range(1, min(self.order, m - 1) + 1)]

    @property
    def size(self) -> int:
        """Length of theta."""
        return self.free_levels + self.times + len(self.corrected)

    @property
    def extras(self) -> list[str]:
        """What theta holds besides noise levels, in words."""
        named = {"decoupled times": self.decoupled, "solver corrections": self.order > 0}
        return [name for name, learned in named.items() if learned]

    def start(self, u: Tensor) -> Tensor:
        """theta of free levels u (N-1,), or a theta with fewer extras; the others are 0."""
        return torch.cat([u, u.new_zeros(self.size - len(u))])

    def plan(self, theta: Tensor) -> Plan:
        """The way to sample that theta stands for."""
        sigmas = self.levels.sigmas(theta[: self.free_levels])
        table = self.sampler.table(sigmas)
        if self.size > self.free_levels:
            table = replace(
                table,
                weights=self.weights(theta, table.weights),
                eval_sigmas=self.eval_sigmas(theta, table.state_sigmas),
            )
        return Plan(sigmas, table)

    def weights(self, theta: Tensor, weights: Tensor) -> Tensor:
        """The sampler's weights (M+1, 1+M) with theta's corrections; differentiable."""
        if not self.order:
            return weights
        change = torch.zeros_like(weights)
        latest = weights.diagonal()[1:]
        for c, (m, j) in zip(theta[self.free_levels + self.times :], self.corrected, strict=True):
            change[m, m] = change[m, m] + c * latest[m - 1]
            change[m, m - j] = change[m, m - j] - c * latest[m - 1]
        return weights + change

    def eval_sigmas(self, theta: Tensor, state_sigmas: Tensor) -> Tensor:
        """Where the network is asked, (M,), within the levels it knows; differentiable."""
        if not self.decoupled:
            return state_sigmas
        offsets = torch.cat(
            [theta.new_zeros(1), theta[self.free_levels : self.free_levels + self.times]]
        )
        asked = self.model.coordinate.moved(state_sigmas, offsets)
        lowest = state_sigmas.detach().clamp(max=self.model.sigma_min)
        highest = state_sigmas.detach().clamp(min=self.model.sigma_max)
        return torch.minimum(torch.maximum(asked, lowest), highest)

    def moved(self, theta: Tensor, step: Tensor) -> Tensor:
        """theta + step, within what a schedule and decoupled times may be."""
        n = self.free_levels
        moved = theta + step
        moved[:n] = self.levels.moved(theta[:n], step[:n])
        moved[n : n + self.times].clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        moved[n + self.times :].clamp_(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        return moved

    def probed(self, theta: Tensor, k: int, h: float) -> tuple[float, Plan]:
        """The plan with entry k moved by about h, and the move that was made."""
        moved = theta.clone()
        if k >= self.free_levels:
            h = h if float(theta[k]) <= 0 else -h
            moved[k] += h
            return h, self.plan(moved)
        moved[k] += self.levels.probe_step(theta[: self.free_levels], k, h)
        coordinate, sigmas = self.levels.coordinate, self.levels.sigmas(theta[: self.free_levels])
        plan = self.plan(moved)
        # the step that float32 sigmas really made
        change = coordinate.from_sigma(plan.sigmas[k + 1]) - coordinate.from_sigma(sigmas[k + 1])
        return float(change), plan
