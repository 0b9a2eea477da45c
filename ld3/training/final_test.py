"""Measure what was learned and the best standard schedule, on noises neither was chosen on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics import mean_distance, rmse, spread
from ..table import Discretization
from ..teacher import TeacherSamples
from ..trajectories import subsample
from .bootstrap import bootstrap_interval
from .problem import TrainingProblem
from .report import ProgressReporter, Report, best_baseline, finite
from .steps_saved import COMPARED_NOISES, Rival, steps_curve
from .validation import Measure, Objective, errors

ALIKE = 1e-4  # relative difference of samples that is rounding
SPREAD_ELEMENTS = 4096  # per sample, by which spreads are compared


class Chosen(NamedTuple):
    """What was learned: the best on a number of validation noises, with its mean score there."""

    solver: Discretization
    error: float
    noises: int


def measured_report(
    objective: Objective,
    problem: TrainingProblem,
    choice: Chosen,
    test: TeacherSamples,
    report: Report,
    progress: ProgressReporter,
) -> Report:
    """The report with the result and the best standard schedule on the test noises.

    None of both was chosen on these noises. The standard schedule is returned if it wins there, and
    on the validation noises and these together. What was learned is also compared with others in
    more steps.
    """
    solver = choice.solver
    progress.stage("measuring the learned schedule")
    learned = _Test.of(objective, solver, test)
    targets = subsample(test.target, SPREAD_ELEMENTS)
    report = replace(
        report,
        test_error=learned.error,
        spread=_spread(learned.elements, targets),
        unrelated_error=finite(mean_distance(learned.elements, targets)),
    )
    few = test[:COMPARED_NOISES]
    rivals: list[tuple[Rival, dict[int, float]]] = [(problem.own, {})] if problem.own else []
    progress.show(report)
    tests = _baseline_tests(objective, problem, test, report, progress)
    for name, measured in tests.items():
        baseline = replace(report.baselines[name], test_error=measured.error)
        report = replace(report, baselines=report.baselines | {name: baseline})
    name = best_baseline(report.baselines, "test_error")
    if problem.streams:
        found = {"learned": learned} | tests
        by_stream = {
            key: [finite(e) for e in problem.streams.errors(measured.elements - targets)]
            for key, measured in found.items()
        }
        report = replace(report, stream_errors=by_stream)
    if name is not None:
        standard, ranked = tests[name], report.baselines[name].ranking_error
        behind = 0.0 if ranked is None else choice.noises * (ranked - choice.error)
        report = replace(
            report,
            chosen=name if _wins(standard.scores, learned.scores, behind) else "learned",
            gain=bootstrap_interval(learned.scores, standard.scores),
        )
        if problem.standard:
            steps = len(problem.baselines[name]) - 1
            known = {steps: float(standard.errors[: len(few)].mean())}
            best = problem.standard(name)
            if problem.own and problem.own.name == best.name:  # the user's own is the best one
                rivals = [(problem.own, known)]
            else:
                rivals.append((best, known))
    if report.chosen != "learned" or learned.error is None:
        return replace(report, steps_sigmas=[])
    if report.steps_sigmas:
        progress.stage("measuring the time steps alone")
        report = _with_steps_alone(objective, problem, test, report, name)
    error = float(learned.errors[: len(few)].mean())
    for rival, known in rivals:
        progress.show(report)
        before_run = partial(progress.stage, f"counting the steps saved: {rival.name}")
        curve = steps_curve(rival, (solver.steps, error), objective, few, known, before_run)
        report = replace(report, compared=[*report.compared, curve])
    return report


def _spread(learned: Tensor, teacher: Tensor) -> float | None:
    """The student's spread relative to the teacher's; None if the teacher's samples are alike."""
    reference = spread(teacher)
    alike = reference <= ALIKE * float(teacher.norm(dim=1).mean())
    return None if alike else finite(spread(learned) / reference)


def _baseline_tests(
    objective: Objective,
    problem: TrainingProblem,
    test: TeacherSamples,
    report: Report,
    progress: ProgressReporter,
) -> dict[str, _Test]:
    """By name: the standard schedule that ranks best, and those that are always measured."""
    best, tests = best_baseline(report.baselines, "ranking_error"), {}
    names = [best] if best else []
    names += [name for name in problem.always if name in report.baselines and name != best]
    for name in names:
        progress.stage(f"measuring {name}")
        solver = problem.sampler.discretization(problem.baselines[name])
        tests[name] = _Test.of(objective, solver, test)
    return tests


def _wins(standard: Tensor, learned: Tensor, behind: float) -> bool:
    """Whether a standard schedule is better by its scores (n,) on the test noises.

    On average, on half of them, and on average of these and the validation noises: a mean over few
    noises can be that of one which falls into another mode.

    Args:
        behind: by how much the sum of its scores on the validation noises is larger.
    """
    if not math.isfinite(float(learned.mean())):
        return True
    often = float((standard <= learned).float().mean()) >= 0.5
    return often and float((standard - learned).sum()) <= min(0.0, -behind)


def _with_steps_alone(
    objective: Objective,
    problem: TrainingProblem,
    test: TeacherSamples,
    report: Report,
    standard: str | None,
) -> Report:
    """The report with the error of the time steps alone, or of the standard schedule if better."""
    sigmas = torch.tensor(report.steps_sigmas)
    error = _Test.of(objective, problem.sampler.discretization(sigmas), test).error
    baseline = report.baselines[standard] if standard else None
    if baseline is not None and baseline.test_error is not None:
        pair = baseline.sigmas, report.steps_sigmas
        ends = [(len(levels), levels[0], levels[-1]) for levels in pair]
        if ends[0] == ends[1] and (error is None or baseline.test_error < error):
            return replace(report, steps_sigmas=baseline.sigmas, steps_error=baseline.test_error)
    return replace(report, steps_error=error)


class _Test(NamedTuple):
    """A student on the test noises: errors and scores (n,), a few elements of its samples."""

    errors: Tensor
    scores: Tensor
    elements: Tensor

    @staticmethod
    def of(objective: Objective, solver: Discretization, test: TeacherSamples) -> _Test:
        """The student's, each noise sampled once."""

        def measure(x: Tensor, target: Tensor) -> Tensor:
            # a distance of images is on the VAE's device
            values = rmse(x - target).cpu(), objective.distance.score(x, target).cpu()
            return torch.cat([torch.stack(values, 1), subsample(x, SPREAD_ELEMENTS)], 1)

        name = f"test {objective.distance.identity}"
        measured = errors(objective.model, solver, test, Measure(name, measure))
        return _Test(measured[:, 0], measured[:, 1], measured[:, 2:])

    @property
    def error(self) -> float | None:
        """The mean error."""
        return finite(float(self.errors.mean()))
