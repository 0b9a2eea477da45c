"""Divide a number of model calls among teacher, search and report.

A third of the calls goes to the teacher's samples, of which a fifth serves the report; the rest to
rankings and Gauss-Newton. Where that is too little, for students with many calls, the sets are
smaller. Few calls are best spent on one descent with few noises per iteration, many on several
descents with more (docs/benchmarks.md, "Cost").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .settings import TrainingSettings

QUALITIES = {"fast": 900, "normal": 2_500, "best": 25_000}
"""Model calls in all, for up to 6 steps."""
TEACHER_SHARE = 1 / 3
LEAST_TRAINING, LEAST_OTHERS = 6, 4  # noises
DESCENTS = ((6, 20), (3, 16), (3, 12), (2, 8), (2, 6), (1, 6), (1, 4), (1, 3), (1, 2), (1, 1))
"""(descents, iterations), the most first."""
LEAST_NOISES = 4  # per iteration
ENOUGH_ITERATIONS = 4  # with fewer, smaller sets are the better use of the calls
SMALLER = 0.6


def calls_of(quality: str, steps: int) -> int:
    """The calls of a quality; more than 6 steps need more, since each has more to learn."""
    return QUALITIES[quality] * max(steps, 6) // 6


def within(
    calls: int,
    settings: TrainingSettings,
    teacher_calls: int,
    planned_calls: Callable[[TrainingSettings], int],
) -> TrainingSettings:
    """Settings whose training makes at most that many model calls, teacher and report included.

    Args:
        teacher_calls: of one sampling of the teacher.
        planned_calls: of a whole training with given settings.

    Raises:
        ValueError: not even the smallest sets and one iteration fit.
    """

    def planned(sets: TrainingSettings, form: tuple[int, int], noises: int) -> TrainingSettings:
        constants = replace(settings.gauss_newton, noises=noises)
        return replace(sets, descents=form[0], iterations=form[1], gauss_newton=constants)

    noises = int(TEACHER_SHARE * calls / teacher_calls)
    while True:
        sets = _sets(settings, noises)
        smallest = sets.noises == LEAST_TRAINING + 2 * LEAST_OTHERS
        for form in DESCENTS:
            if form[1] < ENOUGH_ITERATIONS and not smallest:
                break
            least = min(LEAST_NOISES if form[1] > 1 else 1, sets.training_noises)
            once, twice = (planned_calls(planned(sets, form, k)) for k in (1, 2))
            affordable = 1 + (calls - once) // (twice - once)
            if affordable >= least:
                return planned(sets, form, min(affordable, sets.training_noises))
        if smallest:
            break
        noises = int(SMALLER * noises)
    fewer = "steps, also_steps" if settings.also_steps else "steps"
    raise ValueError(
        f"a budget of {calls} model calls is too small: the smallest training samples the teacher "
        f"{sets.noises} times with {teacher_calls} calls each and makes {once} calls in all: "
        "choose more minutes where they are set, or else a higher quality; or use fewer "
        f"{fewer}, or fewer teacher_steps (or sigmas of the teacher)"
    )


def _sets(settings: TrainingSettings, noises: int) -> TrainingSettings:
    """The settings with about that many noises in all."""
    others = max(LEAST_OTHERS, noises // 5)
    training = max(LEAST_TRAINING, noises - 2 * others)
    return replace(settings, training_noises=training, validation_noises=others, test_noises=others)
