"""How many steps of another sampler and scheduler come as close to the teacher as what was learned.

The other is sampled on a few test noises with two to five times the student's steps, until its
error lies on both sides of the student's, and between these points the error is taken as a power of
the number of steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..table import Discretization
from ..teacher import TeacherSamples
from .report import StepsCurve
from .validation import Objective, errors, mean_score

logger = logging.getLogger(__name__)
COMPARED_NOISES = 6  # of the test noises
OWN_MULTIPLES, MOST_OWN = (3, 2, 1, 5), 8
STANDARD_MULTIPLES, MOST_STANDARD = (2,), 2
"""Multiples of the student's steps, tried in this order, and the sum of those tried at most."""


@dataclass(frozen=True)
class Rival:
    """A sampler and scheduler at any number of steps.

    Attributes:
        name: for the report.
        solver: steps -> solver; ValueError if it cannot have so many.
        multiples: of the student's steps that may be tried, in this order.
        most_calls: model calls per noise, at most.
    """

    name: str
    solver: Callable[[int], Discretization]
    multiples: Sequence[int]
    most_calls: int


def steps_curve(
    rival: Rival,
    learned: tuple[int, float],
    objective: Objective,
    samples: TeacherSamples,
    known: Mapping[int, float] = MappingProxyType({}),
    before_run: Callable[[], None] = lambda: None,
) -> StepsCurve:
    """The rival's errors at some numbers of steps.

    Args:
        learned: number of steps and error, on these samples, of what was learned.
        known: errors by number of steps that were measured already.
        before_run: called before every run, where a caller may interrupt.
    """
    (steps, learned_error), points = learned, dict(known)
    for multiple in rival.multiples:
        tried = multiple * steps
        below = [n for n, error in points.items() if error > learned_error]
        above = [n for n, error in points.items() if error <= learned_error]
        if (below and max(below) >= tried) or (above and min(above) <= tried):
            continue
        before_run()
        try:
            solver = rival.solver(tried)
        except Exception as error:  # not every scheduler can make every number of steps
            logger.info("LD3: %s cannot make %d steps: %s", rival.name, tried, error)
            continue
        error = mean_score(errors(objective.model, solver, samples))
        # some schedulers make another number of steps than they are asked for
        points[solver.steps] = error
    finite = sorted((n, e) for n, e in points.items() if math.isfinite(e))
    return StepsCurve(rival.name, [n for n, _ in finite], [e for _, e in finite], learned_error)
