"""Which of several students is kept, and when a standard schedule is returned instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ld3.metrics import Distance
from ld3.table import Discretization
from ld3.training.final_test import _wins
from ld3.training.report import ProgressReporter
from ld3.training.validation import Objective, ValidatedStudent, Validation, may_lose

from .exact_problems import problem, sampler_of, standard_schedules

GIVEN = problem("gmm16")
STUDENTS = [
    sampler_of(GIVEN.model, "dpmpp_2m").discretization(sigmas)
    for sigmas in list(standard_schedules(GIVEN.sampling, 4).values())[:4]
]
THETA = torch.zeros(1)


@dataclass(frozen=True)
class Known(Objective):
    """An objective whose errors are given, in the students' order."""

    known: tuple[float, ...] = ()

    def error(self, student: Discretization, *_: object) -> float:
        return self.known[next(i for i, s in enumerate(STUDENTS) if s is student)]


def validation(*errors: float, noises: int = 8) -> Validation:
    """With the first of the students, and the errors of all."""
    objective = Known(GIVEN.model, Distance(), known=errors)
    progress = ProgressReporter(GIVEN.model, 1, lambda _: None)
    first = ValidatedStudent(STUDENTS[0], THETA, errors[0])
    samples: Any = range(noises)  # only counted
    return Validation(objective, samples, progress, "start", first)


@pytest.mark.parametrize(
    ("share", "noises", "kept"),
    [(0.9, 4, 1), (1.45, 4, 1), (1.51, 4, 0), (1.2, 32, 1), (1.3, 32, 0)],
)
def test_a_start_chosen_on_these_noises_stays_only_if_much_better(
    share: float, noises: int, kept: int
) -> None:
    judged = validation(1.0, share, noises=noises)
    judged.consider("descended", STUDENTS[1], THETA, descended=True)
    assert judged.best.student is STUDENTS[kept]


def test_the_more_noises_the_less_a_descent_may_lose() -> None:
    allowed = [may_lose(noises) for noises in (4, 8, 32, 128, 10**9)]
    assert allowed == pytest.approx([1.5, 1.5, 1.25, 1.125, 1.0], abs=1e-4)


def test_small_losses_do_not_add_up() -> None:
    """The least error of all is what a descent may not lose too much to."""
    judged = validation(1.0, 1.4, 1.6)
    for student in STUDENTS[1:3]:
        judged.consider("descended", student, THETA, descended=True)
    assert judged.best.student is STUDENTS[1]


def test_what_is_added_to_the_best_must_be_better() -> None:
    judged = validation(1.0, 1.4, 1.41, 1.39)
    judged.consider("descended", STUDENTS[1], THETA, descended=True)
    judged.consider("output mix", STUDENTS[2], THETA)
    assert judged.best.student is STUDENTS[1]
    judged.consider("output mix", STUDENTS[3], THETA)
    assert judged.best.student is STUDENTS[3]


@pytest.mark.parametrize(
    ("standard", "learned", "behind", "wins"),
    [
        ([1, 1, 1, 1], [2, 2, 2, 2], 0.0, True),
        ([1, 1, 1, 1], [2, 2, 2, 2], 3.9, True),  # by less than it was behind on other noises
        ([1, 1, 1, 1], [2, 2, 2, 2], 4.1, False),
        ([2, 2, 2, 2], [1, 1, 1, 1], -9.0, False),  # better there, but not on fresh noises
        ([1, 1, 1, 1], [0.9, 0.9, 0.9, 9], 0.0, False),  # one noise in another mode
        ([1, 1, 1, 1], [1, 1, 1, math.inf], math.inf, True),
        ([1, math.inf], [1, 1], math.nan, False),
    ],
)
def test_a_standard_schedule_wins_on_fresh_noises_and_on_all_together(
    standard: list[float], learned: list[float], behind: float, wins: bool
) -> None:
    given = torch.tensor([standard, learned], dtype=torch.float32)
    assert _wins(given[0], given[1], behind) is wins
