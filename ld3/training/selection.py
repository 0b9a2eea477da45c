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
        best_error, best_plan: the winner.
        best_theta: where further learning starts.
    """

    model: Model
    validation: Pairs
    distance: Distance
    batch_size: int
    report: Report
    tell: Callable[[str], None]
    best_error: float = field(default=math.inf, init=False)
    best_plan: Plan = field(init=False)
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
        error = self._validated(name, student.plan(theta))
        if error < self.best_error:
            self.keep(error, student, theta)
        return error

    def offer_extra(self, name: str, plan: Plan) -> bool:
        """Validate a plan made from the best one; keep it and its name if it is better."""
        error = self._validated(name, plan)
        if error >= self.best_error:
            return False
        self.best_error = error
        self._keep_plan(plan)
        self.report.extras.append(name)
        return True

    def keep(self, error: float, student: Student, theta: Tensor) -> None:
        """Make theta the best."""
        self.best_error, self.best_theta = error, theta
        self.report.extras = student.extras
        self._keep_plan(student.plan(theta))

    def _validated(self, name: str, plan: Plan) -> float:
        error = self.error(plan)
        self.report.history.append({"start": name, "calls": self.model.calls, "error": error})
        return error

    def _keep_plan(self, plan: Plan) -> None:
        self.best_plan = plan
        decoupled = "decoupled times" in self.report.extras
        self.report.sigmas = plan.sigmas.tolist()
        self.report.eval_sigmas = plan.table.eval_sigmas.tolist() if decoupled else []
