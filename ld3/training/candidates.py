"""The solvers a descent begins with, found in two stages.

First a search costs no model call. Near a teacher trajectory x_T(s) with denoised outputs D_T(s)
the denoiser of data with variance sd^2, in states a x0 + s noise, is about

    D(x; s) = D_T(s) + a sd^2 / (a^2 sd^2 + s^2) (x - x_T(s)) :

exact on the trajectory, and off it with the slope for a Gaussian of the data's variance. Running a
student with this surrogate is arithmetic only, so hundreds of schedules can be tried. A random
population, refined member by member, keeps the several basins of a student's error. Each step adds
a dimension, for which hundreds are soon too few: for more than `SEARCHED_STEPS` steps, schedules of
`SEARCHED_STEPS` steps are searched, and those found are stretched (`ld3.step_transfer`).

Extras are searched with the noise levels, by the few numbers of `FewParameters`: descents that
begin with typical extras need a fraction of the iterations.

Then the real model ranks what was found, and the standard schedules that are best on the surrogate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..few_parameters import FewParameters
from ..metrics import rmse
from ..parameters import Coordinate
from ..step_transfer import LearnedParameters, transferred
from ..table import Discretization, SolverTable, rollout
from ..teacher import TeacherSamples
from ..trajectories import TeacherTrajectories
from .report import Baseline, ProgressReporter, finite
from .validation import Objective, mean_score

SEARCHED_STEPS = 4  # the most that are searched directly; see docs/benchmarks.md, "Cost"
POPULATION, SURVIVORS, ROUNDS, CHILDREN = 200, 12, 6, 4
TRAJECTORIES = 8  # teacher rollouts of the surrogate
RANKED_BASELINES = 4  # standard schedules, the best on the surrogate, that the real model ranks
RANKED_SCHEDULES = 4  # schedules found on the surrogate that the real model ranks
SAME_SCHEDULE = 0.02  # in u: standard schedules closer to each other are ranked once
DIFFERENT = 0.3  # in u: starts closer to each other share a basin
TYPICAL_OFFSETS, TYPICAL_CORRECTION = (-0.5, -0.9), 0.5  # the largest; offsets in u
MUTATION_SHARE = 0.4  # of an extra's typical extreme: its mutations, relative to those of u


@dataclass(frozen=True, eq=False)
class Start:
    """Where a descent begins: theta, and its mean score on the validation noises."""

    name: str
    theta: Tensor
    error: float


@dataclass(frozen=True)
class Competitors:
    """What is learned, and standard schedules by scheduler.

    Those with the student's steps, calls and first level can be starts; `always` are ranked first.
    """

    parameters: FewParameters
    baselines: dict[str, Discretization]
    always: tuple[str, ...] = ()

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

    def ranked(self, scores: dict[str, Tensor]) -> dict[str, Baseline]:
        """The same with ranking errors: means of scores (n,) by scheduler."""
        baselines = self.as_baselines()
        for name, score in scores.items():
            error = finite(float(score.mean()))
            baselines[name] = replace(baselines[name], ranking_error=error)
        return baselines


class TrajectorySurrogate:
    """The denoiser above, from teacher rollouts.

    Args:
        teacher: the rollouts.
        target: the same few elements of the teacher's samples, (n, few).

    Attributes:
        found: what `surrogate_search` found on it, by what was searched and seed; further numbers
            of steps are stretched from the same.
    """

    def __init__(self, teacher: TeacherTrajectories, target: Tensor) -> None:
        self._teacher, self.target = teacher, target
        self._variance = float(target.var())
        self.found: dict[tuple[FewParameters, int], list[Tensor]] = {}

    def __call__(self, x: Tensor, sigma: Tensor, guidance: bool = False, low: bool = False) -> Any:
        """See `Model`; both of two models are described by the teacher's rollouts."""
        level = float(sigma.reshape(-1)[0])
        state, output = self._teacher.states(level), self._teacher.outputs(level)
        signal = self._teacher.coordinate.signal(level)
        slope = signal * self._variance / (signal**2 * self._variance + level**2)
        denoised = output + slope * (x - state)
        return (denoised, self._teacher.guidance(level)) if guidance else denoised

    def error(self, table: SolverTable) -> float:
        """Mean RMSE of a student to the teacher, on the surrogate; infinite for NaN."""
        start = self._teacher.start(float(table.state_sigmas[0]))  # ddim_uniform's is lower
        value = float(rmse(rollout(table, self, [start])[0] - self.target).mean())
        return value if math.isfinite(value) else math.inf


