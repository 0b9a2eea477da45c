"""Where to start: schedules found on the teacher's own trajectories, without a single model call.

Near a teacher trajectory x_T(s) with denoised outputs D_T(s) the denoiser of data with variance
sd^2, in states a x0 + s noise, is about

    D(x; s) = D_T(s) + a sd^2 / (a^2 sd^2 + s^2) (x - x_T(s)) :

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
from ..parameters import StepParameters
from ..rollout import rollout
from ..solver import SolverTable
from ..trajectories import Trajectories

POPULATION, SURVIVORS, ROUNDS, CHILDREN = 200, 12, 6, 4


class TrajectorySurrogate:
    """The denoiser above, read off teacher rollouts.

    Args:
        teacher: the rollouts.
        target: the same few elements of the teacher's samples, (n, few).
    """

    def __init__(self, teacher: Trajectories, target: Tensor) -> None:
        self._teacher, self.target = teacher, target
        self._variance = float(target.var())

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma.reshape(-1)[0])
        state, output = self._teacher.states(level), self._teacher.outputs(level)
        signal = self._teacher.coordinate.signal(level)
        slope = signal * self._variance / (signal**2 * self._variance + level**2)
        return output + slope * (x - state)

    def error(self, table: SolverTable) -> float:
        """Mean RMSE to the teacher of the student `table`, on the surrogate; infinite for NaN."""
        value = float(rmse(rollout(table, self, [self._teacher.start])[0] - self.target).mean())
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
