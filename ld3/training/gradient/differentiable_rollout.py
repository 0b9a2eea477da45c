"""Tables and rollouts as functions that autograd can differentiate.

Any traced sampler is differentiable: backward multiplies with central differences of its table, so
no sampler's code has to be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...metrics import Distance
from ...model import Denoiser
from ...parameters import StepParameters
from ...solver_parameters import SolverParameters
from ...table import SolverTable
from ...tracing import TracedSampler

TABLE_DIFFERENCE = 1e-4  # of a level's smaller gap, for central differences in float64


class SoftmaxSteps:
    """Free noise levels as shares of the range down to sigma_min; monotone for any z.

    The gaps between start, u_1 .. u_{N-1} and the floor are a softmax of N logits, the last of
    which is fixed; z = 0 (N-1,) is the schedule it was made with.
    """

    def __init__(self, levels: StepParameters, u: Tensor) -> None:
        self.upper = levels.coordinate.from_sigma(torch.tensor(levels.start, dtype=torch.float64))
        self.lower = levels.coordinate.from_sigma(torch.tensor(levels.floor, dtype=torch.float64))
        ends = torch.cat([self.upper[None], u, self.lower[None]])
        self.logits = (-ends.diff()).clamp_min(1e-6).log()

    def u(self, z: Tensor) -> Tensor:
        """Coordinates (N-1,) of z (N-1,), differentiable."""
        shares = torch.softmax(self.logits + torch.cat([z, z.new_zeros(1)]), 0)
        return self.upper - (self.upper - self.lower) * shares[:-1].cumsum(0)


class _Table(torch.autograd.Function):
    """sigmas (N+1,) float64 -> weights and state_sigmas; the first and last level are fixed."""

    @staticmethod
    def forward(ctx: Any, sampler: TracedSampler, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        table = sampler.table(sigmas)
        ctx.sampler = sampler
        ctx.save_for_backward(sigmas)
        return table.weights, table.state_sigmas.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        to_weights, to_levels = gradients
        (sigmas,) = ctx.saved_tensors
        found = torch.zeros_like(sigmas)
        for k in range(1, len(sigmas) - 1):
            h = TABLE_DIFFERENCE * float(-sigmas[k - 1 : k + 2].diff().max())
            above, below = (_table_at(ctx.sampler, sigmas, k, step) for step in (h, -h))
            found[k] = (
                (to_weights * (above.weights - below.weights)).sum()
                + (to_levels * (above.state_sigmas - below.state_sigmas)).sum()
            ) / (2 * h)
        return None, found


def _table_at(sampler: TracedSampler, sigmas: Tensor, k: int, step: float) -> SolverTable:
    changed = sigmas.detach().clone()
    changed[k] += step
    return sampler.table(changed)


def differentiable_table(parameters: SolverParameters, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The student's weights (M+1, 1+M) and eval_sigmas (M,) at theta, both float64."""
    sigmas = parameters.levels.exact_sigmas(theta[: parameters.free_levels])
    weights, state_sigmas = _Table.apply(parameters.sampler, sigmas)
    eval_sigmas = parameters.decoupled_sigmas(theta, state_sigmas)
    return parameters.corrected_weights(theta, weights), eval_sigmas


def differentiable_rollout(
    weights: Tensor, eval_sigmas: Tensor, denoise: Denoiser, x: Tensor
) -> Tensor:
    """`ld3.table.rollout` for autograd: to the table, the levels and x (batch, *latent)."""
    history = [x]
    for row, sigma in zip(weights[:-1], eval_sigmas, strict=True):
        state = _combined(row, history)
        history.append(denoise(state, sigma.to(x).expand(len(x))))
    return _combined(weights[-1], history)


def _combined(row: Tensor, history: list[Tensor]) -> Tensor:
    total = torch.zeros_like(history[0])
    for weight, state in zip(row, history, strict=False):
        total = total + weight.to(state) * state
    return total


def backward_loss(result: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """Differentiate the mean distance with respect to all inputs; returns each sample's: (batch,).

    Image by image where images are compared: a decoder's activations are large too.
    """
    leaf = result.detach().requires_grad_()
    values = []
    for part in distance.parts(len(leaf)):
        with torch.no_grad():
            features = distance.features(target[part])
        value = distance.value(distance.features(leaf[part]) - features)
        (value.sum() / len(leaf)).backward()
        values.append(value.detach())
    result.backward(leaf.grad)
    return torch.cat(values)
