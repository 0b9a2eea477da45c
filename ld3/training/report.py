"""What a training tells: while it runs, and about its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What happened, all plain numbers (it is saved with the schedule).

    Attributes:
        start: name of the best schedule before any descent.
        chosen: "learned", or the name of the standard schedule that won on validation.
        heldout_error: mean RMSE to the teacher on the test noises, of the schedule returned.
        initial_error: the same for the best schedule before any descent.
        training_error: of the schedule returned on the noises it was learned from; far below
            heldout_error it has learned those by heart.
        spread: mean distance between the student's test samples, relative to the teacher's; well
            below 1 the student makes everything alike.
        extras: what was learned besides steps: "decoupled times", "solver corrections", "D-ODE",
            "output mix".
        initial_sigmas, sigmas: the schedules before and after.
        eval_sigmas: where the network is asked, call by call; empty without decoupled times.
        lambdas: of D-ODE, call by call; empty without.
        baselines: scheduler -> {sigmas, model_calls, counted, screening_error, heldout_error}; the
            best by screening also has its validation_error.
        history: one entry a validation: start name, model calls so far, validation error.
        teacher_calls, training_calls, report_calls: model calls spent on targets, on learning, and
            on measuring the result.
    """

    start: str = ""
    chosen: str = "learned"
    heldout_error: float = math.nan
    initial_error: float = math.nan
    training_error: float = math.nan
    spread: float = math.nan
    extras: list[str] = field(default_factory=list)
    initial_sigmas: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    eval_sigmas: list[float] = field(default_factory=list)
    lambdas: list[float] = field(default_factory=list)
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
