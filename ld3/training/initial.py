"""Where to start: schedules found on the teacher's own trajectories, without a single model call.

Near a teacher trajectory x_T(s) with denoised outputs D_T(s) the denoiser of data with variance
sd^2 is about

    D(x; s) = D_T(s) + sd^2 / (sd^2 + s^2) (x - x_T(s)) :

exact on the trajectory, and with the slope a Gaussian of the data's variance would have off it.
Running the student with this surrogate costs arithmetic only, so hundreds of schedules can be
tried. A random population, refined member by member, keeps the several basins a schedule's error
has; the real model then chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..metrics import rmse
from ..parameters import Coordinate, StepParameters
from ..rollout import combine, rollout
from ..solver import SolverTable

MOST_ELEMENTS = 4096  # a sample; more only costs time, the surrogate acts on each element alone
POPULATION, SURVIVORS, ROUNDS, CHILDREN = 200, 12, 6, 4


def few_elements(state: Tensor) -> Tensor:
    """A fixed sample of each latent's elements, at most 4,096, on the CPU: (n, few) float32."""
    flat = state.flatten(1)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(flat.shape[1], generator=generator)[:MOST_ELEMENTS].sort().values
    return flat[:, chosen.to(flat.device)].cpu().float()


class TrajectorySurrogate:
    """The denoiser above, read off one teacher rollout.

    Args:
        table: the teacher's table.
        history: [x_init, D_0, ..] of its rollout, each (n, *latent); a fixed sample of elements is
            kept.
        result: the teacher's samples (n, *latent).
        coordinate: outputs are interpolated linearly in this coordinate of sigma.
    """

    def __init__(
        self, table: SolverTable, history: list[Tensor], result: Tensor, coordinate: Coordinate
    ) -> None:
        self._coordinate = coordinate
        flat = [few_elements(state) for state in history]
        self.start, self.target = flat[0], few_elements(result)
        self._variance = float(self.target.var())
        # of several calls at one level the last saw the corrected state
        calls = {float(s): m for m, s in enumerate(table.state_sigmas) if s > 0}
        order = [calls[s] for s in sorted(calls)]
        self._u = coordinate.from_sigma(table.state_sigmas[order])
        self._states = torch.stack([combine(table.weights[m, : m + 1], flat) for m in order])
        self._outputs = torch.stack([flat[m + 1] for m in order])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1)[:1].cpu()
        u = self._coordinate.from_sigma(level)
        j = int(torch.searchsorted(self._u, u).clamp(1, len(self._u) - 1))
        f = float(((u - self._u[j - 1]) / (self._u[j] - self._u[j - 1])).clamp(0, 1))
        state = torch.lerp(self._states[j - 1], self._states[j], f)
        output = torch.lerp(self._outputs[j - 1], self._outputs[j], f)
        slope = self._variance / (self._variance + float(level) ** 2)
        return output + slope * (x - state)

    def error(self, table: SolverTable) -> float:
        """Mean RMSE to the teacher of the student `table`, on the surrogate; infinite for NaN."""
        value = float(rmse(rollout(table, self, [self.start])[0] - self.target).mean())
        return value if math.isfinite(value) else math.inf


def surrogate_starts(
    surrogate: TrajectorySurrogate,
    table_of: Callable[[Tensor], SolverTable],
    parameters: StepParameters,
    steps: int,
    seed: int,
    after_round: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Schedules with small surrogate error, best first: up to 12 vectors u (steps-1,).

    Args:
        after_round: called between rounds of the search, where a caller may interrupt.
    """
    generator = torch.Generator().manual_seed(seed)
    upper, lower = parameters.bounds()

    def scored(u: Tensor) -> tuple[float, Tensor]:
        u = parameters.separated(u.sort(descending=True).values)
        return surrogate.error(table_of(parameters.sigmas(u))), u

    def random(scale: float) -> Tensor:
        return scale * torch.rand(steps - 1, generator=generator, dtype=torch.float64)

    members = sorted(
        (scored(lower + random(upper - lower)) for _ in range(POPULATION)), key=lambda m: m[0]
    )
    members = members[:SURVIVORS]
    for round_ in range(ROUNDS):
        after_round()
        spread = 0.5 * 0.7**round_
        for i, best in enumerate(members):
            children = [
                scored(
                    best[1]
                    + spread * torch.randn(steps - 1, generator=generator, dtype=torch.float64)
                )
                for _ in range(CHILDREN)
            ]
            members[i] = min([best, *children], key=lambda m: m[0])
    return [u for _, u in sorted(members, key=lambda m: m[0])]
