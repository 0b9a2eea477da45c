"""The extras of a sampler in three numbers.

    z = [ u_1 .. u_{N-1} | first, last offset | c ]

Learned one by one (`SolverParameters`), decoupled times and corrections look alike for all models,
samplers and N measured: the second call asks the network a little below its state's noise level,
the last call well below it, those between at it, and all corrections are about equally positive.
(The first call cannot ask elsewhere; a student's result is made by the last one.) Three numbers
instead of 2 M - 3 cost fewer perturbed rollouts, and few noises fit them without following chance.
See docs/benchmarks.md, "Few extras".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .parameters import StepParameters
from .solver_parameters import LARGEST_CORRECTION, LARGEST_OFFSET, SolverParameters
from .table import Discretization, Extra


@dataclass(frozen=True)
class FewParameters:
    """The free parameters of a sampler at N steps, with few numbers for the extras.

    Attributes:
        all: the parameters one by one; which extras they contain is learned.
    """

    all: SolverParameters

    @property
    def levels(self) -> StepParameters:
        """The free noise levels."""
        return self.all.levels

    @property
    def free_levels(self) -> int:
        """How many entries of z are noise levels: N-1."""
        return self.all.free_levels

    @property
    def offsets(self) -> int:
        """How many are offsets: 2, or 1 where the second call is the last."""
        return min(self.all.times, 2)

    @property
    def size(self) -> int:
        """Length of z."""
        return self.free_levels + self.offsets + bool(self.all.corrections)

    @property
    def steps(self) -> int:
        """N."""
        return self.all.steps

    @property
    def calls(self) -> int:
        """M, the model calls per sample."""
        return self.all.calls

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What z contains besides noise levels."""
        return self.all.extras

    def extended(self, u: Tensor) -> Tensor:
        """z of free levels u (N-1,), the extras 0."""
        return torch.cat([u, u.new_zeros(self.size - len(u))])

    def expanded(self, z: Tensor) -> Tensor:
        """theta of `SolverParameters`."""
        theta, free = self.all.extended(z[: self.free_levels]), self.free_levels
        end = free + self.all.times
        if self.offsets:
            theta[free], theta[end - 1] = z[free], z[free + self.offsets - 1]
        if self.all.corrections:
            theta[end:] = z[-1]
        return theta

    def summarized(self, theta: Tensor) -> Tensor:
        """z of a theta of `SolverParameters`: first and last offset, and the mean correction."""
        free = self.free_levels
        end = free + self.all.times
        ends = theta[free:end][[0, -1][-self.offsets :]] if self.offsets else theta[:0]
        corrections = theta[end:]
        common = corrections.mean()[None] if len(corrections) else corrections
        return torch.cat([theta[:free], ends, common])

    def describes(self, theta: Tensor) -> bool:
        """Whether these few numbers describe a theta of `SolverParameters` exactly."""
        return torch.allclose(self.expanded(self.summarized(theta)), theta, atol=1e-9)

    def discretization(self, z: Tensor) -> Discretization:
        """The solver with the parameters z."""
        return self.all.discretization(self.expanded(z))

    def stepped(self, z: Tensor, step: Tensor) -> Tensor:
        """z + step, within the limits of noise levels, decoupled times and corrections."""
        free, end = self.free_levels, self.free_levels + self.offsets
        stepped = z + step
        stepped[:free] = self.levels.stepped(z[:free], step[:free])
        stepped[free:end].clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        stepped[end:].clamp_(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        return stepped

    def perturbed(self, z: Tensor, k: int, h: float) -> tuple[float, Discretization]:
        """Entry k changed by about h: the exact change after rounding, and the solver."""
        if k < self.free_levels:
            return self.all.perturbed(self.expanded(z), k, h)
        perturbed = z.clone()
        h = h if float(z[k]) <= 0 else -h
        perturbed[k] += h
        return h, self.discretization(perturbed)
