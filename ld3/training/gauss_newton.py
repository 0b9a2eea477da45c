"""Gauss-Newton on theta, without autograd.

A student has few free numbers theta. Differences of whole rollouts give its Jacobian

    J_i[:, k] = (Phi(theta + h e_k; x_i) - Phi(theta; x_i)) / h ,

for N levels of a sampler with one call per step at N + N(N-1)/2 model calls per noise: calls before
the first one that level k changes are shared.
The damped, reweighted normal equations (Levenberg 1944, Marquardt 1963; Holland & Welsch 1977)

    A = sum_i w_i J_i^T J_i ,  g = sum_i w_i J_i^T r_i ,  step = -(A + mu diag A)^-1 g

are averaged over iterations with fresh noises, so few noises per iteration suffice. Finite
differences are also the better derivative: a network's local derivative in time is mostly
ripple of its time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..few_parameters import FewParameters
from ..model import Model
from ..solver_parameters import SolverParameters
from ..table import Discretization, rollout
from ..teacher import TeacherSamples
from ..trajectories import subsample
from .trajectory_matching import TrajectoryResiduals
from .validation import Objective

Parameters = SolverParameters | FewParameters
FINAL_TRAJECTORY_WEIGHT = 0.1
RESULT_ELEMENTS = 1024  # per latent: plenty of equations per noise for a few parameters


@dataclass(frozen=True)
class GaussNewtonSettings:
    """Constants of the optimizer; the defaults are measured (docs/benchmarks.md).

    Attributes:
        noises: fresh noises per iteration.
        difference: step h in u; 0.05 for float32 and half precision, 0.1 for quantised weights.
        damping: mu.
        memory: share of the running averages of A and g that an iteration keeps.
        largest_step, smallest_step: cap on |step| in u, decreasing geometrically from the first to
            the last iteration; for steps alone (`successive_halving` has the caps of extras).
        trajectory_weight: weight of all states together in the first iteration, relative to the
            result's 1; decreases geometrically to `FINAL_TRAJECTORY_WEIGHT`. 0: states are not
            matched. For steps alone, too.
    """

    noises: int = 4
    difference: float = 0.05
    damping: float = 0.02
    memory: float = 0.5
    largest_step: float = 1.0
    smallest_step: float = 0.06
    trajectory_weight: float = 1.0


def normal_equations(
    objective: Objective,
    parameters: Parameters,
    theta: Tensor,
    samples: TeacherSamples,
    difference: float,
    trajectory_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A (K, K) and g (K,) of the weighted least squares at theta, K its length.

    Means over the samples, float64.

    Args:
        difference: h.
        trajectory_weight: weight of all states together, relative to the result's 1; not used if
            the objective has no `data_std`.
    """
    student, constants = parameters.discretization(theta), (difference, trajectory_weight)
    described = [type(parameters).__name__, constants, objective.data_std]
    asked = ["normal equations", *described, objective.distance.identity, theta]
    a, g = objective.model.answer(
        [*asked, *student.identity, *samples.identity],
        lambda: _normal_equations(objective, parameters, theta, samples, *constants),
    )
    return a, g


def _normal_equations(
    objective: Objective,
    parameters: Parameters,
    theta: Tensor,
    samples: TeacherSamples,
    difference: float,
    trajectory_weight: float,
) -> tuple[Tensor, Tensor]:
    model, distance = objective.model, objective.distance
    a = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    g = torch.zeros(len(theta), dtype=torch.float64)
    student = parameters.discretization(theta)
    perturbations = _perturbations(parameters, theta, difference, model.stateless)

    def compared(sample: Tensor) -> Tensor:
        # an image needs the whole latent
        return sample if distance.image_features else subsample(sample, RESULT_ELEMENTS)

    def summand(residual: Tensor, columns: list[Tensor], share: float) -> tuple[Tensor, Tensor]:
        jacobian = torch.stack(columns, 1).float()
        weighted = distance.weights(residual).unsqueeze(1) * jacobian
        share /= len(samples) * residual.shape[1]
        matrix = share * torch.einsum("bkd,bld->kl", weighted, jacobian).cpu().double()
        vector = share * torch.einsum("bkd,bd->k", weighted, residual.float()).cpu().double()
        return matrix, vector

    def summands(batch: TeacherSamples) -> list[tuple[Tensor, Tensor]]:
        result, history = batch.student(model, student)
        result, target = compared(result), compared(batch.target)
        states = None
        if trajectory_weight and objective.data_std:
            std = objective.data_std
            states = TrajectoryResiduals(batch, model.coordinate, std, student.table, history)
        changes: dict[int, Tensor] = {}
        for p, perturbed, outputs in _rollouts(model, perturbations, history):
            # rounded to 3 digits, which averages out over elements, and half the memory
            changes[p.k] = (compared(perturbed) - result).bfloat16()
            if states:
                states.perturb(p.k, p.solver.table, outputs, p.shared)
            del perturbed, outputs
        found = []
        for part in distance.parts(len(result)):
            here = distance.features(result[part])
            residual = (here - distance.features(target[part])).flatten(1)
            columns = [
                (distance.features(result[part] + changes[p.k][part]) - here).flatten(1) / p.h
                for p in perturbations
            ]
            found.append(summand(residual, columns, 1.0))
        if states:
            share = trajectory_weight / len(states.values)
            for m, residual in enumerate(states.values):
                columns = [states.changes[p.k][m].float() / p.h for p in perturbations]
                found.append(summand(residual, columns, share))
        return found

    for found in samples.by_batch(model, summands):
        for matrix, vector in found:
            a += matrix
            g += vector
    return a, g


