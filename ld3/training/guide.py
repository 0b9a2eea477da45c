"""Hold a student's states to the teacher's way.

A few noises say little about how often others end elsewhere: the sample of one noise in thirty
jumps to another mode because its state came too near, and a training set may hold no such noise.
But states are off for every noise. So Gauss-Newton's residuals are, besides the result's, those of
each state after the first,

    r_m = s_m (X_m - x_T(sigma_m)) ,   s_m = sd / sqrt(a_m^2 sd^2 + sigma_m^2) ,

x_T the teacher's state at this noise level, read off its own rollout without a model call. s_m is
what becomes of a difference on its way to the sample for Gaussian data of standard deviation sd,
whose ODE scales states as their spread; a state is a_m x0 + sigma_m noise.

The states' weight falls over the iterations (`GaussNewton`): they lead to a basin, but the best few
steps inside it need not pass exactly where the teacher does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..parameters import Coordinate
from ..rollout import combine
from ..solver import SolverTable
from ..teacher import Pairs
from ..trajectories import Trajectories, few_elements


@dataclass(frozen=True)
class Guide:
    """The teacher's way.

    Attributes:
        table: the teacher's.
        deviation: sd, of the teacher's samples.
        coordinate: the model's.
    """

    table: SolverTable
    deviation: float
    coordinate: Coordinate

    def trajectories(self, pairs: Pairs) -> Trajectories:
        """The teacher's rollouts of these noises."""
        return pairs.trajectories(self.table, self.coordinate)

    def deviations(
        self, table: SolverTable, history: list[Tensor], teacher: Trajectories, first: int = 1
    ) -> list[Tensor]:
        """r_m of each state from the first on: M - first of (n, few).

        Args:
            table, history: the student's, with the history's few elements of each latent.
        """
        found = []
        for m in range(first, table.model_calls):
            sigma = float(table.state_sigmas[m])
            spread = (self.coordinate.signal(sigma) * self.deviation) ** 2 + sigma**2
            off = combine(table.weights[m, : m + 1], history) - teacher.states(sigma)
            found.append(off * (self.deviation / spread**0.5))
        return found


class Way:
    """One batch of students' states on their way, and how they change with each parameter.

    Args:
        pairs: the batch.
        table, history: the students' rollout.

    Attributes:
        deviations: r_m of each state after the first, M-1 of (n, few).
        changes: of each parameter probed, by how much it moves them, as many.
    """

    def __init__(
        self, guide: Guide, pairs: Pairs, table: SolverTable, history: list[Tensor]
    ) -> None:
        self._guide, self._teacher = guide, guide.trajectories(pairs)
        self._few = [few_elements(state) for state in history]
        self.deviations = guide.deviations(table, self._few, self._teacher)
        self.changes: dict[int, list[Tensor]] = {}

    def probe(self, k: int, table: SolverTable, history: list[Tensor], shared: int) -> None:
        """Note where parameter k's probe leads.

        Args:
            table, history: its rollout.
            shared: how many entries of the history are the same.
        """
        few = self._few[:shared] + [few_elements(state) for state in history[shared:]]
        first = max(shared - 1, 1)  # the states before are the same
        reached = self._guide.deviations(table, few, self._teacher, first)
        unmoved = [torch.zeros_like(self._few[0], dtype=torch.bfloat16)] * (first - 1)
        self.changes[k] = unmoved + [
            (a - b).bfloat16() for a, b in zip(reached, self.deviations[first - 1 :], strict=True)
        ]
