"""What descents learn of a few-step sampler, as one vector.

    theta = [ u_1 .. u_{N-1} | d_1 .. d_{M-1} | c_1 .. c_K ]

u are the free noise levels (`StepParameters`).

d are the decoupled times (LD3, arXiv 2405.15506, section 3.3): in model call m the network is
evaluated at another noise level than its state's, d_m away in the same coordinate, D_m =
denoise(X_m, sigma_c). The first call is evaluated at the first level. (For variance-preserving
models LD3's code also keeps the network's scaled input as it was, by a factor on X_m; here the
input is scaled for sigma_c, as ComfyUI does it.)

c are corrections of the sampler's coefficients (as in the generalised solver, arXiv 2510.17699):
row m of its table gains c W[m,m] (D_{m-1} - D_{m-1-j}) for j = 1 .. order, in units of the row's
latest coefficient. The sum of a row's weights does not change, so what all outputs agree on (an
area preserved by a mask) does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .experts import continued
from .parameters import StepParameters
from .table import Discretization, Extra
from .tracing import TracedSampler

LARGEST_OFFSET = 1.0  # in u: further away the denoised output is that of another level
LARGEST_CORRECTION = 2.0


@dataclass(frozen=True)
class SolverParameters:
    """The free parameters of a sampler at N steps.

    Attributes:
        sampler: the sampler to learn for.
        levels: the free noise levels.
        sigma_max: the largest noise level the network knows (the smallest is `levels.sigma_min`).
        steps: N.
        calls: M, the model calls per sample.
        decoupled: whether theta contains decoupled times.
        order: how many earlier outputs the corrections of a row use; 0 for no corrections.
    """

    sampler: TracedSampler
    levels: StepParameters
    sigma_max: float
    steps: int
    calls: int
    decoupled: bool = False
    order: int = 0

    @staticmethod
    def of_steps(
        sampler: TracedSampler, levels: StepParameters, sigma_max: float, steps: int
    ) -> SolverParameters:
        """Those of the noise levels alone; UnsupportedSampler if the sampler has no table."""
        # any schedule makes the same number of calls
        calls = sampler.table(levels.sigmas(levels.even(steps))).model_calls
        return SolverParameters(sampler, levels, sigma_max, steps, calls)

    def in_steps(self, steps: int) -> SolverParameters:
        """The same kinds of parameters in another number of steps."""
        found = SolverParameters.of_steps(self.sampler, self.levels, self.sigma_max, steps)
        return replace(found, decoupled=self.decoupled, order=self.order)

    @property
    def free_levels(self) -> int:
        """How many entries of theta are noise levels: N-1."""
        return self.steps - 1

    @property
    def times(self) -> int:
        """How many are decoupled times."""
        return self.calls - 1 if self.decoupled else 0

    @property
    def corrections(self) -> list[tuple[int, int]]:
        """(m, j) of each correction: the row, and how many outputs back."""
        rows = range(2, self.calls + 1)
        return [(m, j) for m in rows for j in range(1, min(self.order, m - 1) + 1)]

    @property
    def size(self) -> int:
        """Length of theta."""
        return self.free_levels + self.times + len(self.corrections)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What theta contains besides noise levels."""
        learned = {Extra.DECOUPLED_TIMES: self.decoupled, Extra.SOLVER_CORRECTIONS: self.order > 0}
        return tuple(extra for extra, present in learned.items() if present)

    def extended(self, theta: Tensor) -> Tensor:
        """theta of free levels u (N-1,), or a theta with fewer extras; the new entries are 0."""
        return torch.cat([theta, theta.new_zeros(self.size - len(theta))])

    def discretization(self, theta: Tensor) -> Discretization:
        """The solver with the parameters theta."""
        solver = self.sampler.discretization(self.levels.sigmas(theta[: self.free_levels]))
        if self.size == self.free_levels:
            return solver
        table, split = solver.table, solver.table.split
        table = replace(
            table,
            weights=self.corrected_weights(theta, table.weights, split),
            eval_sigmas=self.decoupled_sigmas(theta, table.state_sigmas, split),
        )
        return Discretization(solver.sigmas, table, self.extras)

    def corrected_weights(self, theta: Tensor, weights: Tensor, split: int | None = None) -> Tensor:
        """The sampler's weights with theta's corrections, of D alone; differentiable.

        Args:
            split: of the table: no correction uses an output of the other model.
        """
        if not self.order:
            return weights
        change, outputs = torch.zeros_like(weights), (weights.shape[1] - 1) // self.calls
        for c, (m, j) in zip(theta[self.free_levels + self.times :], self.corrections, strict=True):
            if split is not None and m - 1 - j < split < m:
                continue
            latest = 1 + outputs * (m - 1)
            earlier, moved = latest - outputs * j, c * weights[m, latest]
            change[m, latest] = change[m, latest] + moved
            change[m, earlier] = change[m, earlier] - moved
        return weights + (change if split is None else continued(change, weights, split))

    def decoupled_sigmas(
        self, theta: Tensor, state_sigmas: Tensor, split: int | None = None
    ) -> Tensor:
        """Where the network is evaluated, (M,), within the levels it knows; differentiable.

        Two models know those on their side of the boundary.
        """
        if not self.decoupled:
            return state_sigmas
        offsets = torch.cat(
            [theta.new_zeros(1), theta[self.free_levels : self.free_levels + self.times]]
        )
        shifted = self.levels.coordinate.shifted(state_sigmas, offsets)
        states = state_sigmas.detach()
        lowest, highest = states.clamp(max=self.levels.sigma_min), states.clamp(min=self.sigma_max)
        if split is not None:
            lowest[:split] = states[:split].clamp(max=self.levels.boundary)
            highest[split:] = states[split:].clamp(min=self.levels.boundary)
        return torch.minimum(torch.maximum(shifted, lowest), highest)

    def stepped(self, theta: Tensor, step: Tensor) -> Tensor:
        """theta + step, within the limits of noise levels, decoupled times and corrections."""
        n = self.free_levels
        stepped = theta + step
        stepped[:n] = self.levels.stepped(theta[:n], step[:n])
        stepped[n : n + self.times].clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        stepped[n + self.times :].clamp_(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        return stepped

    def perturbed(self, theta: Tensor, k: int, h: float) -> tuple[float, Discretization]:
        """Entry k changed by about h: the exact change after rounding, and the solver."""
        perturbed = theta.clone()
        if k >= self.free_levels:
            h = h if float(theta[k]) <= 0 else -h
            perturbed[k] += h
            return h, self.discretization(perturbed)
        perturbed[k] += self.levels.perturbation(theta[: self.free_levels], k, h)
        coordinate, sigmas = self.levels.coordinate, self.levels.sigmas(theta[: self.free_levels])
        solver = self.discretization(perturbed)
        # float32 sigmas round the difference
        change = coordinate.from_sigma(solver.sigmas[k + 1]) - coordinate.from_sigma(sigmas[k + 1])
        return float(change), solver
