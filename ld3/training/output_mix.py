"""The last row of a table in closed form: the best mix of the outputs a sample already cost.

target ~ X_M + sum_k c_k (D_k - D_last) is a weighted ridge least-squares problem in c, solved
without model calls beyond the sampling itself. The sum of the row's weights does not change, so
what all outputs agree on does not change. Of two models the outputs of the second are mixed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..metrics import Distance
from ..table import Discretization, Extra, SolverTable
from ..teacher import TeacherSamples
from .validation import Objective

MIX_RIDGE = 1e-3  # relative to the mean of the diagonal
LEAST_SCALE = 1e-12


def output_mix(
    objective: Objective, student: Discretization, samples: TeacherSamples
) -> Discretization | None:
    """The student with the mix that brings these samples closest to their targets; None if
    undefined.

    Latents are compared whatever the distance; its weights keep outliers from dominating, for a
    distance of images those of pseudo-Huber at the batch's median error.
    """
    distance, (calls, columns) = objective.distance, _mixed(student.table)
    if calls < 2:
        return None
    asked = ["output mix", distance.identity, *student.identity, *samples.identity]
    a, g = objective.model.answer(asked, lambda: _equations(objective, student, samples))
    if not (torch.isfinite(a).all() and torch.isfinite(g).all()) or not a.diagonal().any():
        return None
    c = torch.linalg.solve(a + MIX_RIDGE * a.diagonal().mean() * torch.eye(calls - 1).double(), g)
    weights = student.table.weights.clone()
    weights[-1, columns] += torch.cat([c, -c.sum().unsqueeze(0)])
    extras = (*student.extras, Extra.OUTPUT_MIX)
    return Discretization(student.sigmas, replace(student.table, weights=weights), extras)


def _mixed(table: SolverTable) -> tuple[int, slice]:
    """How many outputs are mixed, and their columns."""
    first = table.split or 0
    return table.model_calls - first, slice(1 + first * table.outputs, None, table.outputs)


def _equations(
    objective: Objective, student: Discretization, samples: TeacherSamples
) -> tuple[Tensor, Tensor]:
    """A and g of the weighted least squares for c."""
    distance, (calls, columns) = objective.distance, _mixed(student.table)
    a = torch.zeros(calls - 1, calls - 1, dtype=torch.float64)
    g = torch.zeros(calls - 1, dtype=torch.float64)

    def weights(residual: Tensor) -> Tensor:
        if not distance.image_features:
            return distance.weights(residual)
        # its scale is of images
        scale = float(residual.square().mean(1).sqrt().median())
        return Distance("pseudo-huber", max(scale, LEAST_SCALE)).weights(residual)

    def of(batch: TeacherSamples) -> tuple[Tensor, Tensor]:
        result, history = batch.student(objective.model, student)
        residual = (batch.target - result).flatten(1).float()
        outputs = torch.stack([output.flatten(1).float() for output in history[columns]], 1)
        differences = outputs[:, :-1] - outputs[:, -1:]
        weighted = weights(residual).unsqueeze(1) * differences
        matrix = torch.einsum("bkd,bld->kl", weighted, differences).cpu().double()
        return matrix, torch.einsum("bkd,bd->k", weighted, residual).cpu().double()

    for matrix, vector in samples.by_batch(objective.model, of):
        a += matrix
        g += vector
    return a, g
