"""What a training learns and from how much, and what that will cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .dode import TEACHER_STEPS
from .gauss_newton import GaussNewtonSettings
from .gradient import GradientSettings
from .screening import CANDIDATES, SCREENING_NOISES, STANDARD, STARTS

ITERATIONS_A_VALIDATION = 3  # validation noises are many; iterations in a row are alike


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn, and what from.

    Attributes:
        steps: N of the student.
        decoupled: learn decoupled times too, after the steps.
        order: with decoupled times, how far back corrections of the sampler's coefficients reach.
        output_mix: mix the outputs of all calls in closed form, at last.
        dode: fit D-ODE's lambdas to the steps.
        training_noises, validation_noises, test_noises: sizes of the sets. The first makes steps,
            the second chooses the schedule, the third is only reported.
        iterations: Gauss-Newton iterations of the best start (the others get a third of them);
            extras take a third more again.
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
    def extra_iterations(self) -> int:
        """Gauss-Newton iterations after those of the steps alone."""
        return self.iterations + self.iterations // 3


def planned_calls(s: TrainingSettings, calls: int, teacher_calls: int, competitors: int) -> int:
    """About how many model calls a whole training makes.

    Args:
        calls, teacher_calls: of one sample, by student and teacher.
        competitors: how many standard schedules there are.
    """
    validation = s.validation_noises * calls
    if s.gradient:
        learning = s.gradient.planned_calls(s, calls, validation)
    else:
        heat = max(1, s.iterations // 3)
        steps = s.gauss_newton.noises * calls * (s.steps + 1) // 2
        left = s.iterations - heat
        learning = (STARTS * heat + left) * steps
        learning += validation * (STARTS + math.ceil(left / ITERATIONS_A_VALIDATION))
        if s.decoupled or s.order:
            extras = s.gauss_newton.noises * calls * (calls - 1) // 2
            extras *= int(s.decoupled) + s.order
            learning += s.extra_iterations * (steps + extras)
            learning += validation * math.ceil(s.extra_iterations / ITERATIONS_A_VALIDATION)
    if s.dode:
        per_noise = TEACHER_STEPS * s.steps + 2 * calls
        learning += (s.training_noises + s.validation_noises) * per_noise
    if s.output_mix:
        learning += s.training_noises * calls + validation
    return (
        s.noises * teacher_calls
        + calls * SCREENING_NOISES * (min(competitors, STANDARD) + CANDIDATES)
        + validation * (STARTS + 2)
        + learning
        + s.test_noises * calls * (competitors + 3)
    )
