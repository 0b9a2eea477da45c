"""Measure plans on noises, and keep the best by validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metrics import Distance
from ..model import Model
from ..solver import Plan
from ..student import Student
from ..teacher import Pairs, student_samples
from .report import Report


def errors(
    model: Model,
    plan: Plan,
    pairs: Pairs,
    measure: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> Tensor:
    """`measure(samples, targets)` of what a plan makes of each noise: (n,) on the CPU."""
    return torch.cat(
        [
            measure(student_samples(model, plan, batch)[0], batch.target).cpu()
            for batch in pairs.batches(batch_size, model.device)
        ]
    )


@dataclass
class Selection:
    """The best student so far, judged on validation noises.

    Attributes:
        validation: noises that make no step.
        distance: by which all are judged.
        report: told of every validation.
        tell: called with a line about what goes on; may raise an interrupt.
        best_error, best_student, best_theta: the winner.
    """

    model: Model
    validation: Pairs
    distance: Distance
    batch_size: int
    report: Report
    tell: Callable[[str], None]
    best_error: float = field(default=math.inf, init=False)
    best_student: Student = field(init=False)
    best_theta: Tensor = field(init=False)

    def error(self, plan: Plan, pairs: Pairs | None = None) -> float:
        """Mean distance to the teacher; infinite if any sample is not finite."""
        found = errors(
            self.model,
            plan,
            self.validation if pairs is None else pairs,
            self.distance.between,
            self.batch_size,
        )
        value = float(found.mean())
        return value if math.isfinite(value) else math.inf

    def offer(self, name: str, student: Student, theta: Tensor) -> float:
        """Validate theta, note it in the report, and keep it if it is the best."""
        plan = student.plan(theta)
        error = self.error(plan)
        self.report.history.append({"start": name, "calls": self.model.calls, "error": error})
        if error < self.best_error:
            self.keep(error, student, theta)
        return error

    def keep(self, error: float, student: Student, theta: Tensor) -> None:
        """Make theta the best."""
        self.best_error, self.best_student, self.best_theta = error, student, theta
        plan = student.plan(theta)
        self.report.sigmas = plan.sigmas.tolist()
        self.report.eval_sigmas = plan.table.eval_sigmas.tolist() if student.decoupled else []
