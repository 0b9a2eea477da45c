"""What a training learns, and from how much data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .gauss_newton import GaussNewtonSettings
from .gradient.gradient_settings import GradientSettings

ITERATIONS_PER_VALIDATION = 4  # validation noises are many; successive iterations are similar


class Round(NamedTuple):
    """A number of descents, each making iterations of a number of noises."""

    descents: int
    iterations: int
    noises: int


@dataclass(frozen=True)
class TrainingSettings:
    """What to learn, and from how much data.

    Attributes:
        steps: N of the student.
        decoupled: learn decoupled times together with the steps (by gradient: after them).
        order: how many earlier outputs learned corrections of the sampler's coefficients use; 0 for
            no corrections.
        output_mix: finally mix the outputs of all calls in closed form.
        dode: fit D-ODE's lambdas to the steps.
        training_noises, validation_noises, test_noises: sizes of the sets. The first set is learned
            from, the second chooses among what was learned, on the third it competes with the best
            standard schedule.
        descents: how many starts a descent by Gauss-Newton begins with. (By gradient: with one.)
        iterations: of the best of them, see `rounds`.
        also_steps: further numbers of steps to learn, each for about `also_calls` model calls (for
            up to 6 steps; more for more).
        distance: one of `ld3.metrics.DISTANCES`.
        seed: of the order of noises and of the search for starts.
        gradient: descend by reverse mode, with these settings, instead of Gauss-Newton.
    """

    steps: int
    decoupled: bool = False
    order: int = 0
    output_mix: bool = False
    dode: bool = False
    training_noises: int = 16
    validation_noises: int = 8
    test_noises: int = 12
    descents: int = 3
    iterations: int = 12
    also_steps: tuple[int, ...] = ()
    also_calls: int = 300
    distance: str = "pseudo-huber"
    seed: int = 0
    gauss_newton: GaussNewtonSettings = GaussNewtonSettings()
    gradient: GradientSettings | None = None

    def check(self, teacher_steps: int) -> None:
        """Raise ValueError for steps that leave nothing to learn."""
        if self.steps < 2:
            raise ValueError(
                f"steps is {self.steps}; one step has no noise level to learn: use 2 or more"
            )
        if teacher_steps <= self.steps:
            raise ValueError(
                f"teacher_steps is {teacher_steps} and steps {self.steps}; the teacher must take "
                "more steps than the student (20 is typical)"
            )

    @property
    def noises(self) -> int:
        """Total size of the three sets."""
        return self.training_noises + self.validation_noises + self.test_noises

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Gauss-Newton's rounds of successive halving.

        All descents make a quarter of the iterations, of more than three the best two another
        quarter, and the best one the rest.
        """
        noises, quarter = self.gauss_newton.noises, max(1, self.iterations // 4)
        if self.descents == 1:
            return (Round(1, self.iterations, noises),)
        rounds = [Round(self.descents, quarter, noises)]
        if self.descents > 3:
            rounds.append(Round(2, quarter, noises))
        rest = max(1, self.iterations - quarter * len(rounds))
        return (*rounds, Round(1, rest, noises))

    @property
    def noises_per_iteration(self) -> int:
        """Of Gauss-Newton; no more than there are."""
        return min(self.gauss_newton.noises, self.training_noises)

    @property
    def validations(self) -> int:
        """How many students Gauss-Newton's rounds validate."""
        rounds = self.rounds
        last = -(-rounds[-1].iterations // ITERATIONS_PER_VALIDATION)
        return last + sum(planned.descents for planned in rounds[:-1])

    @property
    def starts(self) -> int:
        """Number of schedules a descent begins with."""
        return 1 if self.gradient else self.descents
