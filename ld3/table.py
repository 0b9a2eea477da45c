"""Any deterministic sampler as one small triangular matrix, and how to run it.

For given noise levels a deterministic sampler is linear in its start state and in the denoised
outputs it has received. With M model calls, the m-th at noise level s_m on input X_m:

    X_m = W[m,0] x_init + sum_{j<m} W[m,j+1] D_j ,   D_m = denoise(X_m, s_m) ,   result = X_M .

`ld3.tracing` reads W and s off a real sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

FIRST_CALL_TOLERANCE = 1e-6  # relative: float32 noise levels are rounded


class Extra(str, Enum):
    """What a table can contain beyond the sampler's own coefficients at its noise levels."""

    DECOUPLED_TIMES = "decoupled times"
    SOLVER_CORRECTIONS = "solver corrections"
    D_ODE = "D-ODE"
    OUTPUT_MIX = "output mix"


@dataclass(frozen=True, eq=False)
class SolverTable:
    """One sampler at one schedule, all tensors float64 or int64 on the CPU.

    Attributes:
        state_sigmas: (M,) noise level of the input X_m of each model call.
        eval_sigmas: (M,) noise level the network is evaluated at (equal unless times are
            decoupled).
        weights: (M+1, 1+M), row m combines x_init and D_0..D_{m-1} into X_m; the last row is the
            result.
        callback_calls: (steps reported,) int64, the model calls whose output a callback reported.
    """

    state_sigmas: Tensor
    eval_sigmas: Tensor
    weights: Tensor
    callback_calls: Tensor

    def __post_init__(self) -> None:
        calls = self.state_sigmas.numel()
        tensors = {name: getattr(self, name) for name in ("state_sigmas", "eval_sigmas", "weights")}
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        expected = [(calls,), (calls,), (calls + 1, calls + 1)]
        if shapes != expected:
            raise ValueError(
                f"a table of {calls} calls has state_sigmas, eval_sigmas and weights of shapes "
                f"{expected}; got {shapes}"
            )
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} of a solver table must be finite")
            if name != "weights" and (tensor <= 0).any():
                raise ValueError(f"{name} of a solver table must be above 0")
        if self.weights[~lower_triangle(calls + 1, calls + 1)].any():
            raise ValueError("weights must be lower triangular: a call cannot use later outputs")
        reported = self.callback_calls
        if reported.ndim != 1 or any(not 0 <= call < calls for call in reported.tolist()):
            raise ValueError(f"callback_calls must name calls 0..{calls - 1}")

    @property
    def model_calls(self) -> int:
        """M, the network evaluations per sample."""
        return len(self.state_sigmas)

    def first_change(self, other: SolverTable) -> int:
        """The first model call whose input or noise level differs in `other`; M if only the result
        differs.

        All calls before it are shared: their denoised outputs are valid for both tables.
        Differences below 1e-10 relative are rounding of the trace, far below the float32 of a
        network.
        """
        for m in range(min(self.model_calls, other.model_calls)):
            mine = torch.cat([self.weights[m, : m + 1], self.eval_sigmas[m : m + 1]])
            theirs = torch.cat([other.weights[m, : m + 1], other.eval_sigmas[m : m + 1]])
            if not torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12):
                return m
        return min(self.model_calls, other.model_calls)

    def starts_as(self, other: SolverTable) -> bool:
        """Whether the first model call is the same: its input and where it is evaluated."""
        first = [(t.weights[0, 0], t.state_sigmas[0], t.eval_sigmas[0]) for t in (self, other)]
        return all(
            abs(float(a - b)) <= FIRST_CALL_TOLERANCE * float(a)
            for a, b in zip(*first, strict=True)
        )

    def distance(self, other: SolverTable) -> float:
        """Largest relative difference; infinite for another number of calls."""
        if self.model_calls != other.model_calls:
            return float("inf")
        pairs = [(self.weights, other.weights), (self.eval_sigmas, other.eval_sigmas)]
        return max(float(((a - b).abs() / (1 + a.abs())).max()) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Discretization:
    """One way to sample: a sampler at its noise levels, the complete few-step or many-step solver.

    Attributes:
        sigmas: (N+1,) float32 on the CPU.
        table: the sampler at these sigmas.
        extras: what the table holds beyond the sampler's own coefficients.
    """

    sigmas: Tensor
    table: SolverTable
    extras: tuple[Extra, ...] = ()

    @property
    def steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1


def lower_triangle(rows: int, columns: int) -> Tensor:
    """Mask of the lower triangle, diagonal included: (rows, columns) bool."""
    # torch.tril and triu (2.14) start all threads for any size: milliseconds on a busy machine
    return torch.arange(rows)[:, None] >= torch.arange(columns)


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
