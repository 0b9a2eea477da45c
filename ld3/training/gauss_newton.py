"""Gauss-Newton on noise levels, without autograd.

A schedule has 2-9 free numbers u. Differences of whole rollouts give the student's Jacobian

    J_i[:, k] = (Phi(u + h e_k; x_i) - Phi(u; x_i)) / h ,

at N + N(N-1)/2 model calls a noise: calls before the first one that level k touches are shared.
The damped, reweighted normal equations (Levenberg 1944, Marquardt 1963; Holland & Welsch 1977)

    A = sum_i w_i J_i^T J_i ,  g = sum_i w_i J_i^T r_i ,  step = -(A + mu diag A)^-1 g

are averaged over iterations with fresh noises, so few noises an iteration suffice. Finite steps in
u are also the better derivative: a network's local derivative in time is mostly ripple of its time
embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metrics import Distance
from ..model import Model
from ..parameters import StepParameters
from ..rollout import rollout
from ..solver import SolverTable
from ..teacher import Pairs, student_samples

TableOf = Callable[[Tensor], SolverTable]


@dataclass(frozen=True)
class GaussNewtonSettings:
    """Constants of the optimiser; the defaults are measured (docs/benchmarks.md).

    Attributes:
        noises: fresh noises an iteration.
        difference: step h in u; 0.05 for float32 and half precision, 0.1 for quantised weights.
        damping: mu.
        memory: share of the running averages of A and g that an iteration keeps.
        largest_step, smallest_step: cap on |step| in u, falling geometrically from first to last
            iteration.
    """

    noises: int = 8
    difference: float = 0.05
    damping: float = 0.02
    memory: float = 0.5
    largest_step: float = 1.0
    smallest_step: float = 0.06


def normal_equations(
    model: Model,
    table_of: TableOf,
    parameters: StepParameters,
    u: Tensor,
    pairs: Pairs,
    distance: Distance,
    batch_size: int,
    difference: float,
) -> tuple[Tensor, Tensor]:
    """A (N-1, N-1) and g (N-1,) of the weighted least squares at u, means over pairs, float64."""
    free = len(u)
    a, g = torch.zeros(free, free, dtype=torch.float64), torch.zeros(free, dtype=torch.float64)
    sigmas = parameters.sigmas(u)
    table = table_of(sigmas)
    moves = []
    for k in range(free):
        moved = u.clone()
        moved[k] += parameters.probe_step(u, k, difference)
        moved_sigmas = parameters.sigmas(moved)
        # the step that float32 sigmas really made
        h = float(
            parameters.coordinate.from_sigma(moved_sigmas[k + 1])
            - parameters.coordinate.from_sigma(sigmas[k + 1])
        )
        moves.append((h, moved_sigmas, table_of(moved_sigmas)))
    for batch in pairs.batches(batch_size, model.device):
        result, history = student_samples(model, table, sigmas, batch)
        residual = (result - batch.target).flatten(1)
        columns = []
        for h, moved_sigmas, moved_table in moves:
            shared = history[: table.first_change(moved_table) + 1]
            model.begin_rollout(moved_sigmas)
            columns.append((rollout(moved_table, model, shared)[0] - result).flatten(1) / h)
        jacobian = torch.stack(columns, 1).float()
        weighted = distance.weights(residual).unsqueeze(1) * jacobian
        share = 1 / (len(pairs) * residual.shape[1])
        a += share * torch.einsum("bkd,bld->kl", weighted, jacobian).double().cpu()
        g += share * torch.einsum("bkd,bd->k", weighted, residual.float()).double().cpu()
    return a, g


@dataclass
class GaussNewton:
    """The state of one descent; `step` makes one iteration.

    Attributes:
        u: current coordinates (N-1,).
        iterations: planned length, over which the step cap falls.
    """

    parameters: StepParameters
    u: Tensor
    iterations: int
    settings: GaussNewtonSettings = GaussNewtonSettings()
    done: int = field(default=0, init=False)
    _a: Tensor | None = field(default=None, init=False)
    _g: Tensor | None = field(default=None, init=False)

    def step(
        self, model: Model, table_of: TableOf, pairs: Pairs, distance: Distance, batch_size: int
    ) -> Tensor:
        """Move u by one damped step computed from these pairs; returns the new u."""
        s = self.settings
        a, g = normal_equations(
            model, table_of, self.parameters, self.u, pairs, distance, batch_size, s.difference
        )
        if not (torch.isfinite(a).all() and torch.isfinite(g).all()):
            self.done += 1
            return self.u  # a rollout overflowed; other noises may not
        keep = s.memory if self._a is not None else 0.0
        self._a = a if self._a is None else keep * self._a + (1 - keep) * a
        self._g = g if self._g is None else keep * self._g + (1 - keep) * g
        progress = self.done / max(self.iterations - 1, 1)
        cap = s.largest_step * (s.smallest_step / s.largest_step) ** min(progress, 1.0)
        step = damped_step(self._a, self._g, s.damping)
        step = step * min(1.0, cap / max(float(step.abs().max()), 1e-12))
        old = self.u
        self.u = self.parameters.moved(self.u, step)
        # g was measured at the old u: carry the average to where the next one will be measured
        self._g = self._g + self._a @ (self.u - old)
        self.done += 1
        return self.u


def damped_step(a: Tensor, g: Tensor, damping: float) -> Tensor:
    """-(A + mu diag A)^-1 g; directions without any effect stay put."""
    largest = float(a.diagonal().max())
    if largest == 0:
        return torch.zeros_like(g)
    diagonal = a.diagonal().clamp_min(1e-12 * largest)
    return -torch.linalg.solve(a + torch.diag(damping * diagonal + 1e-12 * largest), g)
