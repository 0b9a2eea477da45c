"""The last row of a table in closed form: the best mix of the outputs a sample already cost.

With the residual R = target - X_M and differences of outputs, y ~ X_M + sum_k c_k (D_k - D_last) is
a weighted ridge least-squares problem in c, solved without any call beyond the sampling itself. The
row keeps its sum, so what all outputs agree on stays.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..metrics import Distance
from ..model import Model
from ..solver import Plan
from ..teacher import Pairs, student_samples

RIDGE = 1e-3  # relative to the mean of the diagonal


def output_mix(
    model: Model, plan: Plan, pairs: Pairs, distance: Distance, batch_size: int
) -> Plan | None:
    """The plan with the mix that brings these pairs nearest their targets; None if undefined.

    Latents are compared whatever the distance; its weights keep odd samples from ruling.
    """
    calls = plan.table.model_calls
    if calls < 2:
        return None
    a = torch.zeros(calls - 1, calls - 1, dtype=torch.float64)
    g = torch.zeros(calls - 1, dtype=torch.float64)
    latent = Distance("pseudo-huber", distance.scale) if distance.image_features else distance
    for batch in pairs.batches(batch_size, model.device):
        result, history = student_samples(model, plan, batch)
        residual = (batch.target - result).flatten(1).float()
        outputs = torch.stack([output.flatten(1).float() for output in history[1:]], 1)
        differences = outputs[:, :-1] - outputs[:, -1:]
        weighted = latent.weights(residual).unsqueeze(1) * differences
        a += torch.einsum("bkd,bld->kl", weighted, differences).double().cpu()
        g += torch.einsum("bkd,bd->k", weighted, residual).double().cpu()
    if not (torch.isfinite(a).all() and torch.isfinite(g).all()) or not a.diagonal().any():
        return None
    c = torch.linalg.solve(a + RIDGE * a.diagonal().mean() * torch.eye(calls - 1).double(), g)
    weights = plan.table.weights.clone()
    weights[-1, 1:-1] += c
    weights[-1, -1] -= c.sum()
    return Plan(plan.sigmas, replace(plan.table, weights=weights))
