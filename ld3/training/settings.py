"""What a training learns, and from how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .gauss_newton import GaussNewtonSettings
from .gradient import GradientSettings

ITERATIONS_A_VALIDATION = 4  # validation noises are many; iterations in a row are alike


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
