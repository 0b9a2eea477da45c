"""About how many model calls a training will make, for its progress bar."""

from __future__ import annotations

import math

from .dode import TEACHER_STEPS
from .gradient import CALLS_A_GRADIENT, GradientSettings, updates_a_validation
from .screening import CANDIDATES, SCREENING_NOISES, STANDARD
from .settings import ITERATIONS_A_VALIDATION, TrainingSettings


def planned_calls(s: TrainingSettings, calls: int, teacher_calls: int, competitors: int) -> int:
    """About how many model calls a whole training makes.

    Args:
        calls, teacher_calls: of one sample, by student and teacher.
        competitors: how many standard schedules there are.
    """
    validation, screening = s.validation_noises * calls, min(SCREENING_NOISES, s.validation_noises)
    if s.gradient:
        learning = _gradient_calls(s, s.gradient, calls, validation)
    else:
        learning = _gauss_newton_calls(s, calls)
    if s.dode:
        per_noise = TEACHER_STEPS * s.steps + 2 * calls
        learning += (s.training_noises + s.validation_noises) * per_noise
    if s.output_mix:
        learning += s.training_noises * calls + validation
    return (
        s.noises * teacher_calls
        + calls * screening * (min(competitors, STANDARD) + CANDIDATES)
        + 3 * validation
        + learning
        + s.test_noises * calls * (competitors + 3)
        + s.training_noises * calls
    )


def _gauss_newton_calls(s: TrainingSettings, calls: int) -> int:
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


def _gradient_calls(
    s: TrainingSettings, gradient: GradientSettings, calls: int, validation: int
) -> int:
    """Of a descent by gradient, its validations included."""
    rounds = gradient.steps_rounds + (gradient.extra_rounds if s.decoupled or s.order else 0)
    soft = 0 if gradient.radius == 0 else 1
    update = gradient.batch * calls * (CALLS_A_GRADIENT + soft)
    updates = rounds * math.ceil(s.training_noises / gradient.batch)
    return updates * update + validation * math.ceil(
        updates / updates_a_validation(update, validation)
    )
