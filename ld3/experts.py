"""Two models in one sampling: one for high noise, another for low noise (Wan 2.2, SDXL's refiner).

Steps that start at or above the *boundary* are those of the high-noise model, all later steps those
of the low-noise one. How many each makes thus follows from the noise levels, and is learned with
them. The sampler runs each part on its own, as two sampler nodes with split SIGMAS do: a multistep
sampler begins anew at the split, where outputs jump from one model to the other anyway. So two
nodes with the two parts of the SIGMAS sample exactly what was learned.

Both parts are one table: with the last row u of the high part's weights U, and rows
X = V[m,0] X_split + sum_j V[m,j+1] D_j of the low part's, the rows of the whole are

    [ U[m], 0 ]  and  [ V[m,0] u, V[m,1:] ] .

Extras keep this form, so both parts can be told apart again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import SolverTable
from .tracing import TracedSampler

ONE_PART = 1e-6  # relative: how far the rows of a table may be from the form above


def high_steps(sigmas: Tensor, boundary: float) -> int:
    """How many steps of sigmas (N+1,) start at or above a boundary, in float32."""
    return int((sigmas[:-1].float() >= torch.tensor(boundary, dtype=torch.float32)).sum())


def check_boundary(sigmas: Tensor, boundary: float, name: str = "") -> int:
    """`high_steps`, or ValueError unless both models have a step.

    Args:
        name: what the sigmas are, for the error.
    """
    steps, high = len(sigmas) - 1, high_steps(sigmas, boundary)
    if 0 < high < steps:
        return high
    given = f"{name or 'sigmas'} from {float(sigmas[0]):.4g} to {float(sigmas[-2]):.4g}"
    idle = "high-noise" if high == 0 else "low-noise"
    remedy = "lower" if high == 0 else "raise"
    raise ValueError(
        f"boundary is {boundary:g}, and the steps of {given} leave the {idle} model none: {remedy} "
        f"boundary (a noise level; Wan 2.2 has 0.875 for text and 0.9 for image to video), or use "
        "one model"
    )


def joined(high: SolverTable, low: SolverTable) -> SolverTable:
    """The table of both parts, one after the other."""
    calls, width = high.model_calls, high.weights.shape[1]
    weights = high.weights.new_zeros(calls + low.model_calls + 1, width + low.weights.shape[1] - 1)
    weights[:calls, :width] = high.weights[:-1]
    weights[calls:, :width] = low.weights[:, :1] * high.weights[-1:]
    weights[calls:, width:] = low.weights[:, 1:]
    return SolverTable(
        torch.cat([high.state_sigmas, low.state_sigmas]),
        torch.cat([high.eval_sigmas, low.eval_sigmas]),
        weights,
        torch.cat([high.callback_calls, calls + low.callback_calls]),
        split=calls,
    )


def parts(table: SolverTable) -> tuple[SolverTable, SolverTable]:
    """The tables of both parts; ValueError if they are not separate."""
    split = table.split
    if split is None:
        raise ValueError("a table of one model has no parts")
    width = 1 + split * table.outputs
    share, last = _share(table.weights, split), table.weights[split, :width]
    difference = table.weights[split:, :width] - share[:, None] * last
    if float(difference.abs().max()) > ONE_PART * max(1.0, float(last.abs().max())):
        raise ValueError("its low-noise part uses outputs of the high-noise part")
    low = torch.cat([share[:, None], table.weights[split:, width:]], 1)
    early = table.callback_calls < split
    states, evaluated = table.state_sigmas, table.eval_sigmas
    return (
        SolverTable(
            states[:split],
            evaluated[:split],
            table.weights[: split + 1, :width],
            table.callback_calls[early],
        ),
        SolverTable(states[split:], evaluated[split:], low, table.callback_calls[~early] - split),
    )


def continued(change: Tensor, weights: Tensor, split: int) -> Tensor:
    """A change of weights (M+1, ..), with what that of the split's state changes later.

    Args:
        weights: before the change.
    """
    share = _share(weights, split)
    share = torch.cat([share.new_zeros(1), share[1:]])
    later = torch.cat([torch.zeros_like(change[:split]), share[:, None] * change[split]])
    return change + later


def _share(weights: Tensor, split: int) -> Tensor:
    """V[:,0], of the state at the split in each state after it: (M+1-split,)."""
    if not weights[split, 0]:
        raise ValueError("the state at the split does not contain the start state")
    return weights[split:, 0] / weights[split, 0]


class ExpertSampler(TracedSampler):
    """A deterministic sampler run on both sides of a boundary; see `TracedSampler`."""

    def __init__(self, *sampler: Any, boundary: float, **named: Any) -> None:
        super().__init__(*sampler, **named)
        self.boundary = boundary

    def _checked_table(self, sigmas: Tensor) -> SolverTable:
        high = check_boundary(sigmas, self.boundary)
        part = super()._checked_table
        return joined(part(sigmas[: high + 1]), part(sigmas[high:]))
