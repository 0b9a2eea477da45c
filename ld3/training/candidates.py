"""The schedules a descent begins with, found in two stages.

First a search costs no model call. Near a teacher trajectory x_T(s) with denoised outputs D_T(s)
the denoiser of data with variance sd^2, in states a x0 + s noise, is about

    D(x; s) = D_T(s) + a sd^2 / (a^2 sd^2 + s^2) (x - x_T(s)) :

exact on the trajectory, and off it with the slope for a Gaussian of the data's variance. Running a
student with this surrogate is arithmetic only, so hundreds of schedules can be tried. A random
population, refined member by member, keeps the several basins of a schedule's error.

Then the real model ranks what was found, and the standard schedules that are best on the surrogate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..metrics import rmse
from ..parameters import StepParameters
from ..solver_parameters import SolverParameters
from ..table import Discretization, SolverTable, rollout
from ..teacher import TeacherSamples
from ..trajectories import TeacherTrajectories, subsample
from .report import Baseline, ProgressReporter, best_baseline, finite
from .validation import Objective

POPULATION, SURVIVORS, ROUNDS, CHILDREN = 200, 12, 6, 4
TRAJECTORIES = 8  # teacher rollouts of the surrogate
RANKED_BASELINES = 4  # standard schedules, the best on the surrogate, that the real model ranks
RANKED_SCHEDULES = 6  # schedules found on the surrogate that the real model ranks
DIFFERENT = 0.3  # in u: starts closer to each other share a basin
RANKING_NOISES = 16  # of the validation noises


@dataclass(frozen=True, eq=False)
class Start:
    """Where a descent begins: theta of the noise levels alone, and its error on a few noises."""

    name: str
    theta: Tensor
    error: float


@dataclass(frozen=True)
class Competitors:
    """The student's parameters, and standard schedules by scheduler.

    Those with the student's steps and calls can be starts.
    """

    parameters: SolverParameters
    baselines: dict[str, Discretization]

    def as_baselines(self) -> dict[str, Baseline]:
        """What a report says of the baselines before anything is measured."""
        return {
            name: Baseline(
                solver.sigmas.tolist(),
                solver.table.model_calls,
                comparable=solver.table.model_calls <= self.parameters.calls,
            )
            for name, solver in self.baselines.items()
        }


class TrajectorySurrogate:
    """The denoiser above, from teacher rollouts.

    Args:
        teacher: the rollouts.
        target: the same few elements of the teacher's samples, (n, few).
    """

    def __init__(self, teacher: TeacherTrajectories, target: Tensor) -> None:
        self._teacher, self.target = teacher, target
        self._variance = float(target.var())

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma.reshape(-1)[0])
        state, output = self._teacher.states(level), self._teacher.outputs(level)
        signal = self._teacher.coordinate.signal(level)
        slope = signal * self._variance / (signal**2 * self._variance + level**2)
        return output + slope * (x - state)

    def error(self, table: SolverTable) -> float:
        """Mean RMSE of a student to the teacher, on the surrogate; infinite for NaN."""
        value = float(rmse(rollout(table, self, [self._teacher.start])[0] - self.target).mean())
        return value if math.isfinite(value) else math.inf


def surrogate_search(
    surrogate: TrajectorySurrogate,
    table_of: Callable[[Tensor], SolverTable],
    levels: StepParameters,
    steps: int,
    seed: int,
    before_round: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Schedules with small surrogate error, best first: up to 12 vectors u (steps-1,).

    Args:
        before_round: called before every round of the search, where a caller may interrupt.
    """
    generator = torch.Generator().manual_seed(seed)
    upper, lower = levels.bounds()

    def scored(u: Tensor) -> tuple[float, Tensor]:
        u = levels.separated(u.sort(descending=True).values)
        return surrogate.error(table_of(levels.sigmas(u))), u

    def random(scale: float) -> Tensor:
        return scale * torch.rand(steps - 1, generator=generator, dtype=torch.float64)

    members = sorted(
        (scored(lower + random(upper - lower)) for _ in range(POPULATION)), key=lambda m: m[0]
    )
    members = members[:SURVIVORS]
    for round_ in range(ROUNDS):
        before_round()
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


def rank_candidates(
    objective: Objective,
    competitors: Competitors,
    training: TeacherSamples,
    validating: TeacherSamples,
    seed: int,
    progress: ProgressReporter,
) -> tuple[list[Start], dict[str, Baseline]]:
    """All starts in different basins, best first, and the baselines with their errors.

    Raises:
        ValueError: every schedule ends in infinite or undefined values.
    """
    parameters, few = competitors.parameters, validating[:RANKING_NOISES]
    known = training[:TRAJECTORIES]
    surrogate = TrajectorySurrogate(
        known.trajectories(parameters.levels.coordinate), subsample(known.target)
    )
    starts: list[Start] = []
    reported = competitors.as_baselines()
    solvers = competitors.baselines
    likely = sorted(solvers, key=lambda name: surrogate.error(solvers[name].table))
    for name in likely[:RANKED_BASELINES]:
        progress.stage(f"ranking candidates: {name}")
        solver = solvers[name]
        error = objective.error(solver, few)
        reported[name] = replace(reported[name], ranking_error=finite(error))
        if solver.steps == parameters.steps and solver.table.model_calls == parameters.calls:
            starts.append(Start(name, parameters.levels.from_sigmas(solver.sigmas), error))
    best = best_baseline(reported, "ranking_error")
    if best is not None:
        error = objective.error(solvers[best], validating)
        reported[best] = replace(reported[best], validation_error=finite(error))
    found = surrogate_search(
        surrogate,
        parameters.sampler.table,
        parameters.levels,
        parameters.steps,
        seed,
        lambda: progress.stage("searching candidates on the teacher's trajectories"),
    )
    for i, u in enumerate(found[:RANKED_SCHEDULES]):
        progress.stage("ranking candidates: from the teacher's trajectories")
        error = objective.error(parameters.discretization(parameters.extended(u)), few)
        starts.append(Start(f"trajectory {i + 1}", u, error))
    different: list[Start] = []
    for start in sorted(starts, key=lambda s: s.error):
        if all(float((start.theta - other.theta).abs().max()) > DIFFERENT for other in different):
            different.append(start)
    if not math.isfinite(different[0].error):
        raise ValueError(
            "with this number of steps every schedule gives infinite or undefined values with this "
            "sampler; use more steps or another sampler"
        )
    return different, reported


def planned_calls(competitors: Competitors, validation_noises: int) -> int:
    """Model calls of `rank_candidates`, at most."""
    few, student = min(RANKING_NOISES, validation_noises), competitors.parameters.calls
    ranked = sorted((s.table.model_calls for s in competitors.baselines.values()), reverse=True)
    best = validation_noises * student if ranked else 0
    return few * (sum(ranked[:RANKED_BASELINES]) + RANKED_SCHEDULES * student) + best
