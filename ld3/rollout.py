"""Run a solver table with a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .solver import SolverTable


def combine(weights: Tensor, history: list[Tensor]) -> Tensor:
    """sum_j weights[j] history[j], in the dtype of the history; zero weights cost nothing."""
    total = torch.zeros_like(history[0])
    for weight, state in zip(weights.tolist(), history, strict=False):
        if weight:
            total.add_(state, alpha=weight)
    return total


def rollout(
    table: SolverTable, denoise: Callable[[Tensor, Tensor], Tensor], history: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Sample with a table.

    Args:
        table: the sampler at its schedule.
        denoise: `denoise(x, sigma) -> x0`, x (batch, *latent), sigma (batch,) in x's dtype.
        history: [x_init], or [x_init, D_0, ..] with outputs of calls already made (a shared
        prefix).

    Returns:
        The result (batch, *latent) and the full history [x_init, D_0, .., D_{M-1}].
    """
    history = list(history)
    for m in range(len(history) - 1, table.model_calls):
        x = combine(table.weights[m, : m + 1], history)
        history.append(denoise(x, x.new_full((x.shape[0],), float(table.eval_sigmas[m]))))
    return combine(table.weights[-1], history), history