def surrogate_search(
    surrogate: TrajectorySurrogate,
    parameters: FewParameters,
    seed: int,
    before_round: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Parameters z with small surrogate error, best first: 12.

    For more than `SEARCHED_STEPS` steps they are stretched from that number.

    Args:
        before_round: called before every round of the search, where a caller may interrupt.
    """
    searched = parameters
    if parameters.steps > SEARCHED_STEPS:
        searched = FewParameters(parameters.all.in_steps(SEARCHED_STEPS))
    if (searched, seed) not in surrogate.found:
        surrogate.found[searched, seed] = _search(surrogate, searched, seed, before_round)
    found = surrogate.found[searched, seed]
    if searched is parameters:
        return found
    known = [LearnedParameters(searched.all, searched.expanded(z)) for z in found]
    stretched = [parameters.summarized(transferred([one], parameters.all)) for one in known]
    return sorted(stretched, key=lambda z: surrogate.error(parameters.discretization(z).table))


def _search(
    surrogate: TrajectorySurrogate,
    parameters: FewParameters,
    seed: int,
    before_round: Callable[[], None],
) -> list[Tensor]:
    """`surrogate_search` in the parameters' own number of steps."""
    generator = torch.Generator().manual_seed(seed)
    levels, free, size = parameters.levels, parameters.free_levels, parameters.size
    upper, lower = levels.bounds()
    typical = _typical_extras(parameters)
    widths = torch.cat([torch.ones(free, dtype=torch.float64), MUTATION_SHARE * typical.abs()])

    def scored(z: Tensor) -> tuple[float, Tensor]:
        u = levels.separated(z[:free].sort(descending=True).values)
        # each extra between 0 and its typical extreme
        z = torch.cat([u, typical * (z[free:] / typical).clamp(0.0, 1.0)])
        return surrogate.error(parameters.discretization(z).table), z

    def drawn() -> tuple[float, Tensor]:
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)
        u = lower + (upper - lower) * uniform[:free]
        return scored(torch.cat([u, typical * uniform[free:]]))

    def child(z: Tensor, spread: float) -> tuple[float, Tensor]:
        moves = torch.randn(size, generator=generator, dtype=torch.float64)
        return scored(z + spread * widths * moves)

    members = sorted((drawn() for _ in range(POPULATION)), key=lambda m: m[0])[:SURVIVORS]
    for round_ in range(ROUNDS):
        before_round()
        for i, best in enumerate(members):
            children = [child(best[1], 0.5 * 0.7**round_) for _ in range(CHILDREN)]
            members[i] = min([best, *children], key=lambda m: m[0])
    return [z for _, z in sorted(members, key=lambda m: m[0])]


def _typical_extras(parameters: FewParameters) -> Tensor:
    """The largest typical extras, (size - free_levels,)."""
    offsets = TYPICAL_OFFSETS[-parameters.offsets :] if parameters.offsets else []
    corrections = [TYPICAL_CORRECTION] if parameters.all.corrections else []
    return torch.tensor([*offsets, *corrections], dtype=torch.float64)


def rank_baselines(
    objective: Objective,
    competitors: Competitors,
    surrogate: TrajectorySurrogate,
    samples: TeacherSamples,
    progress: ProgressReporter,
    most: int = RANKED_BASELINES,
) -> dict[str, Tensor]:
    """Scores (n,) of the `most` standard schedules best on the surrogate, by scheduler."""
    solvers, coordinate = competitors.baselines, competitors.parameters.levels.coordinate
    likely, always = list[str](), competitors.always
    for name in sorted(
        solvers, key=lambda name: (name not in always, surrogate.error(solvers[name].table))
    ):
        others = [solvers[other].table.state_sigmas for other in likely]
        if not any(_alike(solvers[name].table.state_sigmas, o, coordinate) for o in others):
            likely.append(name)
    scores = {}
    for name in likely[:most]:
        progress.stage(f"ranking candidates: {name}")
        scores[name] = objective.scores(solvers[name], samples)
    return scores


def _alike(levels: Tensor, others: Tensor, coordinate: Coordinate) -> bool:
    """Whether two schedules differ too little to tell them apart (as simple and sgm_uniform)."""
    if len(levels) != len(others):
        return False
    difference = coordinate.from_sigma(levels) - coordinate.from_sigma(others)
    return float(difference.abs().max()) < SAME_SCHEDULE


def standard_starts(competitors: Competitors, scores: dict[str, Tensor]) -> list[Start]:
    """The standard schedules with scores that a descent can begin with, best first."""
    parameters, starts = competitors.parameters, []
    for name, score in scores.items():
        solver = competitors.baselines[name]
        alike = solver.steps == parameters.steps and solver.table.model_calls == parameters.calls
        if alike and math.isclose(solver.sigmas[0], parameters.levels.start, rel_tol=1e-3):
            theta = parameters.extended(parameters.levels.from_sigmas(solver.sigmas))
            starts.append(Start(name, theta, mean_score(score)))
    return sorted(starts, key=lambda start: start.error)


def rank_starts(
    objective: Objective,
    competitors: Competitors,
    scores: dict[str, Tensor],
    found: list[Tensor],
    samples: TeacherSamples,
    progress: ProgressReporter,
) -> list[Start]:
    """All starts in different basins, best first.

    Args:
        scores: of standard schedules on the same samples.
        found: what `surrogate_search` found for the competitors' parameters.

    Raises:
        ValueError: every start ends in infinite or undefined values.
    """
    parameters, starts = competitors.parameters, standard_starts(competitors, scores)
    for i, theta in enumerate(found[:RANKED_SCHEDULES]):
        progress.stage("ranking candidates: from the teacher's trajectories")
        error = objective.error(parameters.discretization(theta), samples)
        starts.append(Start(f"trajectory {i + 1}", theta, error))
    different: list[Start] = []
    free = parameters.free_levels
    for start in sorted(starts, key=lambda s: s.error):
        apart = [float((start.theta - other.theta)[:free].abs().max()) for other in different]
        if all(distance > DIFFERENT for distance in apart):
            different.append(start)
    if not math.isfinite(different[0].error):
        raise ValueError(
            "with this number of steps every schedule gives infinite or undefined values with this "
            "sampler; use more steps or another sampler"
        )
    return different


def planned_calls(competitors: Competitors, noises: int) -> int:
    """Model calls of both rankings, at most."""
    ranked = sorted((s.table.model_calls for s in competitors.baselines.values()), reverse=True)
    found = RANKED_SCHEDULES * competitors.parameters.calls
    return noises * (sum(ranked[:RANKED_BASELINES]) + found)


def shared_first_calls(competitors: Competitors, teacher: SolverTable, noises: int) -> int:
    """How many first calls of both rankings are the teacher's, at least; the student's are."""
    others = sum(not teacher.starts_as(s.table) for s in competitors.baselines.values())
    ranked = min(RANKED_BASELINES, len(competitors.baselines))
    return noises * (max(0, ranked - others) + RANKED_SCHEDULES)
