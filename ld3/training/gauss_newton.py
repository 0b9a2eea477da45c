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

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metrics import Distance
from ..rollout import rollout
from ..student import Student
from ..teacher import Pairs, student_samples
from ..trajectories import few_elements
from .guide import Guide, Way

LAST_HELD = 0.1
RESULT_ELEMENTS = 1024  # of a latent; so many equations a noise are plenty for a few parameters


@dataclass(frozen=True)
class GaussNewtonSettings:
    """Constants of the optimiser; the defaults are measured (docs/benchmarks.md).

    Attributes:
        noises: fresh noises an iteration.
        difference: step h in u; 0.05 for float32 and half precision, 0.1 for quantised weights.
        damping: mu.
        memory: share of the running averages of A and g that an iteration keeps.
        largest_step, smallest_step: cap on |step| in u, falling geometrically from first to last
            iteration; of steps alone (`halving` has the caps of extras).
        held: weight of all states on the way together in the first iteration, beside the result's
            1; falls geometrically to `LAST_HELD`. 0 lets them go free. (Of steps alone, which
            cannot follow the teacher far; `halving` has that of extras.)
    """

    noises: int = 8
    difference: float = 0.05
    damping: float = 0.02
    memory: float = 0.5
    largest_step: float = 1.0
    smallest_step: float = 0.06
    held: float = 1.0


def normal_equations(
    student: Student,
    theta: Tensor,
    pairs: Pairs,
    distance: Distance,
    batch_size: int,
    difference: float,
    guide: Guide | None = None,
    guide_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A (K, K) and g (K,) of the weighted least squares at theta, K its length.

    Means over pairs, float64.

    Args:
        guide, guide_weight: also hold the states on the way to the teacher's, with this weight
            together; the result's is 1.
    """
    model = student.model
    a = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    g = torch.zeros(len(theta), dtype=torch.float64)
    plan = student.plan(theta)
    moves = [student.probed(theta, k, difference) for k in range(len(theta))]
    shared = [plan.table.first_change(other.table) + 1 for _, other in moves]
    # the last to change first, so that outputs can go as soon as no other probe shares them
    late_first = sorted(range(len(theta)), key=lambda k: -shared[k])

    def kept(sample: Tensor) -> Tensor:
        # an image needs the whole latent
        return sample if distance.image_features else few_elements(sample, RESULT_ELEMENTS)

    def add(residual: Tensor, columns: list[Tensor], share: float) -> None:
        jacobian = torch.stack(columns, 1).float()
        weighted = distance.weights(residual).unsqueeze(1) * jacobian
        share /= len(pairs) * residual.shape[1]
        a.add_(share * torch.einsum("bkd,bld->kl", weighted, jacobian).double().cpu())
        g.add_(share * torch.einsum("bkd,bd->k", weighted, residual.float()).double().cpu())

    for batch in pairs.batches(batch_size, model.device):
        result, history = student_samples(model, plan, batch)
        result, target = kept(result), kept(batch.target)
        way = Way(guide, batch, plan.table, history) if guide else None
        changes: dict[int, Tensor] = {}
        for k in late_first:
            del history[shared[k] :]
            other = moves[k][1]
            model.begin_rollout(other.sigmas)
            moved, made = rollout(other.table, model, history)
            # rounded to 3 digits, which averages out over elements, and half the memory
            changes[k] = (kept(moved) - result).bfloat16()
            if way:
                way.probe(k, other.table, made, shared[k])
            del moved, made
        for part in distance.parts(len(result)):
            here = distance.features(result[part])
            residual = (here - distance.features(target[part])).flatten(1)
            columns = [
                (distance.features(result[part] + changes[k][part]) - here).flatten(1) / h
                for k, (h, _) in enumerate(moves)
            ]
            add(residual, columns, 1.0)
        for m, residual in enumerate(way.deviations if way else []):
            columns = [way.changes[k][m].float() / h for k, (h, _) in enumerate(moves)]
            add(residual, columns, guide_weight / len(way.deviations))
    return a, g


@dataclass
class GaussNewton:
    """The state of one descent; `step` makes one iteration.

    Attributes:
        student: what is learned.
        theta: current parameters.
        iterations: planned length, over which the step cap falls.
        guide: the teacher's way, which states are held to.
        done: iterations already made.
    """

    student: Student
    theta: Tensor
    iterations: int
    settings: GaussNewtonSettings = GaussNewtonSettings()
    guide: Guide | None = None
    done: int = 0
    _a: Tensor | None = field(default=None, init=False)
    _g: Tensor | None = field(default=None, init=False)

    def step(self, pairs: Pairs, distance: Distance, batch_size: int) -> Tensor:
        """Move theta by one damped step computed from these pairs; returns the new theta."""
        s = self.settings
        progress = min(self.done / max(self.iterations - 1, 1), 1.0)
        guide = self.guide if s.held else None
        a, g = normal_equations(
            self.student,
            self.theta,
            pairs,
            distance,
            batch_size,
            s.difference,
            guide,
            s.held * (LAST_HELD / s.held) ** progress if guide else 0.0,
        )
        if not (torch.isfinite(a).all() and torch.isfinite(g).all()):
            self.done += 1
            return self.theta  # a rollout overflowed; other noises may not
        keep = s.memory if self._a is not None else 0.0
        self._a = a if self._a is None else keep * self._a + (1 - keep) * a
        self._g = g if self._g is None else keep * self._g + (1 - keep) * g
        cap = s.largest_step * (s.smallest_step / s.largest_step) ** progress
        step = damped_step(self._a, self._g, s.damping)
        step = step * min(1.0, cap / max(float(step.abs().max()), 1e-12))
        old = self.theta
        self.theta = self.student.moved(old, step)
        # g was measured at the old theta: carry the average to where the next one will be measured
        self._g = self._g + self._a @ (self.theta - old)
        self.done += 1
        return self.theta


def damped_step(a: Tensor, g: Tensor, damping: float) -> Tensor:
    """-(A + mu diag A)^-1 g; directions without any effect stay put."""
    largest = float(a.diagonal().max())
    if largest == 0:
        return torch.zeros_like(g)
    diagonal = a.diagonal().clamp_min(1e-12 * largest)
    return -torch.linalg.solve(a + torch.diag(damping * diagonal + 1e-12 * largest), g)
