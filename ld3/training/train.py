"""Learn a schedule: teach, rank candidates, descend, add extras, choose, measure.

Phases return values or leave the best student in `Validation`; the report is built at the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..metrics import LATENT_DISTANCES, Distance, rmse, spread
from ..model import Model
from ..parameters import StepParameters
from ..solver_parameters import SolverParameters
from ..table import Discretization, Extra
from ..teacher import TargetStore, TeacherSamples, sample_teacher
from ..tracing import TracedSampler
from ..trajectories import subsample
from . import candidates, dode, successive_halving
from .candidates import Competitors, rank_candidates
from .gradient import descent as gradient_descent
from .output_mix import output_mix
from .report import Baseline, Progress, ProgressReporter, Report, best_baseline, finite
from .settings import TrainingSettings
from .validation import Objective, Validation, errors

logger = logging.getLogger(__name__)
SPREAD_ELEMENTS = 4096  # per sample, by which spreads are compared


@dataclass(frozen=True)
class TrainingProblem:
    """The student to learn and the teacher it is learned from.

    Attributes:
        sampler: the sampler to learn for.
        start_sigma, end_sigma: first and last level of the learned schedule; the last is 0 unless
            it is the first part of a split sampling.
        baselines: name -> sigmas of standard schedules, which compete.
        teacher_sampler: for D-ODE, whose teacher passes through the student's own states; None is
            the student's.
        image_features: for distances between images, see `ld3.metrics.Distance`.
    """

    model: Model
    sampler: TracedSampler
    teacher: Discretization
    start_sigma: float
    baselines: dict[str, Tensor] = field(default_factory=dict)
    end_sigma: float = 0.0
    teacher_sampler: TracedSampler | None = None
    image_features: Callable[[Tensor], Tensor] | None = None


class Learned(NamedTuple):
    """The result of a training."""

    solver: Discretization
    report: Report


def train(
    problem: TrainingProblem,
    settings: TrainingSettings,
    noise: Tensor,
    latent: Tensor,
    store: TargetStore | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Learned:
    """Learn a schedule.

    Args:
        noise, latent: start noises and the latents they are added to, (settings.noises, *latent).
        store: where the teacher's samples are kept for the next training.
        on_progress: receives an event after every batch of work; may raise an interrupt.

    Raises:
        ValueError: too few or too many steps, a teacher without more steps than the student, or
            samples that are not finite; the text says what to do.
        UnsupportedSampler: the sampler has no table.
    """
    competitors = _competitors(problem, settings)
    planned = _planned_calls(problem, competitors, settings)
    progress = ProgressReporter(problem.model, planned, on_progress)
    progress.know(baselines=competitors.as_baselines())

    training, validating, test = _teach(problem, settings, noise, latent, store, progress)
    teacher_calls = progress.calls
    objective = _objective(problem, settings.distance, competitors, training, validating)
    starts, baselines = rank_candidates(
        objective, competitors, training, validating, settings.seed, progress
    )
    progress.know(baselines=baselines)
    best, parameters = starts[0], competitors.parameters
    initial = parameters.discretization(best.theta)
    validation = Validation(objective, validating, progress, best.name, initial, best.theta)
    learned = replace(parameters, decoupled=settings.decoupled, order=settings.order)
    if settings.gradient:
        gradient_descent.descend_by_gradient(learned, best, training, validation, settings)
    else:
        successive_halving.descend_by_gauss_newton(
            learned, starts[: settings.starts], training, validation, settings
        )
    lambdas = _add_extras(problem, settings, training, validation)
    chosen, solver = _choose(validation, baselines, competitors)
    report = Report(
        start=best.name,
        chosen=chosen,
        extras=[extra.value for extra in solver.extras],
        initial_sigmas=initial.sigmas.tolist(),
        sigmas=solver.sigmas.tolist(),
        eval_sigmas=(
            solver.table.eval_sigmas.tolist() if Extra.DECOUPLED_TIMES in solver.extras else []
        ),
        lambdas=lambdas if Extra.D_ODE in solver.extras else [],
        baselines=baselines,
        history=list(validation.history),
        teacher_calls=teacher_calls,
        training_calls=progress.calls - teacher_calls,
    )
    report = _measure(problem.model, solver, competitors, test, report, progress)
    report = replace(report, initial_error=_error(problem.model, initial, test))
    report = replace(report, training_error=_error(problem.model, solver, training))
    report_calls = progress.calls - teacher_calls - report.training_calls
    progress.stage("done")
    return Learned(solver, replace(report, report_calls=report_calls))


def _competitors(problem: TrainingProblem, settings: TrainingSettings) -> Competitors:
    """The student's parameters, and the standard schedules that its sampler can run."""
    model = problem.model
    start, end = problem.start_sigma, problem.end_sigma
    levels = StepParameters(model.coordinate, start, model.sigma_min, end)
    if not levels.room_for(settings.steps):
        raise ValueError(
            f"steps is {settings.steps}; between sigma {start:.4g} and "
            f"{levels.floor:.4g} there are not enough distinct noise levels: use fewer steps"
        )
    settings.check(problem.teacher.steps)
    parameters = SolverParameters.of_steps(problem.sampler, levels, model.sigma_max, settings.steps)
    baselines = {}
    for name, sigmas in problem.baselines.items():
        try:
            baselines[name] = problem.sampler.discretization(sigmas)
        except Exception as error:  # some samplers fail on some schedules
            logger.info("LD3: the standard schedule %s cannot be run: %s", name, error)
    return Competitors(parameters, baselines)


