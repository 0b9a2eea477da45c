"""What is learned of a few-step sampler, as one vector.

    theta = [ u_1 .. u_{N-1} | d_1 .. d_{M-1} ]

u are the free noise levels (`StepParameters`), d the decoupled times (LD3, arXiv 2405.15506,
section 3.3): call m of the sampler asks the network at another noise level than its state's, d_m
away in the same coordinate, D_m = denoise(X_m, sigma_c). The first call is asked where the
network's levels start. (For variance-preserving models LD3's code also keeps the network's scaled
input as it was, by a factor on X_m; learning goes further without, see docs/benchmarks.md.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .model import Model
from .parameters import StepParameters
from .solver import Plan, Sampler

LARGEST_OFFSET = 1.0  # in u: further away the network answers another question


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
    """

    sampler: Sampler
    levels: StepParameters
    model: Model
    steps: int
    calls: int
    decoupled: bool = False

    @property
    def free_levels(self) -> int:
        """How many entries of theta are noise levels: N-1."""
        return self.steps - 1

    @property
    def size(self) -> int:
        """Length of theta."""
        return self.free_levels + (self.calls - 1 if self.decoupled else 0)

    def start(self, u: Tensor) -> Tensor:
        """theta of free levels u (N-1,) without any extras."""
        return torch.cat([u, u.new_zeros(self.size - len(u))])

    def plan(self, theta: Tensor) -> Plan:
        """The way to sample that theta stands for."""
        sigmas = self.levels.sigmas(theta[: self.free_levels])
        table = self.sampler.table(sigmas)
        if self.decoupled:
            eval_sigmas = self.eval_sigmas(theta, table.state_sigmas)
            table = replace(table, eval_sigmas=eval_sigmas)
        return Plan(sigmas, table)

    def eval_sigmas(self, theta: Tensor, state_sigmas: Tensor) -> Tensor:
        """Where the network is asked, (M,), within the levels it knows; differentiable."""
        if not self.decoupled:
            return state_sigmas
        offsets = torch.cat([theta.new_zeros(1), theta[self.free_levels :]])
        asked = self.model.coordinate.moved(state_sigmas, offsets)
        lowest = state_sigmas.detach().clamp(max=self.model.sigma_min)
        highest = state_sigmas.detach().clamp(min=self.model.sigma_max)
        return torch.minimum(torch.maximum(asked, lowest), highest)

    def moved(self, theta: Tensor, step: Tensor) -> Tensor:
        """theta + step, within what a schedule and decoupled times may be."""
        n = self.free_levels
        offsets = (theta[n:] + step[n:]).clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
        return torch.cat([self.levels.moved(theta[:n], step[:n]), offsets])

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
