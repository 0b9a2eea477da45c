"""Learn a schedule: teacher, screening, descent, extras, choice, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics import LATENT_DISTANCES, Distance, rmse, spread
from ..model import Model
from ..parameters import StepParameters
from ..solver import Plan, Sampler, SolverTable
from ..student import Student
from ..teacher import Pairs, TargetStore, student_samples, teach
from ..trajectories import few_elements
from .dode import distill, with_lambdas
from .gradient import GradientSettings, descend_by_gradient
from .guide import Guide
from .halving import descend_by_gauss_newton
from .output_mix import output_mix
from .planning import planned_calls
from .report import Progress, Report, Watcher
from .screening import Start, screened_starts
from .selection import Selection, errors
from .settings import TrainingSettings

logger = logging.getLogger(__name__)
SPREAD_ELEMENTS = 4096  # of each sample, by which spreads are compared


class Learned(NamedTuple):
    """The result: sigmas (N+1,) float32, the table that samples with them, and the report."""

    sigmas: Tensor
    table: SolverTable
    report: Report


class ScheduleTraining:
    """One learning run.

    Args:
        model: the student's and the teacher's network.
        sampler: the sampler to learn for.
        teacher: the many-step reference.
        baselines: name -> sigmas of standard schedules; each is a competitor, and a start where it
            fits.
        settings: sizes and constants.
        start_sigma: first level of the learned schedule.
        end_sigma: last level; 0 unless the schedule is the first part of a split sampling.
        teacher_sampler: for D-ODE, whose teacher passes through the student's own states; by
            default the student's.
        watch: told about progress after every batch of work.
        store: where the teacher's targets are kept for the next training.
        image_features: for distances between images, see `ld3.metrics.Distance`.

    Raises:
        ValueError: too few or too many steps, or a teacher of no more steps than the student.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        teacher: Plan,
        baselines: dict[str, Tensor],
        settings: TrainingSettings,
        start_sigma: float,
        end_sigma: float = 0.0,
        teacher_sampler: Sampler | None = None,
        watch: Watcher = lambda progress: None,
        store: TargetStore | None = None,
        image_features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.sampler, self.teacher, self.settings = model, sampler, teacher, settings
        self.watch, self.store, self.image_features = watch, store, image_features
        self.teacher_sampler = teacher_sampler or sampler
        levels = StepParameters(model.coordinate, start_sigma, model.sigma_min, end_sigma)
        steps, teacher_steps = settings.steps, len(teacher.sigmas) - 1
        if steps < 2:
            raise ValueError(
                f"steps is {steps}; a schedule of 1 step has no noise level to learn: use 2 or more"
            )
        if not levels.room_for(steps):
            raise ValueError(
                f"steps is {steps}; between sigma {start_sigma:.4g} and "
                f"{levels.floor:.4g} so many noise levels cannot be told apart: use "
                "fewer steps"
            )
        if teacher_steps <= steps:
            raise ValueError(
                f"teacher steps are {teacher_steps}, student steps {steps}; the teacher "
                "must take more steps than the student (20 is typical)"
            )
        # one table tells the student's model calls; any schedule has as many
        u = levels.separated(torch.linspace(*levels.bounds(), steps + 1, dtype=torch.float64)[1:-1])
        calls = sampler.table(levels.sigmas(u)).model_calls
        self.student = Student(sampler, levels, model, steps, calls)
        self.report = Report()
        self.baselines = self._plans(baselines)
        self.planned = planned_calls(
            settings, calls, teacher.table.model_calls, len(self.baselines)
        )
        for name, plan in self.baselines.items():
            self.report.baselines[name] = {
                "sigmas": plan.sigmas.tolist(),
                "model_calls": plan.table.model_calls,
                "counted": plan.table.model_calls <= calls,
            }

    def run(self, noise: Tensor, latent: Tensor) -> Learned:
        """Learn from noises and latents, each (settings.noises, *latent)."""
        s = self.settings
        ends = [0, s.training_noises, s.training_noises + s.validation_noises, s.noises]
        training, validation, test = (
            self._teach(noise[a:b], latent[a:b], name)
            for a, b, name in zip(ends, ends[1:], ("training", "validation", "test"), strict=False)
        )
        self.report.teacher_calls = self.model.calls
        selection = Selection(
            self.model,
            validation,
            self._scaled_distance(validation),
            s.batch_size,
            self.report,
            self._tell,
        )
        self._learn(training, selection)
        plan = self._choose(selection)
        self.report.training_calls = self.model.calls - self.report.teacher_calls
        self._measure(plan, training, test)
        return Learned(*plan, self.report)

    def _plans(self, schedules: dict[str, Tensor]) -> dict[str, Plan]:
        plans = {}
        for name, sigmas in schedules.items():
            try:
                plans[name] = Plan(sigmas, self.sampler.table(sigmas))
            except Exception as error:  # some samplers fail on some schedules
                logger.info("LD3: the standard schedule %s cannot be run: %s", name, error)
        return plans

    def _teach(self, noise: Tensor, latent: Tensor, name: str) -> Pairs:
        size, pairs = self.settings.batch_size, []
        for i in range(0, len(noise), size):
            self._tell(f"teacher: {name} noises")
            batch = noise[i : i + size], latent[i : i + size]
            pairs.append(teach(self.model, self.teacher, *batch, self.store))
        return Pairs.joined(pairs)

    def _scaled_distance(self, validation: Pairs) -> Distance:
        """The distance, its scale the median error of the first standard schedule that works."""
        name, features = self.settings.distance, self.image_features
        unscaled = Distance(name, 1.0, features)

        def deviation(samples: Tensor, targets: Tensor) -> Tensor:
            return torch.cat(
                [
                    rmse(unscaled.features(samples[part]) - unscaled.features(targets[part]))
                    for part in unscaled.parts(len(samples))
                ]
            )

        for plan in self.baselines.values():
            found = errors(self.model, plan, validation, deviation, self.settings.batch_size)
            if math.isfinite(float(found.median())):
                return Distance(name, max(float(found.median()), 1e-6), features)
        return Distance(name, float(validation.target.std()), features)

    def _learn(self, training: Pairs, selection: Selection) -> None:
        """Leave the best plan in `selection`."""
        s = self.settings
        starts = screened_starts(
            self.student, self.baselines, self.teacher, training, selection, s.starts, s.seed
        )
        error, self.report.start, u = starts[0]
        if not math.isfinite(error):
            raise ValueError(
                "every schedule of so few steps ends in infinite or undefined values with this "
                "sampler; use more steps or another sampler"
            )
        theta = self.student.start(u)
        error = selection.offer(self.report.start, self.student, theta)
        if not math.isfinite(error):  # one of all the noises fails; others may do better
            selection.keep(error, self.student, theta)
        self.report.initial_sigmas = self.report.sigmas
        order = torch.Generator().manual_seed(s.seed)
        student = replace(self.student, decoupled=s.decoupled, order=s.order)
        if s.gradient:
            self._gradient(student, starts[0], training, selection, order, s.gradient)
        else:
            descend_by_gauss_newton(
                student, starts, training, selection, s, order, self._guide(training)
            )
        if s.dode:
            self._distill(training, selection)
        if s.output_mix:
            self._tell("mixing outputs")
            mixed = output_mix(
                self.model, selection.best_plan, training, selection.distance, s.batch_size
            )
            if mixed is not None:
                selection.offer_extra("output mix", mixed)

    def _guide(self, training: Pairs) -> Guide | None:
        """For latents; a state is no image yet."""
        if self.settings.distance not in LATENT_DISTANCES:
            return None
        deviation = float(training.target.std())
        return Guide(self.teacher.table, deviation, self.model.coordinate)

    def _distill(self, training: Pairs, selection: Selection) -> None:
        """Fit D-ODE's lambdas to the best plan."""
        size, plan = self.settings.batch_size, selection.best_plan
        found = distill(
            self.model, plan, self.teacher_sampler, training, selection.validation, size, self._tell
        )
        extended = Plan(plan.sigmas, with_lambdas(plan.table, found.lambdas))
        if found.lambdas.any() and selection.offer_extra("D-ODE", extended):
            self.report.lambdas = found.lambdas.tolist()

    def _gradient(
        self,
        student: Student,
        start: Start,
        training: Pairs,
        selection: Selection,
        order: torch.Generator,
        settings: GradientSettings,
    ) -> None:
        """Learn the steps, then the extras together with them."""
        _, name, u = start
        descend_by_gradient(
            self.student, self.student.start(u), training, selection, settings, order, name
        )
        if student.extras:
            theta, name = student.start(selection.best_theta), " and ".join(student.extras)
            descend_by_gradient(student, theta, training, selection, settings, order, name)

    def _choose(self, selection: Selection) -> Plan:
        """What was learned, or the standard schedule that did better on the validation noises."""
        best = self.report.best_baseline("validation_error")
        if best is None or selection.best_error < self.report.baselines[best]["validation_error"]:
            return selection.best_plan
        self.report.chosen = best
        self.report.extras, self.report.lambdas = [], []
        self.report.sigmas = self.baselines[best].sigmas.tolist()
        self.report.eval_sigmas = []
        return self.baselines[best]

    def _measure(self, plan: Plan, training: Pairs, test: Pairs) -> None:
        before, report = self.model.calls, self.report
        self._tell("measuring the learned schedule")
        report.heldout_error, report.spread = self._heldout(plan, test), self._spread(plan, test)
        report.training_error = self._heldout(plan, training)
        initial = torch.tensor(report.initial_sigmas)
        report.initial_error = self._heldout(Plan(initial, self.sampler.table(initial)), test)
        for name, baseline in self.baselines.items():
            self._tell(f"measuring {name}")
            report.baselines[name]["heldout_error"] = self._heldout(baseline, test)
        report.report_calls = self.model.calls - before
        self._tell("done")

    def _heldout(self, plan: Plan, test: Pairs) -> float:
        found = errors(self.model, plan, test, lambda x, y: rmse(x - y), self.settings.batch_size)
        return float(found.mean())

    def _spread(self, plan: Plan, test: Pairs) -> float:
        made = torch.cat(
            [
                few_elements(student_samples(self.model, plan, batch)[0], SPREAD_ELEMENTS)
                for batch in test.batches(self.settings.batch_size, self.model.device)
            ]
        )
        return spread(made) / max(spread(few_elements(test.target, SPREAD_ELEMENTS)), 1e-12)

    def _tell(self, stage: str) -> None:
        self.watch(
            Progress(stage, self.model.calls, max(self.planned, self.model.calls), self.report)
        )