def _rollouts(
    model: Model, perturbations: list[_Perturbation], history: list[Tensor]
) -> Iterator[tuple[_Perturbation, Tensor, list[Tensor]]]:
    """Every perturbation with its result and history; the history given is shortened.

    Those that change last come first, so that outputs can be freed once no other rollout shares
    them. Of two models all calls of the first come next: not both may fit on the device.
    """
    begun = []
    for p in sorted(perturbations, key=lambda p: -p.shared):
        del history[p.shared :]
        table = p.solver.table
        model.begin_rollout(p.solver.sigmas)
        split = table.split if model.stateless else None
        if split is not None and p.shared <= split * table.outputs:
            begun.append((p, rollout(table, model, history, split)[1]))
        else:
            yield p, *rollout(table, model, history)
    while begun:
        p, started = begun.pop()
        model.begin_rollout(p.solver.sigmas)
        yield p, *rollout(p.solver.table, model, started)


@dataclass(frozen=True)
class _Perturbation:
    """Parameter k changed by h; the first `shared` entries of the history do not change."""

    k: int
    h: float
    solver: Discretization
    shared: int


def _perturbations(
    parameters: Parameters, theta: Tensor, difference: float, sharing: bool
) -> list[_Perturbation]:
    student = parameters.discretization(theta)
    perturbed = [parameters.perturbed(theta, k, difference) for k in range(len(theta))]
    outputs = student.table.outputs if sharing else 0
    return [
        _Perturbation(k, h, solver, 1 + outputs * student.table.first_change(solver.table))
        for k, (h, solver) in enumerate(perturbed)
    ]


def calls_per_noise(
    parameters: Parameters, theta: Tensor, difference: float, sharing: bool = True
) -> int:
    """Model calls of `normal_equations` per noise; `sharing` as the model is stateless."""
    perturbations = _perturbations(parameters, theta, difference, sharing)
    calls, outputs = parameters.calls, parameters.discretization(theta).table.outputs
    return calls + sum(calls - (p.shared - 1) // outputs for p in perturbations)


@dataclass
class GaussNewton:
    """The state of one descent; `step` makes one iteration.

    Attributes:
        objective: what is minimised.
        parameters: what is learned.
        theta: current values.
        iterations: planned length, over which step cap and trajectory weight decrease.
        done: iterations already made.
    """

    objective: Objective
    parameters: Parameters
    theta: Tensor
    iterations: int
    settings: GaussNewtonSettings = GaussNewtonSettings()
    done: int = 0
    _a: Tensor | None = field(default=None, init=False)
    _g: Tensor | None = field(default=None, init=False)

    def step(self, samples: TeacherSamples) -> Tensor:
        """Change theta by one damped step computed from these samples; returns the new theta."""
        s = self.settings
        progress = min(self.done / max(self.iterations - 1, 1), 1.0)
        weight = 0.0
        if s.trajectory_weight and self.objective.data_std:
            decrease = FINAL_TRAJECTORY_WEIGHT / s.trajectory_weight
            weight = s.trajectory_weight * decrease**progress
        a, g = normal_equations(
            self.objective, self.parameters, self.theta, samples, s.difference, weight
        )
        self.done += 1
        if not (torch.isfinite(a).all() and torch.isfinite(g).all()):
            return self.theta  # a rollout overflowed; other noises may not
        keep = s.memory
        self._a = a if self._a is None else keep * self._a + (1 - keep) * a
        self._g = g if self._g is None else keep * self._g + (1 - keep) * g
        cap = s.largest_step * (s.smallest_step / s.largest_step) ** progress
        step = damped_step(self._a, self._g, s.damping)
        step = step * min(1.0, cap / max(float(step.abs().max()), 1e-12))
        old = self.theta
        self.theta = self.parameters.stepped(old, step)
        # g was computed at the old theta: transfer the average to where the next one will be
        self._g = self._g + self._a @ (self.theta - old)
        return self.theta


def damped_step(a: Tensor, g: Tensor, damping: float) -> Tensor:
    """-(A + mu diag A)^-1 g; directions without any effect get no step."""
    largest = float(a.diagonal().max())
    if largest == 0:
        return torch.zeros_like(g)
    diagonal = a.diagonal().clamp_min(1e-12 * largest)
    return -torch.linalg.solve(a + torch.diag(damping * diagonal + 1e-12 * largest), g)
