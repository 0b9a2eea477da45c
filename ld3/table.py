"""Any deterministic sampler as one small triangular matrix, and how to run it.

For given noise levels a deterministic sampler is linear in its start state and in the denoised
outputs it has received. With M model calls, the m-th at noise level s_m on input X_m:

    X_m = W[m,0] x_init + sum_{j<m} W[m,j+1] D_j ,   D_m = denoise(X_m, s_m) ,   result = X_M .

`ld3.tracing` reads W and s off a real sampler.

CFG++ samplers (arXiv 2406.08070) renoise with the unconditional model. With guidance scale w a call
gives D = U + w (C - U) of the conditional and unconditional outputs C and U, and such a sampler is
linear in x_init, all D_m and all U_m. Its table has two columns a call, one for D_m and one for the
*guidance* G_m = D_m - U_m:

    X_m = W[m,0] x_init + sum_{j<m} ( W[m,2j+1] D_j + W[m,2j+2] G_j ) .

Without guidance G = 0, and the columns of D are a plain sampler's (euler's for euler_cfg_pp, whose
X_{m+1} = D_m + s_{m+1} (X_m - U_m) / s_m). So all that is said of weights on outputs holds for the
columns of D. No weight on G vanishes with the size of the steps: euler_cfg_pp adds
(s_{m+1} / s_m) G_m in every step, and more steps guide more strongly. A CFG++ sampler thus solves
no ODE, and its result in many steps is a teacher of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

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
            result. For CFG++ samplers (M+1, 1+2M): x_init, D_0, G_0, D_1, ..
        callback_calls: (steps reported,) int64, the model calls whose output a callback reported.
        split: of two models (`ld3.experts`), the first call of the low-noise one; None for one.
    """

    state_sigmas: Tensor
    eval_sigmas: Tensor
    weights: Tensor
    callback_calls: Tensor
    split: int | None = None

    def __post_init__(self) -> None:
        calls = self.state_sigmas.numel()
        tensors = {name: getattr(self, name) for name in ("state_sigmas", "eval_sigmas", "weights")}
        shapes = [tuple(tensor.shape) for tensor in tensors.values()]
        expected = [(calls,), (calls,), (calls + 1, calls + 1)]
        if not calls or shapes not in (expected, [*expected[:2], (calls + 1, 2 * calls + 1)]):
            raise ValueError(
                f"a table of {calls} calls has state_sigmas, eval_sigmas and weights of shapes "
                f"{expected}; got {shapes}"
            )
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} of a solver table must be finite")
            if name != "weights" and (tensor <= 0).any():
                raise ValueError(f"{name} of a solver table must be above 0")
        if self.weights[~lower_triangle(calls + 1, self.weights.shape[1], self.outputs)].any():
            raise ValueError("weights must be lower triangular: a call cannot use later outputs")
        reported = self.callback_calls
        if reported.ndim != 1 or any(not 0 <= call < calls for call in reported.tolist()):
            raise ValueError(f"callback_calls must name calls 0..{calls - 1}")
        if self.split is not None and not 0 < self.split < calls:
            raise ValueError(f"split must be in 1..{calls - 1}, so that each model is called")

    @property
    def model_calls(self) -> int:
        """M, the network evaluations per sample."""
        return len(self.state_sigmas)

    @property
    def outputs(self) -> int:
        """Outputs, and columns, of a call: 1, or 2 for CFG++ samplers, which use G too."""
        return (self.weights.shape[1] - 1) // self.model_calls

    @property
    def denoised(self) -> slice:
        """The columns of the denoised outputs D, and their places in a history."""
        return slice(1, None, self.outputs)

    def first_change(self, other: SolverTable) -> int:
        """The first model call whose input or noise level differs in `other`; M if only the result
        differs.

        All calls before it are shared: their denoised outputs are valid for both tables.
        Differences below 1e-10 relative are rounding of the trace, far below the float32 of a
        network.
        """
        calls = min(self.model_calls, other.model_calls)
        if self.split != other.split:  # from there on one calls the other model
            calls = min(calls, *(t.split for t in (self, other) if t.split is not None))
        for m in range(calls):
            mine = torch.cat([self.weights[m], self.eval_sigmas[m : m + 1]])
            theirs = torch.cat([other.weights[m], other.eval_sigmas[m : m + 1]])
            if not torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12):
                return m
        return calls

    def starts_as(self, other: SolverTable) -> bool:
        """Whether the first model call is the same: its input, outputs and where it is evaluated.

        Never for CFG++ samplers: their first outputs are not kept.
        """
        if not self.outputs == other.outputs == 1:
            return False
        first = [(t.weights[0, 0], t.state_sigmas[0], t.eval_sigmas[0]) for t in (self, other)]
        return all(
            abs(float(a - b)) <= FIRST_CALL_TOLERANCE * float(a)
            for a, b in zip(*first, strict=True)
        )

    def distance(self, other: SolverTable) -> float:
        """Largest relative difference; infinite for another number of calls or outputs."""
        if self.weights.shape != other.weights.shape:
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
    def identity(self) -> list[Tensor]:
        """All that decides what it computes."""
        return [self.sigmas, self.table.weights, self.table.eval_sigmas]

    @property
    def steps(self) -> int:
        """N."""
        return len(self.sigmas) - 1


def lower_triangle(rows: int, columns: int, width: int = 1) -> Tensor:
    """Mask of the lower triangle, diagonal included: (rows, columns) bool.

    `width` columns are added a row.
    """
    # torch.tril and triu (2.14) start all threads for any size: milliseconds on a busy machine
    return width * torch.arange(rows)[:, None] >= torch.arange(columns)


def combine(weights: Tensor, history: list[Tensor]) -> Tensor:
    """sum_j weights[j] history[j], in the dtype of the history; zero weights cost nothing."""
    total = torch.zeros_like(history[0])
    for weight, state in zip(weights.tolist(), history, strict=False):
        if weight:
            total.add_(state, alpha=weight)
    return total


def rollout(
    table: SolverTable,
    denoise: Callable[..., Any],
    history: list[Tensor],
    until: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Sample with a table.

    Args:
        table: the sampler at its schedule.
        denoise: `denoise(x, sigma) -> x0`, x (batch, *latent), sigma (batch,) in x's dtype; for
            CFG++ samplers `denoise(x, sigma, guidance=True) -> (x0, G)`; for two models also with
            `low`, whether the call is the low-noise one's.
        history: [x_init], or [x_init, D_0, ..] with outputs of calls already made (a shared
            prefix).
        until: after how many calls to stop; all of them if None.

    Returns:
        The result (batch, *latent), or the state before the next call, and the full history
        [x_init, D_0, .., D_{M-1}], or [x_init, D_0, G_0, ..].
    """
    history, calls = list(history), table.model_calls if until is None else until
    for m in range((len(history) - 1) // table.outputs, calls):
        x = combine(table.weights[m], history)
        sigma = x.new_full((x.shape[0],), float(table.eval_sigmas[m]))
        how = {} if table.split is None else {"low": m >= table.split}
        if table.outputs == 1:
            history.append(denoise(x, sigma, **how))
        else:
            history += denoise(x, sigma, guidance=True, **how)
    return combine(table.weights[calls], history), history
