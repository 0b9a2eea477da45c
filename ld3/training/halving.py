"""Gauss-Newton from several starts, by successive halving (Jamieson & Talwalkar 2016).

Where a descent begins decides more than how it goes on: with decoupled times the same settings end
anywhere within a factor of two. So several descend for a few iterations, and the ones that come
nearest the teacher go on. Decoupled times are learned together with the steps from the first
iteration on: a basin that is good for steps alone need not be good for both. Corrections of the
coefficients join in the last round: among more free numbers, few noises choose a basin badly.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..student import Student
from ..teacher import Pairs
from .gauss_newton import GaussNewton
from .guide import Guide
from .screening import SCREENING_NOISES, Start
from .selection import Selection
from .settings import ITERATIONS_A_VALIDATION, TrainingSettings

EXTRAS_LARGEST_STEP = 0.6  # decoupled times and corrections are small numbers
EXTRAS_SMALLEST_STEP = 0.03
EXTRAS_HELD = 10.0  # times as much: with extras a student can follow the teacher

Descents = list[tuple[str, GaussNewton]]


def descend_by_gauss_newton(
    student: Student,
    starts: list[Start],
    training: Pairs,
    selection: Selection,
    settings: TrainingSettings,
    order: torch.Generator,
    guide: Guide | None = None,
) -> None:
    """All rounds of the settings; the best by validation is left in `selection`.

    Args:
        student: what to learn, extras included.
        starts: best first.
        order: draws the noises of each iteration.
        guide: the teacher's way, which states are held to.
    """
    constants = settings.gauss_newton
    if student.extras:
        constants = replace(
            constants,
            largest_step=EXTRAS_LARGEST_STEP,
            smallest_step=EXTRAS_SMALLEST_STEP,
            held=EXTRAS_HELD * constants.held,
        )
    uncorrected = replace(student, order=0)
    total = sum(r.iterations for r in settings.rounds)
    done = 0
    descents: Descents = [
        (name, GaussNewton(uncorrected, uncorrected.start(u), total, constants, guide))
        for _, name, u in starts
    ]
    for planned in settings.rounds:
        descents = _nearest(descents, planned.descents, selection)
        if planned.descents == 1 and student.extras:
            name, descent = descents[0]
            # with averages of its own: those of six basins' few noises are crude
            theta = student.start(descent.theta)
            descents = [(name, GaussNewton(student, theta, total, constants, guide, done))]
        learned = ", ".join(["time steps", *descents[0][1].student.extras])
        for left in reversed(range(planned.iterations)):
            for _, descent in descents:
                chosen = torch.randperm(len(training), generator=order)[: planned.noises]
                descent.step(training[chosen], selection.distance, settings.batch_size)
                selection.tell(f"learning {learned}: iteration {done + 1} of {total}")
            if planned.descents == 1 and left % ITERATIONS_A_VALIDATION == 0:
                name, descent = descents[0]
                selection.offer(name, descent.student, descent.theta)
            done += 1


def _nearest(descents: Descents, keep: int, selection: Selection) -> Descents:
    """The descents that came nearest the teacher on validation noises."""
    if keep == 1:
        reached = [selection.offer(name, d.student, d.theta) for name, d in descents]
    elif len(descents) <= keep:
        return descents
    else:
        few = selection.validation[:SCREENING_NOISES]
        reached = [selection.error(d.student.plan(d.theta), few) for _, d in descents]
    return [descents[i] for i in sorted(range(len(descents)), key=reached.__getitem__)[:keep]]
