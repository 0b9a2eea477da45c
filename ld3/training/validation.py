"""Judge students by their distance to the teacher's samples, and keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics import Distance, rmse
from ..model import Model
from ..table import Discretization
from ..teacher import TeacherSamples
from .report import ProgressReporter, ValidationEntry, finite

OnPair = Callable[[Tensor, Tensor], None]
"""Receives a teacher's and a student's sample of one noise, each (1, *latent)."""


class Measure(NamedTuple):
    """What is measured of samples and their targets, each (n, *latent): (n, ..)."""

    name: str
    of: Callable[[Tensor, Tensor], Tensor]


RMSE = Measure("rmse", lambda x, target: rmse(x - target))


@dataclass(frozen=True)
class Objective:
    """How students are run and judged.

    With `data_std`, the standard deviation of the teacher's samples, descents also match states to
    the teacher's trajectory (`trajectory_matching`).
    """

    model: Model
    distance: Distance
    data_std: float | None = None

    def scores(
        self, student: Discretization, samples: TeacherSamples, on_pair: OnPair | None = None
    ) -> Tensor:
        """Score of each sample, see `Distance.score`: (n,) on the CPU; on_pair as in `errors`."""
        measure = Measure(f"score {self.distance.identity}", self.distance.score)
        return errors(self.model, student, samples, measure, on_pair)

    def error(
        self, student: Discretization, samples: TeacherSamples, on_pair: OnPair | None = None
    ) -> float:
        """Mean score; infinite if any sample is not finite."""
        return mean_score(self.scores(student, samples, on_pair))


def mean_score(scores: Tensor) -> float:
    """Of scores (n,); infinite if any is not finite."""
    value = float(scores.mean())
    return value if math.isfinite(value) else math.inf


def errors(
    model: Model,
    student: Discretization,
    samples: TeacherSamples,
    measure: Measure = RMSE,
    on_pair: OnPair | None = None,
) -> Tensor:
    """What is measured of the student's samples of all noises: (n, ..) on the CPU.

    Args:
        on_pair: receives the teacher's and the student's sample of the first noise, where the
            model is called for it.
    """

    def measured() -> tuple[Tensor]:
        shown = []

        def of(batch: TeacherSamples) -> Tensor:
            sample = batch.student(model, student)[0]
            if on_pair is not None and not shown:
                shown.append(True)
                on_pair(batch.target[:1].cpu(), sample[:1].cpu())
            return measure.of(sample, batch.target).cpu()

        return (torch.cat(list(samples.by_batch(model, of))),)

    return model.answer([measure.name, *student.identity, *samples.identity], measured)[0]


def may_lose(noises: int) -> float:
    """How many times the least error on that many noises a student that descended may have.

    A start, the best of several on these noises, looks better there than it is, the more so the
    fewer they are. Measured: docs/benchmarks.md, "Cost".
    """
    return 1 + 0.5 * min(1.0, math.sqrt(8 / noises))


@dataclass(frozen=True)
class ValidatedStudent:
    """A student and its error on the validation noises."""

    student: Discretization
    theta: Tensor  # from which a descent can continue: its parameters without closed-form extras
    error: float


class Validation:
    """The best student so far, and the history of all validations.

    Args:
        samples: noises that are not learned from.
        progress: receives every validation.
        name, first: the first student, already run on these noises.
    """

    def __init__(
        self,
        objective: Objective,
        samples: TeacherSamples,
        progress: ProgressReporter,
        name: str,
        first: ValidatedStudent,
    ) -> None:
        self.objective, self.samples, self.progress = objective, samples, progress
        self.history: list[ValidationEntry] = []
        self._least = math.inf
        self._record(name, first.error)
        # whatever its error: if it is infinite on these noises, others may do better
        self.accept(first)

    def consider(
        self, name: str, student: Discretization, theta: Tensor, descended: bool = False
    ) -> float:
        """Validate a student and accept it if it is better than the best; returns its error.

        Args:
            name: of the start of its descent, or of what was added to the best.
            descended: whether it was learned from other noises than these, which the starts were
                chosen on: accepted unless its error is `may_lose` times the least.
        """
        pair = list[tuple[Tensor, Tensor]]()
        error = self.objective.error(student, self.samples, lambda *both: pair.append(both))
        self._record(name, error)
        if error < (may_lose(len(self.samples)) * self._least if descended else self.best.error):
            self.progress.pair = pair[0] if pair else None
            self.accept(ValidatedStudent(student, theta, error))
        return error

    def accept(self, student: ValidatedStudent) -> None:
        """Make a student the best."""
        self.best = student
        self._least = min(self._least, student.error)
        self.progress.best = student.student
        self.progress.know(sigmas=student.student.sigmas.tolist())

    def _record(self, name: str, error: float) -> None:
        self.history.append(ValidationEntry(name, self.progress.calls, finite(error)))
        self.progress.know(history=list(self.history))
