"""Learn a schedule: teacher, screening, descent, selection, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..metrics import Distance, rmse
from ..model import Model
from ..parameters import StepParameters
from ..solver import Sampler, SolverTable
from ..teacher import Pairs, TargetStore, student_samples, teach
from .gauss_newton import GaussNewton, GaussNewtonSettings
from .initial import TrajectorySurrogate, few_elements, surrogate_starts

logger = logging.getLogger(__name__)

STARTS = 3  # schedules that get a descent of their own: basins differ more than optimisers do
TRAJECTORIES = 8  # teacher rollouts the surrogate is read off
CANDIDATES = 12  # schedules found on them that the real model screens
DIFFERENT = 0.3  # in u: starts nearer to each other share a basin
SCREENING_NOISES = 16  # of the validation noises; they rank starts and standard schedules


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn from.

    Attributes:
        steps: N of the student.
        training_noises, validation_noises, test_noises: sizes of the sets. The first makes steps,
            the second chooses the schedule, the third is only reported.
        iterations: Gauss-Newton iterations of the best start (the others get a third of them).
        distance: one of `ld3.metrics.DISTANCES`.
        batch_size: samples a network call.
        seed: of noises' order and of the search for starts.
    """

    steps: int
    training_noises: int = 32
    validation_noises: int = 16
    test_noises: int = 64
    iterations: int = 12
    distance: str = "pseudo-huber"
    batch_size: int = 4
    seed: int = 0
    gauss_newton: GaussNewtonSettings = GaussNewtonSettings()

    @property
    def noises(self) -> int:
        """How many noises the three sets need together."""
        return self.training_noises + self.validation_noises + self.test_noises


@dataclass
class Report:
    """What happened, all plain numbers (it is saved with the schedule).

    Attributes:
        history: one entry an iteration: start name, model calls so far, validation error.
        baselines: scheduler -> {sigmas, model_calls, counted, screening_error, heldout_error}; the
            best by screening also has its validation_error.
        heldout_error: mean RMSE to the teacher on the test noises, of the schedule returned.
        initial_error: the same for the schedule the descent began with.
        chosen: "learned", or the name of the standard schedule that won on validation.
        teacher_calls, training_calls, report_calls: model calls spent on targets, on learning, and
            on measuring the test noises.
    """

    start: str = ""
    chosen: str = "learned"
    heldout_error: float = math.nan
    initial_error: float = math.nan
    initial_sigmas: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    teacher_calls: int = 0
    training_calls: int = 0
    report_calls: int = 0

    def best_baseline(self, key: str = "heldout_error") -> str | None:
        """The standard schedule with the least error at no more model calls than the student."""
        fair = {n: b[key] for n, b in self.baselines.items() if b["counted"] and key in b}
        return min(fair, key=lambda n: fair[n]) if fair else None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """Handed to the watcher: what goes on, model calls done and planned, and the report."""

    stage: str
    calls: int
    planned_calls: int
    report: Report


Watcher = Callable[[Progress], None]


