"""Match a student's states to the teacher's trajectory.

About one sample in thirty ends in another mode, because its state passed too close to it, and a
small training set may contain none of these. But the states of every noise deviate. So besides the
result's residual, Gauss-Newton minimises those of all states after the first,

    r_m = s_m (X_m - x_T(sigma_m)) ,   s_m = sd / sqrt(a_m^2 sd^2 + sigma_m^2) ,

x_T the teacher's state at this noise level, interpolated on its own rollout without a model call.
s_m is the factor by which a difference of states shrinks until the sample, for Gaussian data of
standard deviation sd, whose ODE scales states like their spread; a state is a_m x0 + sigma_m noise.

The weight of the states decreases over the iterations (`GaussNewton`): they lead to a good basin,
but the best few steps within it need not pass exactly through the teacher's states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..parameters import Coordinate
from ..table import SolverTable, combine
from ..teacher import TeacherSamples
from ..trajectories import subsample


class TrajectoryResiduals:
    """The residuals of one batch's states, and how they change with each parameter.

    Args:
        samples: the teacher's, of this batch.
        coordinate: the model's. data_std: sd.
        table, history: the students' rollout.

    Attributes:
        values: r_m of each state after the first, M-1 of (n, few).
        changes: for each perturbed parameter the differences of all r_m, as many.
    """

    def __init__(
        self,
        samples: TeacherSamples,
        coordinate: Coordinate,
        data_std: float,
        table: SolverTable,
        history: list[Tensor],
    ) -> None:
        self._teacher, self._std = samples.trajectories(coordinate), data_std
        self._history = [subsample(state) for state in history]
        self.values = self._residuals(table, self._history)
        self.changes: dict[int, list[Tensor]] = {}

    def perturb(self, k: int, table: SolverTable, history: list[Tensor], shared: int) -> None:
        """Add parameter k's changes, from its rollout; the first `shared` outputs are the same."""
        history = self._history[:shared] + [subsample(state) for state in history[shared:]]
        first = max(shared - 1, 1)  # earlier states did not change
        same = [torch.zeros_like(history[0], dtype=torch.bfloat16)] * (first - 1)
        perturbed = self._residuals(table, history, first)
        self.changes[k] = same + [
            (a - b).bfloat16() for a, b in zip(perturbed, self.values[first - 1 :], strict=True)
        ]

    def _residuals(self, table: SolverTable, history: list[Tensor], first: int = 1) -> list[Tensor]:
        """r_m of each state from the first on, from the few elements of a history."""
        residuals = []
        for m in range(first, table.model_calls):
            sigma = float(table.state_sigmas[m])
            spread = (self._teacher.coordinate.signal(sigma) * self._std) ** 2 + sigma**2
            difference = combine(table.weights[m], history) - self._teacher.states(sigma)
            residuals.append(difference * (self._std / spread**0.5))
        return residuals