def _teach(
    problem: TrainingProblem,
    settings: TrainingSettings,
    noise: Tensor,
    latent: Tensor,
    store: TargetStore | None,
    progress: ProgressReporter,
) -> list[TeacherSamples]:
    """Sample the teacher for the training, validation and test noises."""
    names = ("training", "validation", "test")
    sizes = [getattr(settings, f"{name}_noises") for name in names]
    sets = []
    for name, x, latents in zip(names, noise.split(sizes), latent.split(sizes), strict=True):
        before_batch = partial(progress.stage, f"teacher: {name} noises")
        sets.append(sample_teacher(problem.model, problem.teacher, x, latents, store, before_batch))
    return sets


def _objective(
    problem: TrainingProblem,
    name: str,
    competitors: Competitors,
    training: TeacherSamples,
    validating: TeacherSamples,
) -> Objective:
    """The distance of that name, its scale the median error of the first baseline that works."""
    unscaled = Distance(name, 1.0, problem.image_features)
    # a state is not an image yet: trajectories are matched for latent distances only
    data_std = float(training.target.std()) if name in LATENT_DISTANCES else None
    deviation = partial(unscaled.between, measure=rmse)
    scale = float(validating.target.std())
    for solver in competitors.baselines.values():
        median = float(errors(problem.model, solver, validating, deviation).median())
        if math.isfinite(median):
            scale = max(median, 1e-6)
            break
    return Objective(problem.model, replace(unscaled, scale=scale), data_std)


def _add_extras(
    problem: TrainingProblem,
    settings: TrainingSettings,
    training: TeacherSamples,
    validation: Validation,
) -> list[float]:
    """Consider the closed-form extras on top of the best student; returns D-ODE's lambdas."""
    lambdas: list[float] = []
    if settings.dode:
        found = dode.distill(
            problem.model,
            validation.best.student,
            problem.teacher_sampler or problem.sampler,
            training,
            validation.samples,
            validation.progress.stage,
        )
        if found.lambdas.any():
            validation.consider(Extra.D_ODE.value, found.student, validation.best.theta)
            lambdas = found.lambdas.tolist()
    if settings.output_mix:
        validation.progress.stage("mixing outputs")
        mixed = output_mix(validation.objective, validation.best.student, training)
        if mixed is not None:
            validation.consider(Extra.OUTPUT_MIX.value, mixed, validation.best.theta)
    return lambdas


def _choose(
    validation: Validation, baselines: dict[str, Baseline], competitors: Competitors
) -> tuple[str, Discretization]:
    """What was learned, or the standard schedule that is better on the validation noises."""
    best = best_baseline(baselines, "validation_error")
    error = baselines[best].validation_error if best else None
    if best and error is not None and error <= validation.best.error:
        return best, competitors.baselines[best]
    return "learned", validation.best.student


def _measure(
    model: Model,
    solver: Discretization,
    competitors: Competitors,
    test: TeacherSamples,
    report: Report,
    progress: ProgressReporter,
) -> Report:
    """The report with the errors of the result and of all baselines on the test noises."""
    progress.stage("measuring the learned schedule")
    error, ratio = _error(model, solver, test), finite(_spread(model, solver, test))
    report = replace(report, test_error=error, spread=ratio)
    for name, baseline in competitors.baselines.items():
        progress.show(report)
        progress.stage(f"measuring {name}")
        measured = replace(report.baselines[name], test_error=_error(model, baseline, test))
        report = replace(report, baselines=report.baselines | {name: measured})
    progress.show(report)
    return report


def _error(model: Model, solver: Discretization, samples: TeacherSamples) -> float | None:
    return finite(float(errors(model, solver, samples).mean()))


def _spread(model: Model, solver: Discretization, test: TeacherSamples) -> float:
    samples = errors(model, solver, test, lambda x, target: subsample(x, SPREAD_ELEMENTS))
    return spread(samples) / max(spread(subsample(test.target, SPREAD_ELEMENTS)), 1e-12)


def _planned_calls(problem: TrainingProblem, competitors: Competitors, s: TrainingSettings) -> int:
    """Model calls of all phases: what each of them says of itself."""
    parameters, calls = competitors.parameters, competitors.parameters.calls
    learned = replace(parameters, decoupled=s.decoupled, order=s.order)
    baselines = [solver.table.model_calls for solver in competitors.baselines.values()]
    planned = s.noises * problem.teacher.table.model_calls
    planned += s.validation_noises * sum(baselines[:1])  # the distance's scale
    planned += candidates.planned_calls(competitors, s.validation_noises)
    planned += s.validation_noises * calls  # the first validation
    if s.gradient:
        secant = problem.model.time_neighbours is not None
        planned += gradient_descent.planned_calls(learned, s, secant)
    else:
        planned += successive_halving.planned_calls(learned, s)
    if s.dode:
        even = parameters.discretization(parameters.levels.even(s.steps))
        sampler = problem.teacher_sampler or problem.sampler
        sizes = s.training_noises, s.validation_noises
        planned += dode.planned_calls(problem.model, even, sampler, *sizes)
        planned += s.validation_noises * calls
    if s.output_mix:
        planned += (s.training_noises + s.validation_noises) * calls
    return planned + s.training_noises * calls + s.test_noises * (3 * calls + sum(baselines))