class ScheduleTraining:
    """One learning run.

    Args:
        model: the student's and the teacher's network.
        student: the sampler to learn for.
        teacher_table, teacher_sigmas: the many-step reference.
        baselines: name -> sigmas of standard schedules; each is a competitor, and a start where it
            fits.
        settings: sizes and constants.
        start_sigma: first level of the learned schedule.
        end_sigma: last level; 0 unless the schedule is the first part of a split sampling.
        watch: told about progress after every batch of work.
        store: where the teacher's targets are kept for the next training.

    Raises:
        ValueError: too few or too many steps, or a teacher of no more steps than the student.
    """

    def __init__(
        self,
        model: Model,
        student: Sampler,
        teacher_table: SolverTable,
        teacher_sigmas: Tensor,
        baselines: dict[str, Tensor],
        settings: TrainingSettings,
        start_sigma: float,
        end_sigma: float = 0.0,
        watch: Watcher = lambda progress: None,
        store: TargetStore | None = None,
    ) -> None:
        self.store = store
        self.model, self.student, self.settings, self.watch = model, student, settings, watch
        self.teacher_table, self.teacher_sigmas = teacher_table, teacher_sigmas
        self.parameters = StepParameters(model.coordinate, start_sigma, model.sigma_min, end_sigma)
        steps = settings.steps
        if steps < 2:
            raise ValueError(
                f"steps is {steps}; a schedule of 1 step has no noise level to learn: use 2 or more"
            )
        if not self.parameters.room_for(steps):
            raise ValueError(
                f"steps is {steps}; between sigma {start_sigma:.4g} and "
                f"{self.parameters.floor:.4g} so many noise levels cannot be told apart: use "
                "fewer steps"
            )
        if len(teacher_sigmas) - 1 <= steps:
            raise ValueError(
                f"teacher steps are {len(teacher_sigmas) - 1}, student steps {steps}; the teacher "
                "must take more steps than the student (20 is typical)"
            )
        self.report = Report()
        self.baselines = self._tables(baselines)
        # one table tells the student's model calls; any schedule has as many
        u = torch.linspace(*self.parameters.bounds(), steps + 1, dtype=torch.float64)[1:-1]
        self.student_calls = self.table_of(
            self.parameters.sigmas(self.parameters.separated(u))
        ).model_calls
        for name, (sigmas, table) in self.baselines.items():
            self.report.baselines[name] = {
                "sigmas": sigmas.tolist(),
                "model_calls": table.model_calls,
                "counted": table.model_calls <= self.student_calls,
            }

    def table_of(self, sigmas: Tensor) -> SolverTable:
        """The student's table at a schedule."""
        return self.student.table(sigmas)

    def run(self, noise: Tensor, latent: Tensor) -> tuple[Tensor, Report]:
        """Learn from noises (settings.noises, *latent): sigmas (N+1,) float32 and the report."""
        s = self.settings
        ends = [0, s.training_noises, s.training_noises + s.validation_noises, s.noises]
        training, validation, test = (
            self._teach(noise[a:b], latent[a:b], name)
            for a, b, name in zip(ends, ends[1:], ("training", "validation", "test"), strict=False)
        )
        self.report.teacher_calls = self.model.calls
        self.distance = self._scaled_distance(validation)
        u, validation_error = self._learn(training, validation)
        sigmas = self._select(self.parameters.sigmas(u), validation_error)
        self.report.training_calls = self.model.calls - self.report.teacher_calls
        self.report.sigmas = sigmas.tolist()
        self._measure(sigmas, test)
        return sigmas, self.report

    def _tables(self, schedules: dict[str, Tensor]) -> dict[str, tuple[Tensor, SolverTable]]:
        tables = {}
        for name, sigmas in schedules.items():
            try:
                tables[name] = (sigmas, self.table_of(sigmas))
            except Exception as error:  # some samplers fail on some schedules
                logger.info("LD3: the standard schedule %s cannot be run: %s", name, error)
        return tables

    def _teach(self, noise: Tensor, latent: Tensor, name: str) -> Pairs:
        size, pairs = self.settings.batch_size, []
        for i in range(0, len(noise), size):
            self._tell(f"teacher: {name} noises")
            batch = noise[i : i + size], latent[i : i + size]
            pairs.append(
                teach(self.model, self.teacher_table, self.teacher_sigmas, *batch, self.store)
            )
        return Pairs(
            *(torch.cat([getattr(p, f) for p in pairs]) for f in ("noise", "latent", "target"))
        )

    def _scaled_distance(self, validation: Pairs) -> Distance:
        """The distance, its scale the median error of the first standard schedule that works."""
        for sigmas, _ in self.baselines.values():
            deviation = float(self._residuals(sigmas, validation, rmse).median())
            if math.isfinite(deviation):
                return Distance(self.settings.distance, max(deviation, 1e-6))
        return Distance(self.settings.distance, float(validation.target.std()))

    def _learn(self, training: Pairs, validation: Pairs) -> tuple[Tensor, float]:
        """Screen starts, descend from three, go on with the best: (u, validation error)."""
        s = self.settings
        starts = self._screened_starts(training, validation)
        if not math.isfinite(starts[0][0]):
            raise ValueError(
                "every schedule of so few steps ends in infinite or undefined values with this "
                "sampler; use more steps or another sampler"
            )
        self.report.start = starts[0][1]
        self.report.initial_sigmas = self.parameters.sigmas(starts[0][2]).tolist()
        best_error, _, best_u = starts[0]
        order = torch.Generator().manual_seed(s.seed)
        descents = [
            (name, GaussNewton(self.parameters, u, s.iterations, s.gauss_newton))
            for _, name, u in starts
        ]
        reached: dict[str, float] = {name: error for error, name, _ in starts}
        heat = max(1, s.iterations // 3)
        for iteration in range(s.iterations):
            if iteration == heat:
                descents = [min(descents, key=lambda d: reached[d[0]])]
            for name, descent in descents:
                chosen = torch.randperm(len(training), generator=order)[: s.gauss_newton.noises]
                u = descent.step(
                    self.model, self.table_of, training[chosen], self.distance, s.batch_size
                )
                error = self._error(self.parameters.sigmas(u), validation)
                self.report.history.append(
                    {"start": name, "calls": self.model.calls, "error": error}
                )
                reached[name] = min(reached[name], error)
                if error < best_error:
                    best_error, best_u = error, u
                    self.report.sigmas = self.parameters.sigmas(u).tolist()
                self._tell(f"learning: iteration {iteration + 1} of {s.iterations}")
        return best_u, best_error

    def _screened_starts(
        self, training: Pairs, validation: Pairs
    ) -> list[tuple[float, str, Tensor]]:
        """The best starts that differ, as (validation error, name, u), best first."""
        few = validation[:SCREENING_NOISES]
        scored: list[tuple[float, str, Tensor]] = []
        for name, (sigmas, table) in self.baselines.items():
            self._tell(f"screening: {name}")
            error = self._error(sigmas, few)
            self.report.baselines[name]["screening_error"] = error
            if len(sigmas) == self.settings.steps + 1 and table.model_calls == self.student_calls:
                scored.append((error, name, self.parameters.from_sigmas(sigmas)))
        best = self.report.best_baseline("screening_error")
        if best is not None:
            error = self._error(self.baselines[best][0], validation)
            self.report.baselines[best]["validation_error"] = error
        for i, u in enumerate(self._surrogate_starts(training)):
            self._tell("screening: starts from the teacher's trajectory")
            error = self._error(self.parameters.sigmas(u), few)
            scored.append((error, f"trajectory {i + 1}", u))
        kept: list[tuple[float, str, Tensor]] = []
        for candidate in sorted(scored, key=lambda c: c[0]):
            if all(float((candidate[2] - k[2]).abs().max()) > DIFFERENT for k in kept):
                kept.append(candidate)
        errors = [self._error(self.parameters.sigmas(u), validation) for _, _, u in kept[:STARTS]]
        starts = [(e, name, u) for e, (_, name, u) in zip(errors, kept, strict=False)]
        return sorted(starts, key=lambda c: c[0])

    def _surrogate_starts(self, training: Pairs) -> list[Tensor]:
        batches = training[:TRAJECTORIES].batches(self.settings.batch_size, self.model.device)
        rollouts = []
        for batch in batches:
            result, history = student_samples(
                self.model, self.teacher_table, self.teacher_sigmas, batch
            )
            # a video's whole trajectories would not fit beside the model
            rollouts.append([few_elements(state) for state in (result, *history)])
        result, *history = (torch.cat(states) for states in zip(*rollouts, strict=True))
        surrogate = TrajectorySurrogate(self.teacher_table, history, result, self.model.coordinate)
        found = surrogate_starts(
            surrogate,
            self.table_of,
            self.parameters,
            self.settings.steps,
            self.settings.seed,
            lambda: self._tell("searching starts on the teacher's trajectory"),
        )
        return found[:CANDIDATES]

    def _error(self, sigmas: Tensor, pairs: Pairs) -> float:
        """Mean distance of a schedule's samples to the teacher's; infinite if any is not finite."""
        value = float(self._residuals(sigmas, pairs, self.distance.value).mean())
        return value if math.isfinite(value) else math.inf

    def _residuals(
        self, sigmas: Tensor, pairs: Pairs, measure: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`measure` of each sample's difference to its teacher: (n,)."""
        table = self.table_of(sigmas)
        return torch.cat(
            [
                measure(student_samples(self.model, table, sigmas, batch)[0] - batch.target).cpu()
                for batch in pairs.batches(self.settings.batch_size, self.model.device)
            ]
        )

    def _select(self, learned: Tensor, validation_error: float) -> Tensor:
        best = self.report.best_baseline("validation_error")
        if best is None or self.report.baselines[best]["validation_error"] > validation_error:
            return learned
        self.report.chosen = best
        return self.baselines[best][0]

    def _measure(self, sigmas: Tensor, test: Pairs) -> None:
        before = self.model.calls
        self._tell("measuring the learned schedule")
        self.report.heldout_error = self._heldout(sigmas, test)
        self.report.initial_error = self._heldout(torch.tensor(self.report.initial_sigmas), test)
        for name, (baseline, _) in self.baselines.items():
            self._tell(f"measuring {name}")
            self.report.baselines[name]["heldout_error"] = self._heldout(baseline, test)
        self.report.report_calls = self.model.calls - before
        self._tell("done")

    def _heldout(self, sigmas: Tensor, test: Pairs) -> float:
        return float(self._residuals(sigmas, test, rmse).mean())

    def _tell(self, stage: str) -> None:
        self.watch(
            Progress(
                stage, self.model.calls, max(self.planned_calls, self.model.calls), self.report
            )
        )

    @property
    def planned_calls(self) -> int:
        """About how many model calls the whole run makes."""
        s, calls = self.settings, self.student_calls
        iterations = s.iterations + (STARTS - 1) * max(1, s.iterations // 3)
        iteration = s.gauss_newton.noises * calls * (s.steps + 1) // 2 + s.validation_noises * calls
        competitors = len(self.baselines)
        return (
            s.noises * self.teacher_table.model_calls
            + calls * SCREENING_NOISES * (competitors + CANDIDATES)
            + calls * s.validation_noises * (STARTS + 2)
            + iterations * iteration
            + s.test_noises * calls * (competitors + 2)
        )
