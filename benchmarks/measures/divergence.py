"""How far a student's distribution is from its teacher's, exactly, where both maps are invertible.

Both map the same noise z ~ N(0, 1) to samples. By the change of variables, a sample of the teacher,
x = teacher(z) = student(z'), has

    log q(x) - log p(x) = (|z'|^2 - |z|^2) / 2 + C_student(z') - C_teacher(z) ,

C = log|det Jacobian|, and KL(q || p) is its mean over z. Theorem 1 of LD3 (arXiv 2405.15506) bounds
it if every z' lies within r of its z, so that the soft loss is 0:

    KL(q || p) <= r^2 / 2 + r sqrt(d + 1) + E|C_teacher - C_student| .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ld3.metrics import rmse
from ld3.model import Model
from ld3.table import Discretization, rollout
from ld3.training.gradient.descent import projected

Map = Callable[[Tensor], Tensor]
"""Unit noise (n, d) float64 -> samples (n, d)."""

STAGES, ITERATIONS = 16, 12  # of the search for z': points of a path, Newton steps at each
TOLERANCE = 1e-8


class Divergence(NamedTuple):
    """What `compare` computes from n noises.

    Attributes:
        kl: KL(q || p), teacher against student.
        volume: E|C_teacher - C_student|.
        displacement: (n,) the distance |z' - z| of each noise.
        z, student_z: (n, d) noises z, and the z' from which the student makes the same sample.
        inverted: share of the noises for which z' was found; the others are left out.
    """

    kl: float
    volume: float
    displacement: Tensor
    z: Tensor
    student_z: Tensor
    inverted: float

    @property
    def radius(self) -> float:
        """The smallest r for which the soft loss is 0 on these noises."""
        return float(self.displacement.max())

    def bound(self, radius: float) -> float:
        """The right side of Theorem 1."""
        return radius**2 / 2 + radius * math.sqrt(self.z.shape[1] + 1) + self.volume


def sampling_map(model: Model, solver: Discretization) -> Map:
    """A solver as a differentiable map of unit noise, in float64."""
    start = float(solver.sigmas[0])

    def sample(z: Tensor) -> Tensor:
        return rollout(solver.table, model.denoise, [start * z])[0]

    return sample


def normal_points(count: int, dimension: int, seed: int) -> Tensor:
    """Quasi-random standard normal points (count, dimension): means over them converge fast."""
    sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    uniform = sobol.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return torch.special.ndtri(uniform)


def compare(student: Map, teacher: Map, z: Tensor) -> Divergence:
    """The divergence of two maps over noises z (n, d) float64."""
    target, teacher_jacobian = with_jacobian(teacher, z)
    found = solve(student, target, z)
    reached, student_jacobian = with_jacobian(student, found)
    scale = target.std()
    # where the student folds space, z' is not unique: a negative determinant detects it
    good = ((reached - target).abs().amax(1) < TOLERANCE * scale * 100) & (
        torch.linalg.det(student_jacobian) * torch.linalg.det(teacher_jacobian) > 0
    )
    z, found = z[good], found[good]
    volume = (
        torch.linalg.slogdet(student_jacobian).logabsdet
        - torch.linalg.slogdet(teacher_jacobian).logabsdet
    )[good]
    kl = 0.5 * (found.square().sum(1) - z.square().sum(1)) + volume
    return Divergence(
        kl=float(kl.mean()),
        volume=float(volume.abs().mean()),
        displacement=(found - z).norm(dim=1),
        z=z,
        student_z=found,
        inverted=float(good.double().mean()),
    )


def soft_loss(student: Map, teacher: Map, divergence: Divergence, radius: float) -> float:
    """Mean over noises of the smallest RMSE to the teacher within `radius` of each noise.

    Exact in one dimension, where maps are monotone. In more it is an upper bound: the student is
    evaluated at the point of the ball closest to z', where the error is 0.
    """
    nearest = projected(divergence.student_z, divergence.z, radius)
    with torch.no_grad():
        error = rmse(student(nearest) - teacher(divergence.z))
    return float(torch.where(divergence.displacement <= radius, 0.0, error.double()).mean())


def with_jacobian(function: Map, z: Tensor) -> tuple[Tensor, Tensor]:
    """Results (n, d) and each sample's Jacobian (n, d, d), by reverse mode."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        result = function(z)
        rows = [
            torch.autograd.grad(result[:, i].sum(), z, retain_graph=True)[0]
            for i in range(z.shape[1])
        ]
    return result.detach(), torch.stack(rows, 1)


def solve(function: Map, target: Tensor, start: Tensor) -> Tensor:
    """z with function(z) = target, all (n, d), by Newton's method along a path from `start`.

    The target is approached on a straight line from function(start), so each solution is the one
    connected to its own noise.
    """
    z = start.clone()
    with torch.no_grad():
        first = function(z)
    for stage in range(1, STAGES + 1):
        waypoint = torch.lerp(first, target, stage / STAGES)
        for _ in range(ITERATIONS):
            result, jacobian = with_jacobian(function, z)
            residual = result - waypoint
            if float(residual.abs().max()) < TOLERANCE:
                break
            step = torch.linalg.solve(jacobian, residual.unsqueeze(2)).squeeze(2)
            norm = step.norm(dim=1, keepdim=True)
            z = z - step * (0.5 / norm).clamp(max=1.0)
    return z
