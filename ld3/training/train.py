"""Learn a schedule: teach, rank candidates, descend, add extras, measure and choose.

Phases return values or leave the best student in `Validation`; the report is built at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ..metrics import LATENT_DISTANCES, Distance
from ..model import REPEAT_TOLERANCE, Model
from ..step_transfer import LearnedParameters
from ..table import Extra
from ..teacher import Targets, TeacherSamples, sample_teacher
from ..trajectories import subsample
from . import dode, successive_halving
from .candidates import (
    TRAJECTORIES,
    Competitors,
    TrajectorySurrogate,
    rank_baselines,
    rank_starts,
    standard_starts,
    surrogate_search,
)
from .final_test import Chosen, measured_report
from .gradient import descent as gradient_descent
from .other_steps import Prepared, learn_other_steps
from .other_steps_planning import competitors_in_other_steps
from .output_mix import output_mix
from .planning import calls_with
from .problem import TrainingProblem, competitors_of
from .report import Learned, Progress, ProgressReporter, Report
from .settings import TrainingSettings
from .steps_alone import learn_steps_alone
from .validation import Objective, ValidatedStudent, Validation


def train(
    problem: TrainingProblem,
    settings: TrainingSettings,
    noise: Tensor,
    latent: Tensor,
    store: Targets | None = None,
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
    competitors = competitors_of(problem, settings)
    others = competitors_in_other_steps(problem, settings)
    planned = calls_with(problem, competitors, settings, others)
    progress = ProgressReporter(problem.model, planned, on_progress)
    progress.know(baselines=competitors.as_baselines())
    sets = _Sets(problem, settings, noise, latent, store, progress)

    training = sets.teach("training")
    own_teacher = not problem.other_teacher
    sharing = own_teacher and problem.model.stateless
    if not (sharing and _first_call_repeats(problem.model, training, competitors)):
        sets, training = replace(sets, shared=False), replace(training, first_output=None)
    validating = sets.teach("validation")
    teacher_calls = progress.calls
    surrogate = _surrogate(problem, training)
    unscaled = Objective(problem.model, Distance(settings.distance, 1.0, problem.image_features))
    scores = rank_baselines(unscaled, competitors, surrogate, validating, progress)
    objective = _objective(unscaled, scores, training, own_teacher)
    baselines = competitors.ranked(scores)
    progress.know(baselines=baselines)
    found = surrogate_search(
        surrogate,
        competitors.parameters,
        settings.seed,
        lambda: progress.stage("searching candidates on the teacher's trajectories"),
    )
    starts = rank_starts(objective, competitors, scores, found, validating, progress)
    best, parameters = starts[0], competitors.parameters
    theta = parameters.expanded(best.theta)
    first = ValidatedStudent(parameters.all.discretization(theta), theta, best.error)
    validation = Validation(objective, validating, progress, best.name, first)
    if settings.gradient:
        learned = replace(parameters.all, decoupled=settings.decoupled, order=settings.order)
        gradient_descent.descend_by_gradient(learned, best, training, validation, settings)
    else:
        successive_halving.descend_by_gauss_newton(
            parameters, starts[: settings.starts], training, validation, settings
        )
    plain = None
    if parameters.extras:
        standard = standard_starts(competitors, scores)
        # below denoise 1 none may begin where the teacher does
        start = standard[0] if standard else replace(best, error=math.inf)
        both = training, validating
        plain = learn_steps_alone(objective, parameters, start, both, settings, progress)
    lambdas = _add_extras(problem, settings, training, validation)
    training_calls = progress.calls - teacher_calls
    solver = validation.best.student
    report = Report(
        start=best.name,
        extras=[extra.value for extra in solver.extras],
        initial_sigmas=first.student.sigmas.tolist(),
        sigmas=solver.sigmas.tolist(),
        eval_sigmas=(
            solver.table.eval_sigmas.tolist() if Extra.DECOUPLED_TIMES in solver.extras else []
        ),
        lambdas=lambdas if Extra.D_ODE in solver.extras else [],
        steps_sigmas=plain.sigmas.tolist() if plain else [],
        baselines=baselines,
        history=list(validation.history),
        teacher_calls=teacher_calls,
        training_calls=training_calls,
    )
    test = sets.teach("test")
    choice = Chosen(solver, validation.best.error, len(validating))
    report = measured_report(objective, problem, choice, test, report, progress)
    if report.chosen != "learned":
        solver = competitors.baselines[report.chosen]
    report_calls = progress.calls - teacher_calls - training_calls
    learned = Learned(solver, replace(report, report_calls=report_calls))
    progress.show(learned.report)
    if others:
        samples = training, validating, test
        prepared = Prepared(problem, settings, others, objective, surrogate, *samples, progress)
        values = LearnedParameters(parameters.all, validation.best.theta)
        learned = learned._replace(others=learn_other_steps(prepared, values, learned))
    progress.stage("done")
    return learned


@dataclass(frozen=True)
class _Sets:
    """The noises of the three sets, which the teacher samples when they are needed."""

    problem: TrainingProblem
    settings: TrainingSettings
    noise: Tensor
    latent: Tensor
    store: Targets | None
    progress: ProgressReporter
    shared: bool = True  # students' first calls are the teacher's

    def teach(self, name: str) -> TeacherSamples:
        """The teacher's samples of a set."""
        names = ("training", "validation", "test")
        sizes = [getattr(self.settings, f"{name}_noises") for name in names]
        i = names.index(name)
        noise, latent = self.noise.split(sizes)[i], self.latent.split(sizes)[i]
        before_batch = partial(self.progress.stage, f"teacher: {name} noises")
        model, teacher = self.problem.model, self.problem.teacher
        samples = sample_teacher(model, teacher, noise, latent, self.store, before_batch)
        return samples if self.shared else replace(samples, first_output=None)


def _first_call_repeats(model: Model, training: TeacherSamples, competitors: Competitors) -> bool:
    """Whether a student's first output is the teacher's; one call.

    It is not where a patch of the model reads the noise levels of the whole schedule.
    """
    levels, steps = competitors.parameters.levels, competitors.parameters.steps
    one = next(training[:1].batches(model))
    assert one.first_output is not None
    sigmas = levels.sigmas(levels.even(steps))
    x = model.start(sigmas, one.noise, one.latent)
    output = model(x, x.new_full((1,), float(sigmas[0])))
    # of the samples' size: a first output can be the data's mean, and nearly 0
    largest = float(training.target.abs().max())
    return float((output - one.first_output).abs().max()) <= REPEAT_TOLERANCE * largest


def _surrogate(problem: TrainingProblem, training: TeacherSamples) -> TrajectorySurrogate:
    known = training[:TRAJECTORIES]
    return TrajectorySurrogate(
        known.trajectories(problem.model.coordinate), subsample(known.target)
    )


def _objective(
    unscaled: Objective, scores: dict[str, Tensor], training: TeacherSamples, own_teacher: bool
) -> Objective:
    """The objective whose distance has the scale of the best baseline's median score."""
    # a state is not an image yet: trajectories are matched for latent distances only. Those of a
    # CFG++ sampler with other steps are others, and those of another model may be
    latent = unscaled.distance.name in LATENT_DISTANCES
    one_output = training.table is not None and training.table.outputs == 1
    matched = latent and one_output and own_teacher
    medians = [float(score.median()) for score in scores.values()]
    scale = min((m for m in medians if math.isfinite(m)), default=float(training.target.std()))
    return replace(
        unscaled,
        distance=replace(unscaled.distance, scale=max(scale, 1e-6)),
        data_std=float(training.target.std()) if matched else None,
    )


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
