"""What a training learns and from how much, and what that will cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .dode import TEACHER_STEPS
from .gauss_newton import GaussNewtonSettings
from .gradient import GradientSettings
from .screening import CANDIDATES, SCREENING_NOISES, STANDARD, TRAJECTORIES

ITERATIONS_A_VALIDATION = 3  # validation noises are many; iterations in a row are alike


class Round(NamedTuple):
    """So many descents side by side make so many iterations of so many noises each."""

    descents: int
    iterations: int
    noises: int


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn, and what from.

    Attributes:
        steps: N of the student.
        decoupled: learn decoupled times together with the steps (by gradient: after them).
        order: how far back learned corrections of the sampler's coefficients reach; 0 for none.
        output_mix: mix the outputs of all calls in closed form, at last.
        dode: fit D-ODE's lambdas to the steps.
        training_noises, validation_noises, test_noises: sizes of the sets. The first makes steps,
            the second chooses the schedule, the third is only reported.
        iterations: Gauss-Newton iterations, see `rounds`.
        distance: one of `ld3.metrics.DISTANCES`.
        batch_size: samples a network call.
        seed: of noises' order and of the search for starts.
        gradient: descend by reverse mode, with these settings, instead of Gauss-Newton.
    """

    steps: int
    decoupled: bool = False
    order: int = 0
    output_mix: bool = False
    dode: bool = False
    training_noises: int = 32
    validation_noises: int = 16
    test_noises: int = 64
    iterations: int = 10
    distance: str = "pseudo-huber"
    batch_size: int = 4
    seed: int = 0
    gauss_newton: GaussNewtonSettings = GaussNewtonSettings()
    gradient: GradientSettings | None = None

    @property
    def noises(self) -> int:
        """How many noises the three sets need together."""
        return self.training_noises + self.validation_noises + self.test_noises

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Gauss-Newton's rounds of successive halving.

        Steps alone: `iterations` for the best of three. With extras basins differ more, so six
        descend, and the best makes about 1.6 times as many.
        """
        noises, few = self.gauss_newton.noises, max(1, self.gauss_newton.noises // 2)
        if not (self.decoupled or self.order):
            heat = max(1, self.iterations // 3)
            return Round(3, heat, noises), Round(1, self.iterations - heat, noises)
        heat = max(1, round(0.4 * self.iterations))
        return Round(6, heat, few), Round(2, heat, noises), Round(1, 2 * heat, noises)

    @property
    def starts(self) -> int:
        """How many schedules get a descent of their own."""
        return 1 if self.gradient else self.rounds[0].descents


def planned_calls(s: TrainingSettings, calls: int, teacher_calls: int, competitors: int) -> int:
    """About how many model calls a whole training makes.

    Args:
        calls, teacher_calls: of one sample, by student and teacher.
        competitors: how many standard schedules there are.
    """
    validation, screening = s.validation_noises * calls, min(SCREENING_NOISES, s.validation_noises)
    if s.gradient:
        learning = s.gradient.planned_calls(s, calls, validation)
    else:
        learning = gauss_newton_calls(s, calls)
    if s.dode:
        per_noise = TEACHER_STEPS * s.steps + 2 * calls
        learning += (s.training_noises + s.validation_noises) * per_noise
    if s.output_mix:
        learning += s.training_noises * calls + validation
    return (
        s.noises * teacher_calls
        + min(TRAJECTORIES, s.training_noises) * teacher_calls
        + calls * screening * (min(competitors, STANDARD) + CANDIDATES)
        + 3 * validation
        + learning
        + s.test_noises * calls * (competitors + 3)
        + s.training_noises * calls
    )


def gauss_newton_calls(s: TrainingSettings, calls: int) -> int:
    """Model calls of all rounds, for a student of so many calls a sample."""
    a_noise = calls * (s.steps + 1) // 2 + int(s.decoupled) * calls * (calls - 1) // 2
    corrections = s.order * calls * (calls - 1) // 2
    rounds, total, few = s.rounds, 0, min(SCREENING_NOISES, s.validation_noises)
    for i, (descents, iterations, noises) in enumerate(rounds):
        noises = min(noises, s.training_noises)
        total += descents * iterations * noises * a_noise
        if descents == 1:
            total += iterations * noises * corrections
            total += math.ceil(iterations / ITERATIONS_A_VALIDATION) * s.validation_noises * calls
        else:
            last = rounds[i + 1].descents == 1
            judges = s.validation_noises if last else few
            total += descents * judges * calls
    return total
