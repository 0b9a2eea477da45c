"""The learned solver in other numbers of steps, at a few hundred model calls each.

Where a descent begins decides what it finds, and a solver stretched from another number of steps
(`ld3.step_transfer`) begins in a good basin. So each further number costs one ranking, a short
descent and a test, on noises that the teacher has sampled already. Numbers between two learned ones
cost nothing: they are interpolated, and not tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..few_parameters import FewParameters
from ..solver_parameters import SolverParameters
from ..step_transfer import LearnedParameters, nearest, transferred
from ..table import Discretization
from ..teacher import TeacherSamples
from .candidates import Competitors, Start, TrajectorySurrogate, rank_baselines, surrogate_search
from .final_test import Chosen, measured_report
from .gauss_newton import GaussNewton, Parameters
from .other_steps_planning import STANDARDS, Plan, calls_of_standards, plan_of
from .problem import TrainingProblem
from .report import Learned, ProgressReporter, Report, ValidationEntry, finite
from .settings import TrainingSettings
from .steps_alone import without_extras
from .successive_halving import descent_settings
from .validation import Objective, may_lose

DESCENT = 12  # iterations of a whole descent, of which these are the second half
INTERPOLATED = "interpolated"


@dataclass(frozen=True)
class Prepared:
    """What the training of the first number of steps leaves to others, by number."""

    problem: TrainingProblem
    settings: TrainingSettings
    others: dict[int, Competitors]
    objective: Objective
    surrogate: TrajectorySurrogate
    training: TeacherSamples
    validating: TeacherSamples
    test: TeacherSamples
    progress: ProgressReporter


@dataclass
class _Family:
    """Solvers of one sampler in several numbers of steps.

    Attributes:
        parameters: what was learned, whether or not a standard schedule was better.
        returned, plain: the solvers returned, and the noise levels for the plain sampler; what was
            learned where a standard schedule that was returned has another number of steps.
        learned: by number of steps.
    """

    parameters: list[LearnedParameters] = field(default_factory=list)
    returned: list[LearnedParameters] = field(default_factory=list)
    plain: list[LearnedParameters] = field(default_factory=list)
    learned: dict[int, Learned] = field(default_factory=dict)

    def add(self, parameters: LearnedParameters, learned: Learned) -> None:
        """Add a member."""
        kind, solver = parameters.parameters, learned.solver
        returned, same = parameters, solver.steps == kind.steps
        if learned.report.chosen != "learned" and same:
            theta = kind.extended(kind.levels.from_sigmas(solver.sigmas))
            returned = LearnedParameters(kind, theta)
        self.returned.append(returned)
        levels = without_extras(FewParameters(parameters.parameters)).all
        sigmas = solver.sigmas.tolist() if same else learned.report.sigmas
        sigmas = learned.report.steps_sigmas or sigmas
        u = levels.levels.from_sigmas(torch.tensor(sigmas))
        self.parameters.append(parameters)
        self.plain.append(LearnedParameters(levels, u))
        self.learned[parameters.parameters.steps] = learned


def learn_other_steps(
    prepared: Prepared, parameters: LearnedParameters, learned: Learned
) -> dict[int, Learned]:
    """Solvers in the settings' other numbers of steps and all numbers between, by number.

    Args:
        parameters, learned: the first number's, before and after its test.
    """
    first, family = prepared.settings.steps, _Family()
    family.add(parameters, learned)
    for steps in sorted(prepared.others, key=lambda n: abs(n - first)):
        family.add(*_Number.of(prepared, steps, parameters).learned(family.parameters))
    results = dict(family.learned)
    for steps in range(min(results) + 1, max(results)):
        if steps not in results:
            results[steps] = _interpolated(parameters.parameters, family, steps)
    del results[first]
    return dict(sorted(results.items()))


@dataclass(frozen=True)
class _Number:
    """A further number of steps, to be learned."""

    prepared: Prepared
    competitors: Competitors
    parameters: Parameters  # that a descent learns
    plan: Plan

    @staticmethod
    def of(prepared: Prepared, steps: int, first: LearnedParameters) -> _Number:
        """Of what the training of the first number of steps leaves.

        If few numbers describe its extras, they will do here, too, and cost fewer calls.
        """
        competitors = prepared.others[steps]
        parameters = few = competitors.parameters
        if not FewParameters(first.parameters).describes(first.theta):
            parameters = few.all
        plan = plan_of(prepared.problem, competitors, parameters, prepared.settings)
        return _Number(prepared, competitors, parameters, plan)

    def learned(self, known: list[LearnedParameters]) -> tuple[LearnedParameters, Learned]:
        """Rank, descend and test.

        Args:
            known: what was learned in other numbers of steps.
        """
        prepared, competitors = self.prepared, self.competitors
        progress, validating = prepared.progress, prepared.validating[: self.plan.noises]
        before = progress.calls
        calls, solvers = calls_of_standards(prepared.problem, competitors), competitors.baselines
        affordable = {n: s for n, s in solvers.items() if calls[n] <= self.plan.standard}
        likely = replace(competitors, baselines=affordable)
        scores = rank_baselines(
            prepared.objective, likely, prepared.surrogate, validating, progress, STANDARDS
        )
        starts = self._starts(known, validating)
        history = [self._entry(start, before) for start in starts]
        best = min(starts, key=lambda start: start.error)
        if self.plan.iterations:
            descended = self._descended(best, validating)
            history.append(self._entry(descended, before))
            if descended.error < may_lose(len(validating)) * best.error:
                best = descended
        parameters = competitors.parameters.all
        solver = parameters.discretization(best.theta)
        report = Report(
            start=best.name,
            extras=[extra.value for extra in solver.extras],
            sigmas=solver.sigmas.tolist(),
            eval_sigmas=solver.table.eval_sigmas.tolist() if parameters.decoupled else [],
            baselines=competitors.ranked(scores),
            history=history,
            training_calls=progress.calls - before,
        )
        learned = self._tested(solver, report, best.error)
        return LearnedParameters(parameters, best.theta), learned

    def _starts(self, known: list[LearnedParameters], validating: TeacherSamples) -> list[Start]:
        """The solver stretched from the nearest number of steps, and the best on the surrogate."""
        prepared, few = self.prepared, self.competitors.parameters
        source = nearest(known, few.steps)
        searched = surrogate_search(
            prepared.surrogate,
            few,
            prepared.settings.seed,
            lambda: self._stage("searching candidates"),
        )
        thetas = {
            f"from {source.parameters.steps} steps": transferred([source], few.all),
            "trajectory 1": few.expanded(searched[0]),
        }
        return [self._judged(name, theta, validating) for name, theta in thetas.items()]

    def _descended(self, start: Start, validating: TeacherSamples) -> Start:
        """The start after a short descent."""
        prepared, few = self.prepared, self.competitors.parameters
        settings, training = prepared.settings, prepared.training
        descent = GaussNewton(
            prepared.objective,
            self.parameters,
            few.summarized(start.theta) if self.parameters is few else start.theta,
            DESCENT,
            descent_settings(few, settings),
            DESCENT // 2,
        )
        order = torch.Generator().manual_seed(settings.seed)
        for iteration in range(self.plan.iterations):
            chosen = torch.randperm(len(training), generator=order)[: self.plan.descent_noises]
            descent.step(training[chosen])
            self._stage(f"iteration {iteration + 1} of {self.plan.iterations}")
        theta = few.expanded(descent.theta) if self.parameters is few else descent.theta
        return self._judged(start.name, theta, validating)

    def _judged(self, name: str, theta: Tensor, validating: TeacherSamples) -> Start:
        solver = self.competitors.parameters.all.discretization(theta)
        return Start(name, theta, self.prepared.objective.error(solver, validating))

    def _tested(self, solver: Discretization, report: Report, error: float) -> Learned:
        """What was learned, or the best standard schedule if that wins on the test noises.

        Args:
            error: of what was learned, on the validation noises.
        """
        prepared, progress = self.prepared, self.prepared.progress
        before = progress.calls
        test = prepared.test[: self.plan.noises]
        sigmas = {name: s.sigmas for name, s in self.competitors.baselines.items()}
        problem = replace(prepared.problem, baselines=sigmas, own=None, standard=None, always=())
        choice = Chosen(solver, error, self.plan.noises)
        report = measured_report(prepared.objective, problem, choice, test, report, progress)
        standard = report.best_baseline()
        if report.chosen != "learned":
            solver = self.competitors.baselines[report.chosen]
        elif solver.extras and standard:
            # for the plain sampler nothing is learned again
            baseline = report.baselines[standard]
            first, *_, last = report.sigmas
            if len(baseline.sigmas) == len(report.sigmas) and first > baseline.sigmas[1]:
                sigmas = [first, *baseline.sigmas[1:-1], last]
                same = math.isclose(first, baseline.sigmas[0], rel_tol=1e-3)
                tested = baseline.test_error if same else None  # of other levels
                report = replace(report, steps_sigmas=sigmas, steps_error=tested)
        return Learned(solver, replace(report, report_calls=progress.calls - before))

    def _stage(self, stage: str) -> None:
        self.prepared.progress.stage(f"learning {self.parameters.steps} steps: {stage}")

    def _entry(self, start: Start, before: int) -> ValidationEntry:
        calls = self.prepared.progress.calls - before
        return ValidationEntry(start.name, calls, finite(start.error))


def _interpolated(like: SolverParameters, family: _Family, steps: int) -> Learned:
    """The solver between two learned ones, which is not tested."""
    parameters = like.in_steps(steps)
    solver = parameters.discretization(transferred(family.returned, parameters))
    alone = family.plain[0].parameters.in_steps(steps)
    plain = alone.discretization(transferred(family.plain, alone)).sigmas
    report = Report(
        chosen=INTERPOLATED,
        extras=[extra.value for extra in solver.extras],
        sigmas=solver.sigmas.tolist(),
        eval_sigmas=solver.table.eval_sigmas.tolist() if like.decoupled else [],
        steps_sigmas=plain.tolist() if solver.extras else [],
    )
    return Learned(solver, report)
